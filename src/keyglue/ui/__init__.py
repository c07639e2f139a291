"""People to any of the above: the command line."""
