"""Image file to image tensor: reading, resizing, colour, coordinates, the processor, drawing."""
