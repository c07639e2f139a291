"""Adaptive width (section 3.3): which points leave the computation."""

from __future__ import annotations

from torch import Tensor


def points_to_keep(matchability: Tensor, confidence: Tensor, threshold: float, width_confidence: float) -> Tensor:
    """Return (T,) booleans: a point goes when it is confidently unmatchable.

    Args:
        matchability: (T,) probability that a point has a match.
        confidence: (T,) probability that this will not change.
        threshold: Confidence below or at which a point always stays.
        width_confidence: Points with matchability of at most 1 minus this may go.
    """
    return (matchability > 1 - width_confidence) | (confidence <= threshold)
