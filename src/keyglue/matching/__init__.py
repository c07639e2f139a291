"""Two Features to Matches: nearest neighbours, and LightGlue as in the paper."""
