"""LightGlue (Lindenberger, Sarlin, Pollefeys, ICCV 2023, arXiv 2306.13643), one role a file."""
