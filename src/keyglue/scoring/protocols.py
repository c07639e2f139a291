"""What is measured on one pair. All coordinates and errors are in pixels of the set's reference frame.

docs/scoring.md has the formulas and says where they come from.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyglue.multiview.arrays import Array
from keyglue.multiview.cameras import Camera
from keyglue.multiview.epipolar import fundamental_from_pose, pose_error, symmetric_epipolar_distance
from keyglue.multiview.homography import corner_error, dlt_homography, transfer_error, warp_points
from keyglue.multiview.metrics import precision
from keyglue.multiview.robust import estimate_homography, estimate_relative_pose
from keyglue.scoring.pairs import HomographyTruth, PoseTruth, Size, Truth

MATCH_THRESHOLDS = (1, 3, 5)
REPEATABILITY_THRESHOLDS = (1, 3)
AUC_THRESHOLDS = {"homography": (1, 3, 5, 10), "pose": (5, 10, 20)}
# Error in pixels below which a match counts as correct in the counts.
CORRECT_BELOW = {"homography": 3, "pose": 1}
RANSAC_THRESHOLDS = {"homography": 3.0, "pose": 1.0}
_LIBRARIES = {"opencv": "cv2", "poselib": "poselib"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What a method found on a pair, in the reference frame.

    Attributes:
        keypoints0: (M, 2) of image 0.
        keypoints1: (N, 2) of image 1.
        matches: (S, 2) indices into both.
        scores: (S,) matching scores, not negative.
    """

    keypoints0: Array
    keypoints1: Array
    matches: NDArray[np.int64]
    scores: Array

    @property
    def points0(self) -> Array:
        """(S, 2) matched points of image 0."""
        return self.keypoints0[self.matches[:, 0]]

    @property
    def points1(self) -> Array:
        """(S, 2) matched points of image 1."""
        return self.keypoints1[self.matches[:, 1]]


def robust_estimators() -> list[str]:
    """Return the libraries for robust estimation that are installed: "opencv", "poselib"."""
    return [name for name, module in _LIBRARIES.items() if importlib.util.find_spec(module) is not None]


def match_errors(found: Found, truth: Truth) -> Array:
    """Return the error (S,) of each match.

    For a homography the mean of the distances between a point and its partner mapped into its image, taken in both
    images; for a pose the mean of the distances to the epipolar lines in both images, without lens distortion.
    """
    if isinstance(truth, HomographyTruth):
        there = transfer_error(truth.H, found.points0, found.points1)
        back = transfer_error(np.linalg.inv(truth.H), found.points1, found.points0)
        return (there + back) / 2
    F = fundamental_from_pose(truth.R, truth.t, truth.camera0, truth.camera1)
    ideal0, ideal1 = _ideal(found.points0, truth.camera0), _ideal(found.points1, truth.camera1)
    return symmetric_epipolar_distance(F, ideal0, ideal1)


def measure_matches(found: Found, errors: Array) -> dict[str, Any]:
    """Count the matches and the right ones.

    Args:
        found: What was found.
        errors: (S,) as ``match_errors`` returns them.

    Returns:
        "keypoints" of both images, "matches", "precision@1px" and so on: the share of matches with a smaller error, 0
        where there are none; "correct@1px" and so on: their number.
    """
    measured: dict[str, Any] = {
        "keypoints": [len(found.keypoints0), len(found.keypoints1)],
        "matches": len(found.matches),
    }
    for threshold, share in zip(MATCH_THRESHOLDS, precision(errors, MATCH_THRESHOLDS), strict=True):
        measured[f"precision@{threshold}px"] = share
        measured[f"correct@{threshold}px"] = int((errors < threshold).sum())
    return measured


