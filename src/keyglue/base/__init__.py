"""Words and rules of the project: types, configurations, errors, devices, weights on disk and on the Hub."""
