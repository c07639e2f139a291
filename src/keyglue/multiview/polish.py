"""Estimates that robust estimators found, fitted to all that agrees with them.

A sample says which correspondences are right; how exactly the answer lies is known best from all of these, the closest
counting most. So the sum of log(1 + (e / s)^2) is minimised (the Cauchy loss), over errors e that are cut off at the
threshold, where s is the median error of what lies below it.

Points are (N, 2) float64 pixels without lens distortion.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from keyglue.multiview.arrays import Array, homogeneous
from keyglue.multiview.cameras import Camera
from keyglue.multiview.epipolar import cross_matrix, essential_from_pose, fundamental_from_essential
from keyglue.multiview.homography import normalisation, normalise_matrix

# Steps at most, the share of the loss that one has to gain for another, and how far a parameter moves to see what
# that does.
_STEPS, _GAIN, _MOVE = 10, 1e-3, 1e-7
# Inliers for each parameter below which the sample is not improved on.
_INLIERS = 2
# s as a share of the threshold at least.
_SMALLEST = 1e-3
_FARTHEST = 1e6


def polish_homography(H: Array, points0: Array, points1: Array, threshold: float) -> Array:
    """Return a homography (3, 3) with smaller transfer errors into image 1."""
    scale0, scale1 = normalisation(points0), normalisation(points1)
    if scale0 is None or scale1 is None:
        return H
    x0, to_pixels = homogeneous(points0) @ scale0.T, np.linalg.inv(scale1)
    start = scale1 @ H @ np.linalg.inv(scale0)
    start = start / np.linalg.norm(start)
    # What is orthogonal to it, as its length means nothing.
    directions = np.linalg.svd(start.reshape(1, 9))[2][1:].reshape(8, 3, 3)

    def moved(parameters: Array) -> Array:
        return start + np.tensordot(parameters, directions, axes=1)

    def errors(parameters: Array) -> Array:
        mapped = x0 @ (to_pixels @ moved(parameters)).T
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return mapped[:, :2] / mapped[:, 2:] - points1

    polished = normalise_matrix(to_pixels @ moved(_fitted(errors, 8, threshold)) @ scale0)
    return H if polished is None else polished


def polish_fundamental(F: Array, points0: Array, points1: Array, threshold: float) -> Array:
    """Return a fundamental matrix (3, 3) with smaller Sampson distances."""
    scale0, scale1 = normalisation(points0), normalisation(points1)
    if scale0 is None or scale1 is None:
        return F
    left, sizes, right = np.linalg.svd(np.linalg.inv(scale1).T @ F @ np.linalg.inv(scale0))
    if not sizes[0] > 0:
        return F

    def moved(parameters: Array) -> Array:
        middle = np.diag([1.0, sizes[1] / sizes[0] + parameters[6], 0.0])
        normal = left @ _rotation(parameters[:3]) @ middle @ _rotation(parameters[3:6]) @ right
        return scale1.T @ normal @ scale0

    return moved(_fitted(lambda parameters: _sampson(moved(parameters), points0, points1), 7, threshold))


def polish_pose(
    R: Array, t: Array, points0: Array, points1: Array, camera0: Camera, camera1: Camera, threshold: float
) -> tuple[Array, Array]:
    """Return rotation (3, 3) and translation (3,) of length one with smaller Sampson distances."""
    across = np.linalg.svd(t[None])[2][1:]

    def moved(parameters: Array) -> tuple[Array, Array]:
        direction = t + parameters[3:] @ across
        return _rotation(parameters[:3]) @ R, direction / np.linalg.norm(direction)

    def errors(parameters: Array) -> Array:
        fundamental = fundamental_from_essential(essential_from_pose(*moved(parameters)), camera0, camera1)
        return _sampson(fundamental, points0, points1)

    return moved(_fitted(errors, 5, threshold))


def _fitted(errors: Callable[[Array], Array], count: int, threshold: float) -> Array:
    """Return parameters (count,), from zeros on, of the smallest loss of errors (N, k): Levenberg and Marquardt."""

    def safe(parameters: Array) -> Array:
        return np.nan_to_num(errors(parameters), nan=_FARTHEST, posinf=_FARTHEST, neginf=-_FARTHEST)

    parameters = np.zeros(count)
    now = safe(parameters)
    lengths = np.linalg.norm(now, axis=1)
    near = lengths < threshold
    if near.sum() < _INLIERS * count:
        return parameters
    scale = max(float(np.median(lengths[near])), _SMALLEST * threshold)
    loss, damping = _loss(lengths, scale, threshold), 1e-3
    for _ in range(_STEPS):
        slopes = np.stack([(safe(parameters + move) - now) / _MOVE for move in _MOVE * np.eye(count)], axis=2)
        lengths = np.linalg.norm(now, axis=1)
        weights = (lengths < threshold) / (1 + (lengths / scale) ** 2)
        weighted = slopes * weights[:, None, None]
        square = np.tensordot(weighted, slopes, axes=((0, 1), (0, 1)))
        square += damping * np.diag(square.diagonal() + np.finfo(float).tiny)
        step = np.linalg.lstsq(square, -np.tensordot(weighted, now, axes=((0, 1), (0, 1))), rcond=None)[0]
        then = safe(parameters + step)
        better = _loss(np.linalg.norm(then, axis=1), scale, threshold)
        if better >= loss:
            damping *= 10
            continue
        enough = loss - better < _GAIN * loss
        parameters, now, loss, damping = parameters + step, then, better, damping / 10
        if enough:
            break
    return parameters


def _loss(lengths: Array, scale: float, threshold: float) -> float:
    return float(np.log1p((np.minimum(lengths, threshold) / scale) ** 2).sum())


def _sampson(F: Array, points0: Array, points1: Array) -> Array:
    """Return (N, 1) Sampson distances with a sign."""
    x0, x1 = homogeneous(points0), homogeneous(points1)
    lines1, lines0 = x0 @ F.T, x1 @ F
    length = np.sqrt((lines0[:, :2] ** 2).sum(axis=1) + (lines1[:, :2] ** 2).sum(axis=1))
    residual = (lines1 * x1).sum(axis=1)
    return np.divide(residual, length, out=np.zeros_like(residual), where=length > 0)[:, None]


def _rotation(vector: Array) -> Array:
    """Return the rotation by a vector's length about it (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle < np.finfo(float).eps:
        return np.eye(3)
    axis = cross_matrix(vector / angle)
    return np.eye(3) + np.sin(angle) * axis + (1 - np.cos(angle)) * axis @ axis
