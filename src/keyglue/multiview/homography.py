"""Homographies: the plane-to-plane maps between two images of a plane, or of anything from one place.

A homography H maps pixels of image 0 to pixels of image 1: [x1, y1, 1] ~ H [x0, y0, 1].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keyglue.base.errors import InputError
from keyglue.multiview.arrays import Array, as_array, as_pairs, homogeneous

# Below this ratio of singular values the equations do not determine the eight unknowns.
_RANK_TOLERANCE = 1e-6
# Condition, in units of pixels, from which on three of four points are as good as on a line.
_WORST_CONDITION = 1e12


def dlt_homography(points0: Any, points1: Any, weights: Any = None) -> Array | None:
    """Fit a homography to all correspondences by the normalised direct linear transform.

    Hartley and Zisserman, "Multiple View Geometry", algorithm 4.2.

    Args:
        points0: (N, 2) points of image 0.
        points1: (N, 2) corresponding points of image 1.
        weights: (N,) weights of the squared algebraic errors, not negative; all equal unless given.

    Returns:
        (3, 3) homography, or None where the points don't determine one: fewer than four, or too many on one line.

    Raises:
        InputError: A shape or value is not as described.
    """
    first, second = as_pairs(points0, points1)
    if weights is not None:
        strength = as_array(weights, (len(first),), "weights")
        if strength.min(initial=0) < 0:
            raise InputError("weights must not be negative.")
        used = strength > 0
        first, second, strength = first[used], second[used], strength[used]
    else:
        strength = np.ones(len(first))
    if len(first) < 4:
        return None
    scale0, scale1 = normalisation(first), normalisation(second)
    if scale0 is None or scale1 is None:
        return None
    x0 = homogeneous(first) @ scale0.T
    x1 = homogeneous(second) @ scale1.T
    zero = np.zeros_like(x0)
    # Two rows of x1 x (H x0) = 0 for each correspondence.
    rows = np.concatenate(
        [np.concatenate([x0, zero, -x1[:, :1] * x0], axis=1), np.concatenate([zero, x0, -x1[:, 1:2] * x0], axis=1)]
    )
    rows *= np.sqrt(np.tile(strength / strength.max(), 2))[:, None]
    # The small 9 x 9 factor has the same right singular vectors, whatever the number of points.
    _, singular, right = np.linalg.svd(np.linalg.qr(rows, mode="r"))
    if singular[7] < _RANK_TOLERANCE * singular[0]:
        return None
    solution = np.linalg.solve(scale1, right[8].reshape(3, 3) @ scale0)
    return normalise_matrix(solution)


def homography_from_corners(source: Array, target: Array) -> Array:
    """Return the homographies (..., 3, 3) that map four points exactly, with H[2, 2] = 1; NaN where there is none.

    Args:
        source: (4, 2) or (..., 4, 2) points.
        target: (..., 4, 2) where they go.
    """
    x, y = np.moveaxis(np.broadcast_to(source, target.shape), -1, 0)
    u, v = np.moveaxis(target, -1, 0)
    one, zero = np.ones_like(x), np.zeros_like(x)
    rows_u = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], axis=-1)
    rows_v = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], axis=-1)
    rows = np.concatenate([rows_u, rows_v], axis=-2)
    right = np.concatenate([u, v], axis=-1)[..., None]
    regular = np.linalg.cond(rows) < _WORST_CONDITION
    found = np.full((*regular.shape, 9), np.nan)
    found[regular, :8] = np.linalg.solve(rows[regular], right[regular])[..., 0]
    found[regular, 8] = 1
    return found.reshape(*regular.shape, 3, 3)


def warp_points(H: Any, points: Any) -> Array:
    """Map points of image 0 to image 1.

    Args:
        H: (3, 3) homography.
        points: (N, 2) points of image 0.

    Returns:
        (N, 2) points of image 1; infinite for a point that the homography sends to infinity.
    """
    mapped = homogeneous(as_array(points, (None, 2), "points")) @ as_array(H, (3, 3), "a homography").T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        warped = mapped[:, :2] / mapped[:, 2:]
    return np.where(np.isfinite(warped), warped, np.inf)


def transfer_error(H: Any, points0: Any, points1: Any) -> Array:
    """Return the distance in pixels between each point of image 1 and the mapped point of image 0: (N,)."""
    first, second = as_pairs(points0, points1)
    return np.linalg.norm(warp_points(H, first) - second, axis=1)


def corner_error(H_estimated: Any, H_true: Any, size: tuple[int, int]) -> float:
    """Return the mean distance in pixels between the corners of image 0 as two homographies map them.

    This is the error whose area under the curve the HPatches protocol reports; the corners are the centres of the
    corner pixels.

    Args:
        H_estimated: (3, 3) estimate, or None where the estimation failed, which gives an infinite error.
        H_true: (3, 3) ground truth.
        size: Height and width of image 0.
    """
    if H_estimated is None:
        return float("inf")
    height, width = size
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], dtype=np.float64)
    expected = warp_points(H_true, corners)
    if not np.isfinite(expected).all():
        raise InputError("the true homography sends a corner of the image to infinity.")
    return float(np.linalg.norm(warp_points(H_estimated, corners) - expected, axis=1).mean())


def normalisation(points: Array) -> Array | None:
    """Return the similarity (3, 3) that gives points mean zero and mean distance sqrt(2), None if they coincide."""
    centre = points.mean(axis=0)
    spread = np.linalg.norm(points - centre, axis=1).mean()
    if spread <= 1e-12 * max(1.0, np.abs(centre).max()):
        return None
    factor = np.sqrt(2) / spread
    return np.array([[factor, 0, -factor * centre[0]], [0, factor, -factor * centre[1]], [0, 0, 1]])


def normalise_matrix(matrix: Array) -> Array | None:
    """Scale a homography to H[2, 2] = 1, or to unit length where that element vanishes; None if it is not finite."""
    length = np.linalg.norm(matrix)
    if not np.isfinite(length) or length == 0:
        return None
    unit = matrix / length
    return unit / unit[2, 2] if abs(unit[2, 2]) > 1e-9 else unit
