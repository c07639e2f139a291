"""A folder of photographs to a 3D model: describe, pair, match, verify, map; every step resumable."""