def measure_geometry(
    found: Found, truth: Truth, size0: Size, estimators: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """Estimate what relates the images from the matches, and compare it with the truth.

    Args:
        found: What was found.
        truth: Homography or pose.
        size0: Height and width of image 0.
        estimators: Libraries for the robust estimation.
        seed: Of the robust estimation.

    Returns:
        For each estimator "error_NAME", infinite where it finds nothing. For a homography mean corner error in pixels,
        the estimators being also "dlt", the direct linear transform on all matches weighted by their scores; for a pose
        the larger of the angles of rotation and of the direction of translation, in degrees, t and -t being the same.
    """
    if isinstance(truth, PoseTruth):
        return {f"error_{name}": _pose_error(found, truth, name, seed) for name in estimators}
    weighted = dlt_homography(found.points0, found.points1, found.scores)
    errors = {"error_dlt": corner_error(weighted, truth.H, size0)}
    for name in estimators:
        threshold = RANSAC_THRESHOLDS["homography"]
        estimate = estimate_homography(found.points0, found.points1, threshold=threshold, backend=name, seed=seed)
        errors[f"error_{name}"] = corner_error(estimate.matrix, truth.H, size0)
    return errors


def measure_keypoints(
    keypoints0: Array, keypoints1: Array, truth: HomographyTruth, size0: Size, size1: Size
) -> dict[str, Any]:
    """Measure repeatability and localisation error of a detector on a pair.

    DeTone et al., "SuperPoint", 2018. Only the keypoints count that both images see: those that the
    homography maps into the other image. Each is compared with the nearest keypoint of the other image, in that image.

    Args:
        keypoints0: (M, 2) of image 0.
        keypoints1: (N, 2) of image 1.
        truth: Homography.
        size0: Height and width of image 0.
        size1: Height and width of image 1.

    Returns:
        "visible" keypoints of both images; "repeatability@1px" and so on: the share of them, of both images together,
        whose nearest one is at most that far away, 0 where there are none; "localisation@1px" and so on: the mean
        distance of those, None where there are none.
    """
    back = np.linalg.inv(truth.H)
    mapped0, mapped1 = warp_points(truth.H, keypoints0), warp_points(back, keypoints1)
    seen0, seen1 = _inside(mapped0, size1), _inside(mapped1, size0)
    there = _nearest_distance(mapped0[seen0], keypoints1[seen1])
    return_way = _nearest_distance(mapped1[seen1], keypoints0[seen0])
    distances = np.concatenate([there, return_way])
    measured: dict[str, Any] = {"visible": [int(seen0.sum()), int(seen1.sum())]}
    for threshold in REPEATABILITY_THRESHOLDS:
        near = distances[distances <= threshold]
        measured[f"repeatability@{threshold}px"] = len(near) / len(distances) if len(distances) else 0.0
        measured[f"localisation@{threshold}px"] = float(near.mean()) if len(near) else None
    return measured


def _pose_error(found: Found, truth: PoseTruth, backend: str, seed: int) -> float:
    pose = estimate_relative_pose(
        found.points0,
        found.points1,
        truth.camera0,
        truth.camera1,
        threshold=RANSAC_THRESHOLDS["pose"],
        backend=backend,
        seed=seed,
    )
    if pose.R is None or pose.t is None:
        return float("inf")
    return max(pose_error(pose.R, pose.t, truth.R, truth.t, either_sign=True))


def _ideal(points: Array, camera: Camera) -> Array:
    """Return the pixels at which the same camera without distortion would see the points."""
    return camera.undistort(points) * (camera.fx, camera.fy) + (camera.cx, camera.cy)


def _inside(points: Array, size: Size) -> NDArray[np.bool_]:
    height, width = size
    return np.asarray(((points >= -0.5) & (points < (width - 0.5, height - 0.5))).all(axis=1))


def _nearest_distance(points: Array, others: Array) -> Array:
    """Return the distance (N,) of each point to the nearest of the others, infinite where there are none."""
    if not len(points) or not len(others):
        return np.full(len(points), np.inf)
    squared = (points**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2 * points @ others.T
    # The expanded square loses digits; it only says which one is nearest.
    return np.linalg.norm(points - others[squared.argmin(axis=1)], axis=1)
