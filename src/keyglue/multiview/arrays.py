"""Checks that every function of this folder makes of the arrays it is given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyglue.base.errors import InputError

Array = NDArray[np.float64]


def as_array(values: Any, shape: tuple[int | None, ...], name: str) -> Array:
    """Return ``values`` as a finite float64 array of a given shape.

    Args:
        values: Array, nested sequence or tensor (on any device).
        shape: Expected lengths; None for any length.
        name: What to call the values in an error.

    Raises:
        InputError: It is no array of numbers, has another shape, or holds NaN or infinite values.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array of numbers, got {type(values).__name__}.") from error
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("N" if length is None else str(length) for length in shape)
        raise InputError(f"{name} must have shape ({wanted}{',' * (len(shape) == 1)}), got {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinite values.")
    return array


def as_pairs(points0: Any, points1: Any) -> tuple[Array, Array]:
    """Return corresponding points of two images, each (N, 2) float64.

    Raises:
        InputError: A shape is another one, the lengths differ, or a value is not finite.
    """
    first, second = as_array(points0, (None, 2), "points0"), as_array(points1, (None, 2), "points1")
    if len(first) != len(second):
        raise InputError(f"points0 and points1 must correspond, but there are {len(first)} and {len(second)} of them.")
    return first, second


def homogeneous(points: Array) -> Array:
    """Append a one to each point: (N, d) to (N, d + 1)."""
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)
