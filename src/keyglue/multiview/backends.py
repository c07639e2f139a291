"""The libraries that estimate geometry from correspondences with outliers, behind one small interface.

A backend returns a matrix or pose, or None where it finds none; it never decides which correspondences are inliers, so
that the word means the same whatever the library.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any, Protocol

import numpy as np

from keyglue.base.errors import InputError, MissingDependencyError
from keyglue.multiview.arrays import Array
from keyglue.multiview.cameras import Camera
from keyglue.multiview.epipolar import (
    fundamental_from_essential,
    normalised,
    pose_from_essential,
    pose_inliers,
    sampson_distance,
)
from keyglue.multiview.polish import polish_fundamental, polish_homography, polish_pose


@dataclasses.dataclass(frozen=True, kw_only=True)
class RansacOptions:
    """Settings of a robust estimation; see ``estimate_homography``."""

    threshold: float
    confidence: float
    max_iterations: int
    seed: int

    def __post_init__(self) -> None:
        if not (0 < self.threshold < float("inf")):
            raise InputError(f"threshold must be a positive number of pixels, got {self.threshold!r}.")
        if not 0 < self.confidence < 1:
            raise InputError(f"confidence must lie between 0 and 1, got {self.confidence!r}.")
        if int(self.max_iterations) != self.max_iterations or self.max_iterations < 1:
            raise InputError(f"max_iterations must be a positive integer, got {self.max_iterations!r}.")
        if int(self.seed) != self.seed or not 0 <= self.seed < 2**31:
            raise InputError(f"seed must be an integer from 0 to 2**31 - 1, got {self.seed!r}.")


class Backend(Protocol):
    """What a library has to offer; all points are (N, 2) float64 pixels without lens distortion."""

    def homography(self, points0: Array, points1: Array, options: RansacOptions) -> Array | None:
        """Return a homography (3, 3)."""

    def fundamental(self, points0: Array, points1: Array, options: RansacOptions) -> Array | None:
        """Return a fundamental matrix (3, 3)."""

    def relative_pose(
        self, points0: Array, points1: Array, camera0: Camera, camera1: Camera, options: RansacOptions
    ) -> tuple[Array, Array] | None:
        """Return rotation (3, 3) and translation (3,); the cameras' distortion plays no part."""


class PoseLibBackend:
    """LO-RANSAC of PoseLib with its non-linear refinement."""

    def __init__(self) -> None:
        import poselib

        self._library: Any = poselib

    def homography(self, points0: Array, points1: Array, options: RansacOptions) -> Array | None:
        """Return a homography (3, 3)."""
        return self._library.estimate_homography(points0, points1, self._options(options, "max_reproj_error"))[0]

    def fundamental(self, points0: Array, points1: Array, options: RansacOptions) -> Array | None:
        """Return a fundamental matrix (3, 3)."""
        return self._library.estimate_fundamental(points0, points1, self._options(options, "max_epipolar_error"))[0]

    def relative_pose(
        self, points0: Array, points1: Array, camera0: Camera, camera1: Camera, options: RansacOptions
    ) -> tuple[Array, Array] | None:
        """Return rotation (3, 3) and translation (3,)."""
        pose, _ = self._library.estimate_relative_pose(
            points0, points1, _pinhole(camera0), _pinhole(camera1), self._options(options, "max_epipolar_error")
        )
        return np.array(pose.R), np.array(pose.t)

    @staticmethod
    def _options(options: RansacOptions, threshold: str) -> dict[str, Any]:
        return {
            threshold: options.threshold,
            "success_prob": options.confidence,
            "max_iterations": int(options.max_iterations),
            "min_iterations": min(1000, int(options.max_iterations)),
            "seed": int(options.seed),
        }


