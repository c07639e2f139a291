"""Matches to geometry: cameras, homographies, epipolar geometry, relative pose."""
