"""From images to weights: labels, data, losses, the loop, and recipes that put them together."""
