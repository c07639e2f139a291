"""Estimates fitted to all that agrees with them: nearer to what was planted, and left alone where little agrees."""

from __future__ import annotations

import numpy as np
import pytest

from keyglue.multiview import backends, robust
from keyglue.multiview.epipolar import (
    essential_from_pose,
    fundamental_from_pose,
    pose_error,
    sampson_distance,
    symmetric_epipolar_distance,
)
from keyglue.multiview.homography import corner_error, transfer_error, warp_points
from keyglue.multiview.polish import polish_fundamental, polish_homography, polish_pose

H = np.array([[1.1, 0.05, 20], [-0.08, 0.95, -10], [1e-4, -5e-5, 1]])
THRESHOLD = 3.0


def _plane(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points of a plane with errors as a detector makes them: some small, some large, a third anywhere."""
    rng = np.random.default_rng(seed)
    points0 = rng.uniform((0, 0), (640, 480), (300, 2))
    errors = rng.standard_t(2, (300, 2)) * 0.4
    points1 = warp_points(H, points0) + errors
    points1[200:] = rng.uniform((0, 0), (640, 480), (100, 2))
    return points0, points1


def _rough(seed: int) -> np.ndarray:
    """Return a homography that maps the corners a pixel or two off."""
    shifts = np.random.default_rng(seed).uniform(-2, 2, (4, 2))
    corners = np.array([[0.0, 0], [639, 0], [639, 479], [0, 479]])
    found = robust.dlt_homography(corners, warp_points(H, corners) + shifts)
    assert found is not None
    return found


def test_a_homography_comes_closer_to_the_planted_one() -> None:
    before, after = [], []
    for seed in range(20):
        points0, points1 = _plane(seed)
        rough = _rough(seed)
        polished = polish_homography(rough, points0, points1, THRESHOLD)
        before.append(corner_error(rough, H, (480, 640)))
        after.append(corner_error(polished, H, (480, 640)))
    assert max(after) < 0.5
    assert np.mean(after) < 0.25 * np.mean(before)


def test_least_squares_of_the_inliers_is_farther_from_the_planted_homography() -> None:
    """Large errors below the threshold count less."""
    cauchy, squares = [], []
    for seed in range(40):
        points0, points1 = _plane(seed)
        near = transfer_error(H, points0, points1) < THRESHOLD
        fitted = robust.dlt_homography(points0[near], points1[near])
        squares.append(corner_error(fitted, H, (480, 640)))
        cauchy.append(corner_error(polish_homography(H, points0, points1, THRESHOLD), H, (480, 640)))
    assert np.mean(cauchy) < 0.9 * np.mean(squares)


def test_a_fundamental_matrix_and_a_pose_come_closer_to_the_planted_ones(two_views, turn) -> None:
    matrices, rotations, directions = [], [], []
    for seed in range(10):
        views = two_views(count=300, wrong=80, noise=0.3, seed=seed)
        clean = two_views(count=300, seed=seed)
        R, t = turn((1, 0.5, -0.3), 0.2) @ views.R, views.t / np.linalg.norm(views.t) + (0.0, 0.02, -0.01)
        t = t / np.linalg.norm(t)
        rough = fundamental_from_pose(R, t, views.camera0, views.camera1)
        polished = polish_fundamental(rough, views.points0, views.points1, THRESHOLD)
        assert np.linalg.svd(polished, compute_uv=False)[2] < 1e-9 * np.linalg.norm(polished)
        matrices.append(
            [np.median(symmetric_epipolar_distance(F, clean.points0, clean.points1)) for F in (rough, polished)]
        )
        cameras = views.camera0, views.camera1
        pose = polish_pose(R, t, views.points0, views.points1, *cameras, THRESHOLD)
        assert np.allclose(pose[0] @ pose[0].T, np.eye(3), atol=1e-12)
        assert np.linalg.norm(pose[1]) == pytest.approx(1)
        errors = [pose_error(*each, views.R, views.t) for each in ((R, t), pose)]
        rotations.append([rotation for rotation, _ in errors])
        directions.append([direction for _, direction in errors])
    for before, after in (np.mean(each, axis=0) for each in (matrices, rotations, directions)):
        assert after < 0.4 * before


def test_what_is_exact_stays_exact(two_views) -> None:
    points0 = np.random.default_rng(0).uniform((0, 0), (640, 480), (50, 2))
    polished = polish_homography(H, points0, warp_points(H, points0), THRESHOLD)
    assert corner_error(polished, H, (480, 640)) < 1e-6
    views = two_views(count=50)
    t = views.t / np.linalg.norm(views.t)
    R, direction = polish_pose(views.R, t, views.points0, views.points1, views.camera0, views.camera1, THRESHOLD)
    assert max(pose_error(R, direction, views.R, views.t)) < 1e-5
    F = fundamental_from_pose(views.R, t, views.camera0, views.camera1)
    F = polish_fundamental(F, views.points0, views.points1, THRESHOLD)
    assert sampson_distance(F, views.points0, views.points1).max() < 1e-6


def test_where_little_agrees_the_estimate_stays() -> None:
    points0, points1 = _plane(0)
    some = np.r_[:6, 200:300]
    near = transfer_error(H, points0[some], points1[some]) < THRESHOLD
    assert 4 <= near.sum() < 16
    kept = polish_homography(H, points0[some], points1[some], THRESHOLD)
    assert kept == pytest.approx(H, abs=1e-9)
    same = np.zeros((20, 2))
    assert polish_homography(H, same, same, THRESHOLD) is H
    assert polish_fundamental(np.zeros((3, 3)), points0, points1, THRESHOLD).tolist() == np.zeros((3, 3)).tolist()


def test_points_that_go_to_infinity_do_no_harm() -> None:
    horizon = np.array([[1.0, 0, 0], [0, 1, 0], [-1 / 320, 0, 1]])  # x = 320 is at infinity
    points0 = np.random.default_rng(0).uniform((0, 0), (300, 480), (60, 2))
    points1 = warp_points(horizon, points0) + np.random.default_rng(1).normal(0, 0.2, (60, 2))
    points0, points1 = np.r_[points0, [[320.0, 100.0]]], np.r_[points1, [[5.0, 5.0]]]
    polished = polish_homography(horizon, points0, points1, THRESHOLD)
    assert np.isfinite(polished).all()
    assert np.median(transfer_error(polished, points0, points1)) < 0.5


def test_what_opencv_finds_is_polished(two_views, monkeypatch) -> None:
    pytest.importorskip("cv2")
    errors: dict[str, list[float]] = {}
    for name in ("polished", "plain"):
        if name == "plain":
            monkeypatch.setattr(backends, "polish_homography", lambda matrix, *_: matrix)
        for seed in range(40):
            found = robust.estimate_homography(*_plane(seed), backend="opencv", seed=seed)
            errors.setdefault(name, []).append(corner_error(found.matrix, H, (480, 640)))
    assert np.mean(errors["polished"]) < 0.75 * np.mean(errors["plain"])
    views = two_views(count=100, noise=0.2)
    cameras = views.camera0, views.camera1
    pose = robust.estimate_relative_pose(views.points0, views.points1, *cameras, backend="opencv")
    again = polish_pose(pose.R, pose.t, views.points0, views.points1, *cameras, 1.0)
    assert essential_from_pose(*again) == pytest.approx(pose.E, abs=2e-3), "there is nothing left to gain"
