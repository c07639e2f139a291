"""The two numbers by which matchers are compared: precision of matches, area under the recall curve of estimates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keyglue.base.errors import InputError
from keyglue.multiview.arrays import Array


def auc(errors: Any, thresholds: Sequence[float]) -> list[float]:
    """Return the area under the curve of recall over error, up to each threshold and divided by it.

    The curve is the one of the SuperGlue and LightGlue evaluations: from (0, 0) straight lines through (e_i, i / N) for
    the sorted errors e_1 .. e_N that lie below the threshold, then level to the threshold.

    Args:
        errors: (N,) errors, one for each pair of images; infinite where the estimation failed.
        thresholds: Upper ends of the curve, in the unit of the errors.

    Returns:
        One area between 0 and 1 for each threshold.

    Raises:
        InputError: There are no errors, one is negative or NaN, or a threshold is not positive.
    """
    ordered = np.sort(_errors(errors))
    if not len(ordered):
        raise InputError("the area under the curve needs at least one error.")
    return [_area(ordered, limit) for limit in _thresholds(thresholds)]


def precision(errors: Any, thresholds: Sequence[float]) -> list[float]:
    """Return the share of errors below each threshold; 0 where there are no errors.

    Args:
        errors: (N,) errors, one for each match.
        thresholds: Largest errors that count as right, exclusive.

    Raises:
        InputError: An error is negative or NaN, or a threshold is not positive.
    """
    values = _errors(errors)
    return [float((values < limit).mean()) if len(values) else 0.0 for limit in _thresholds(thresholds)]


def _area(ordered: Array, limit: float) -> float:
    below = ordered[ordered < limit]
    recall = np.arange(len(below) + 1) / len(ordered)
    # Trapezes between neighbouring errors, then the rectangle that reaches the threshold.
    trapezes = np.diff(below, prepend=0) @ (recall[1:] + recall[:-1]) / 2
    last = below[-1] if len(below) else 0.0
    return float((trapezes + (limit - last) * recall[-1]) / limit)


def _errors(errors: Any) -> Array:
    values = np.asarray(errors, dtype=np.float64)
    if values.ndim != 1:
        raise InputError(f"errors must have shape (N,), got {values.shape}.")
    if np.isnan(values).any() or values.min(initial=0) < 0:
        raise InputError("errors must be numbers of at least 0; use infinity where an estimation failed.")
    return values


def _thresholds(thresholds: Sequence[float]) -> list[float]:
    limits = [float(limit) for limit in thresholds]
    if not all(0 < limit < float("inf") for limit in limits):
        raise InputError(f"thresholds must be positive and finite, got {limits}.")
    return limits
