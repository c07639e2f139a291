"""How probable it is that two images show the same thing at all, from how well their keypoints match."""

from __future__ import annotations

import math

from keyglue.base.types import Matches


def evidence(found: Matches) -> tuple[float, float]:
    """Return what speaks for a pair of images: log(1 + s), and s as a share of the keypoints that could match.

    s is the sum of the scores of all mutual best matches, also of those below the filter threshold, so that it does not
    depend on the threshold.
    """
    total = float(found.matching_scores0.float().sum())
    fewest = min(len(found.matches0), len(found.matches1))
    return math.log1p(total), total / max(fewest, 1)


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
