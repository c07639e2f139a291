"""Two image files to matches and geometry in one call."""