class OpenCVBackend:
    """MAGSAC++ of OpenCV, with its own random state (OpenCV's global one is left alone), and a last step of our own."""

    def __init__(self) -> None:
        import cv2

        self._library: Any = cv2

    def homography(self, points0: Array, points1: Array, options: RansacOptions) -> Array | None:
        """Return a homography (3, 3)."""
        found = self._run(self._library.findHomography, points0, points1, self._parameters(options))
        return None if found is None else polish_homography(found, points0, points1, options.threshold)

    def fundamental(self, points0: Array, points1: Array, options: RansacOptions) -> Array | None:
        """Return a fundamental matrix (3, 3)."""
        found = self._run(self._library.findFundamentalMat, points0, points1, self._parameters(options))
        return None if found is None else polish_fundamental(found, points0, points1, options.threshold)

    def relative_pose(
        self, points0: Array, points1: Array, camera0: Camera, camera1: Camera, options: RansacOptions
    ) -> tuple[Array, Array] | None:
        """Return rotation (3, 3) and translation (3,) of length one."""
        no_distortion = np.zeros(5)
        matrices = (camera0.matrix, camera1.matrix, no_distortion, no_distortion)
        essential = self._run(self._library.findEssentialMat, points0, points1, *matrices, self._parameters(options))
        if essential is None:
            return None
        fundamental = fundamental_from_essential(essential, camera0, camera1)
        near = sampson_distance(fundamental, points0, points1) < options.threshold
        pose = pose_from_essential(essential, normalised(points0[near], camera0), normalised(points1[near], camera1))

        def support(pose: tuple[Array, Array]) -> int:
            return int(pose_inliers(*pose, points0, points1, camera0, camera1, options.threshold).sum())

        # The points of a plane fit two essential matrices exactly. OpenCV does not look which of them has the points
        # in front of the cameras, so half the time it returns the wrong one; the plane's homography gives both.
        if support(pose) < 0.9 * near.sum():
            pose = max([pose, *self._poses_of_plane(points0, points1, camera0, camera1, options)], key=support)
        return polish_pose(*pose, points0, points1, camera0, camera1, options.threshold)

    def _poses_of_plane(
        self, points0: Array, points1: Array, camera0: Camera, camera1: Camera, options: RansacOptions
    ) -> list[tuple[Array, Array]]:
        homography = self.homography(points0, points1, options)
        if homography is None:
            return []
        calibrated = np.linalg.inv(camera1.matrix) @ homography @ camera0.matrix
        _, rotations, translations, _ = self._library.decomposeHomographyMat(calibrated, np.eye(3))
        return [(R, t.ravel()) for R, t in zip(rotations, translations, strict=True)]

    def _parameters(self, options: RansacOptions) -> Any:
        cv2 = self._library
        parameters = cv2.UsacParams()
        parameters.threshold = float(options.threshold)
        parameters.confidence = float(options.confidence)
        parameters.maxIterations = int(options.max_iterations)
        parameters.randomGeneratorState = int(options.seed)
        # What the flag USAC_MAGSAC stands for, which itself gives no way to set the random state.
        parameters.sampler = cv2.SAMPLING_UNIFORM
        parameters.score = cv2.SCORE_METHOD_MAGSAC
        parameters.loMethod = cv2.LOCAL_OPTIM_SIGMA
        parameters.final_polisher = cv2.MAGSAC
        return parameters

    def _run(self, estimate: Any, *arguments: Any) -> Array | None:
        try:
            matrix = estimate(*arguments)[0]
        except self._library.error:
            return None  # OpenCV raises where it finds nothing in some versions, and returns nothing in others
        return matrix if matrix is not None and matrix.shape == (3, 3) and np.isfinite(matrix).all() else None


_BACKENDS: dict[str, tuple[str, type[PoseLibBackend] | type[OpenCVBackend]]] = {
    "poselib": ("poselib", PoseLibBackend),
    "opencv": ("cv2", OpenCVBackend),
}


def make_backend(name: str) -> Backend:
    """Return the backend of a name; "auto" takes PoseLib where it is installed, else OpenCV.

    Raises:
        InputError: The name is unknown.
        MissingDependencyError: The library is not installed.
    """
    if name != "auto" and name not in _BACKENDS:
        raise InputError(f"unknown backend {name!r}. Use 'auto', {', '.join(map(repr, _BACKENDS))}.")
    for known, (module, backend) in _BACKENDS.items():
        if name in ("auto", known) and importlib.util.find_spec(module) is not None:
            return backend()
    library = {"poselib": "PoseLib", "opencv": "OpenCV", "auto": "PoseLib (or OpenCV)"}[name]
    raise MissingDependencyError(library, "geometry", "estimating geometry from matches")


def _pinhole(camera: Camera) -> dict[str, Any]:
    """Return a camera as PoseLib wants it; the size plays no part in the estimation."""
    return {
        "model": "PINHOLE",
        "width": camera.width or 0,
        "height": camera.height or 0,
        "params": [camera.fx, camera.fy, camera.cx, camera.cy],
    }
