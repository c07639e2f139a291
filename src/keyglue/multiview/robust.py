"""Homography, fundamental and essential matrix and relative pose from matches of which some are wrong.

Every function takes (S, 2) pixels of image 0 and the corresponding ones of image 1 and returns the estimate with the
inliers (S,). The same rules hold for all of them:

- An inlier is judged by the estimate that is returned, with keyglue's own distance, whatever the backend: the transfer
  error into image 1 for a homography, the Sampson distance for the rest, both in pixels and below ``threshold``.
- Too few points, points that do not determine the answer (all within ``threshold`` of one line; for a fundamental
  matrix also an exact plane), or no agreement: the matrix is None and there are no inliers. That is an answer, not an
  error. A pure rotation leaves the translation of a pose undetermined without being noticed.
- The same input and seed give the same bits.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyglue.multiview.arrays import Array, as_pairs, homogeneous
from keyglue.multiview.backends import RansacOptions, make_backend
from keyglue.multiview.cameras import Camera, as_camera
from keyglue.multiview.epipolar import essential_from_pose, pose_inliers, sampson_distance
from keyglue.multiview.homography import dlt_homography, normalisation, normalise_matrix, transfer_error

Mask = NDArray[np.bool_]

_FEWEST = {"homography": 4, "fundamental": 7, "pose": 5}


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixEstimate:
    """A matrix that relates two images, with the correspondences that agree with it.

    Attributes:
        matrix: (3, 3) float64, or None where the points give none.
        inliers: (S,) boolean.
    """

    matrix: Array | None
    inliers: Mask


class HomographyEstimate(MatrixEstimate):
    """Homography with [x1, y1, 1] ~ H [x0, y0, 1], scaled to H[2, 2] = 1 where that element does not vanish."""


class FundamentalEstimate(MatrixEstimate):
    """Fundamental matrix with x1^T F x0 = 0 for pixels, of length one."""


class EssentialEstimate(MatrixEstimate):
    """Essential matrix with x1^T E x0 = 0 for normalised coordinates, both singular values one."""


@dataclasses.dataclass(frozen=True, eq=False)
class RelativePose:
    """Where camera 1 is, seen from camera 0: X1 = R X0 + t.

    Attributes:
        R: (3, 3) rotation, or None where the points give none.
        t: (3,) direction of translation, of length one, or None.
        inliers: (S,) boolean; inliers also lie in front of both cameras.
    """

    R: Array | None
    t: Array | None
    inliers: Mask

    @property
    def E(self) -> Array | None:  # noqa: N802
        """(3, 3) essential matrix, or None."""
        return None if self.R is None or self.t is None else essential_from_pose(self.R, self.t)


def estimate_homography(
    points0: Any,
    points1: Any,
    *,
    threshold: float = 3.0,
    confidence: float = 0.9999,
    max_iterations: int = 10000,
    backend: str = "auto",
    seed: int = 0,
) -> HomographyEstimate:
    """Estimate the homography that most correspondences agree with.

    Args:
        points0: (S, 2) pixels of image 0.
        points1: (S, 2) corresponding pixels of image 1.
        threshold: Transfer error in pixels below which a correspondence is an inlier.
        confidence: Probability of having found the best answer at which sampling stops.
        max_iterations: Largest number of random samples.
        backend: "poselib", "opencv" (MAGSAC++), or "auto" for the first that is installed.
        seed: Start of the random numbers.

    Raises:
        InputError: A shape, value or name is not as described.
        MissingDependencyError: No backend is installed.
    """
    options = RansacOptions(threshold=threshold, confidence=confidence, max_iterations=max_iterations, seed=seed)
    solver = make_backend(backend)
    first, second = as_pairs(points0, points1)
    if _spread_out(first, second, threshold, "homography"):
        raw = solver.homography(first, second, options)
        matrix = None if raw is None else normalise_matrix(raw)
        if matrix is not None:
            inliers = transfer_error(matrix, first, second) < threshold
            agreeing = first[inliers], second[inliers]
            if _spread_out(*agreeing, threshold, "homography") and dlt_homography(*agreeing) is not None:
                return HomographyEstimate(matrix, inliers)
    return HomographyEstimate(None, _none(first))


def estimate_fundamental(
    points0: Any,
    points1: Any,
    *,
    threshold: float = 1.0,
    confidence: float = 0.9999,
    max_iterations: int = 10000,
    backend: str = "auto",
    seed: int = 0,
) -> FundamentalEstimate:
    """Estimate the fundamental matrix that most correspondences agree with.

    Args:
        points0: (S, 2) pixels of image 0.
        points1: (S, 2) corresponding pixels of image 1.
        threshold: Sampson distance in pixels below which a correspondence is an inlier.
        confidence: As for ``estimate_homography``.
        max_iterations: As for ``estimate_homography``.
        backend: As for ``estimate_homography``.
        seed: As for ``estimate_homography``.

    Raises:
        InputError: A shape, value or name is not as described.
        MissingDependencyError: No backend is installed.
    """
    options = RansacOptions(threshold=threshold, confidence=confidence, max_iterations=max_iterations, seed=seed)
    solver = make_backend(backend)
    first, second = as_pairs(points0, points1)
    if _spread_out(first, second, threshold, "fundamental"):
        matrix = solver.fundamental(first, second, options)
        length = 0.0 if matrix is None else np.linalg.norm(matrix)
        if matrix is not None and np.isfinite(length) and length > 0:
            matrix = matrix / length
            inliers = sampson_distance(matrix, first, second) < threshold
            agreeing = first[inliers], second[inliers]
            if _spread_out(*agreeing, threshold, "fundamental") and _determines_fundamental(*agreeing):
                return FundamentalEstimate(matrix, inliers)
    return FundamentalEstimate(None, _none(first))


def estimate_essential(
    points0: Any,
    points1: Any,
    camera0: Any,
    camera1: Any,
    *,
    threshold: float = 1.0,
    confidence: float = 0.9999,
    max_iterations: int = 10000,
    backend: str = "auto",
    seed: int = 0,
) -> EssentialEstimate:
    """Estimate the essential matrix that most correspondences agree with; see ``estimate_relative_pose``."""
    pose = estimate_relative_pose(
        points0,
        points1,
        camera0,
        camera1,
        threshold=threshold,
        confidence=confidence,
        max_iterations=max_iterations,
        backend=backend,
        seed=seed,
    )
    return EssentialEstimate(pose.E, pose.inliers)


def estimate_relative_pose(
    points0: Any,
    points1: Any,
    camera0: Any,
    camera1: Any,
    *,
    threshold: float = 1.0,
    confidence: float = 0.9999,
    max_iterations: int = 10000,
    backend: str = "auto",
    seed: int = 0,
) -> RelativePose:
    """Estimate the pose of camera 1 relative to camera 0 that most correspondences agree with.

    Args:
        points0: (S, 2) pixels of image 0, with the lens distortion that ``camera0`` describes.
        points1: (S, 2) corresponding pixels of image 1.
        camera0: ``Camera``, (3, 3) calibration matrix or mapping with "K" and "dist"; see ``as_camera``.
        camera1: The same for image 1.
        threshold: Sampson distance, in pixels of the images without distortion, below which a correspondence is an
            inlier.
        confidence: As for ``estimate_homography``.
        max_iterations: As for ``estimate_homography``.
        backend: As for ``estimate_homography``.
        seed: As for ``estimate_homography``.

    Raises:
        InputError: A shape, value or name is not as described.
        MissingDependencyError: No backend is installed.
    """
    options = RansacOptions(threshold=threshold, confidence=confidence, max_iterations=max_iterations, seed=seed)
    solver = make_backend(backend)
    lens0, lens1 = as_camera(camera0), as_camera(camera1)
    raw0, raw1 = as_pairs(points0, points1)
    first, second = _without_distortion(raw0, lens0), _without_distortion(raw1, lens1)
    if _spread_out(first, second, threshold, "pose"):
        pose = solver.relative_pose(first, second, lens0, lens1, options)
        length = 0.0 if pose is None else np.linalg.norm(pose[1])
        if pose is not None and np.isfinite(pose[0]).all() and np.isfinite(length) and length > 0:
            R, t = pose[0], pose[1] / length
            inliers = pose_inliers(R, t, first, second, lens0, lens1, threshold)
            if _spread_out(first[inliers], second[inliers], threshold, "pose"):
                return RelativePose(R, t, inliers)
    return RelativePose(None, None, _none(raw0))


def _without_distortion(points: Array, camera: Camera) -> Array:
    """Return the pixels at which the same camera without distortion would see the points."""
    return camera.undistort(points) * (camera.fx, camera.fy) + (camera.cx, camera.cy)


def _none(points: Array) -> Mask:
    return np.zeros(len(points), dtype=bool)


def _spread_out(points0: Array, points1: Array, threshold: float, purpose: str) -> bool:
    """Tell whether there are enough points and those of neither image lie within ``threshold`` of one line."""
    return len(points0) >= _FEWEST[purpose] and all(_width(points) >= threshold for points in (points0, points1))


def _width(points: Array) -> float:
    """Return the largest distance of a point from the line through the points' mean that fits them best."""
    centred = points - points.mean(axis=0)
    across = np.linalg.eigh(centred.T @ centred)[1][:, 0]
    return float(np.abs(centred @ across).max())


def _determines_fundamental(points0: Array, points1: Array) -> bool:
    """Tell whether the equations x1^T F x0 = 0 leave at most the two dimensions that the determinant resolves."""
    scale0, scale1 = normalisation(points0), normalisation(points1)
    if scale0 is None or scale1 is None:
        return False
    x0, x1 = homogeneous(points0) @ scale0.T, homogeneous(points1) @ scale1.T
    equations = (x1[:, :, None] * x0[:, None, :]).reshape(-1, 9)
    singular = np.linalg.svd(equations, compute_uv=False)
    return bool(singular[6] > 1e-7 * singular[0])
