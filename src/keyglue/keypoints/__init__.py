"""Image tensor to Features: SuperPoint, SIFT and what they share."""
