"""How probable it is that two images show the same thing at all, from how well their keypoints match."""

from __future__ import annotations

import math

from keyglue.base.types import Matches

STRONG = 0.5


def evidence(found: Matches) -> tuple[float, float]:
    """Return what speaks for a pair of images: log((k + 1/2) / n) and log(n).

    k is the number of mutual best matches with a score above 0.5, n that of the keypoints that could match; of many
    keypoints more match by chance. Neither depends on the filter threshold.
    """
    fewest = max(min(len(found.matches0), len(found.matches1)), 1)
    strong = int((found.matching_scores0 > STRONG).sum())
    return math.log((strong + 0.5) / fewest), math.log(fewest)


def match_probability(found: Matches, weights: tuple[float, ...] | None) -> float | None:
    """Return the probability that two images show the same thing, or None without calibration.

    Args:
        found: What the matcher found.
        weights: Intercept and weights of ``evidence`` in a logistic regression on pairs of which half show the same
            thing (``LightGlueConfig.match_probability``).
    """
    if weights is None:
        return None
    intercept, *slopes = weights
    logit = intercept + sum(slope * value for slope, value in zip(slopes, evidence(found), strict=True))
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, logit))))
