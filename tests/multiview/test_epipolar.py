from __future__ import annotations

import numpy as np
import pytest

from keyglue.multiview.epipolar import (
    essential_from_pose,
    fundamental_from_essential,
    fundamental_from_pose,
    in_front,
    pose_error,
    pose_from_essential,
    sampson_distance,
    symmetric_epipolar_distance,
    triangulate,
)

RECTIFIED = np.array([[0, 0, 0], [0, 0, -1.0], [0, 1, 0]])  # pure sideways motion: epipolar lines are rows


def test_true_matches_lie_on_their_epipolar_lines(two_views):
    views = two_views()
    ideal0, ideal1 = views.camera0.undistort(views.points0), views.camera1.undistort(views.points1)
    E = essential_from_pose(views.R, views.t)
    F = fundamental_from_pose(views.R, views.t, views.camera0, views.camera1)
    assert sampson_distance(E, ideal0, ideal1).max() < 1e-12
    assert sampson_distance(F, views.points0, views.points1).max() < 1e-9
    assert np.linalg.norm(F) == pytest.approx(1)
    assert np.linalg.svd(F, compute_uv=False)[2] < 1e-12
    same = fundamental_from_essential(E, views.camera0.matrix, views.camera1.matrix)
    assert np.array_equal(F, same)


def test_distances_of_a_rectified_pair_are_row_differences():
    points0, points1 = np.array([[10.0, 5], [0, 0]]), np.array([[70.0, 8], [3, 0]])
    assert symmetric_epipolar_distance(RECTIFIED, points0, points1) == pytest.approx([3, 0])
    # The nearest exact pair moves each point by half the difference: 3 / sqrt(2) in the four coordinates together.
    assert sampson_distance(RECTIFIED, points0, points1) == pytest.approx([3 / 2**0.5, 0])


def test_distances_do_not_depend_on_the_matrix_scale_and_swap_with_the_images(two_views):
    views = two_views(noise=2)
    F = fundamental_from_pose(views.R, views.t, views.camera0, views.camera1)
    for distance in (symmetric_epipolar_distance, sampson_distance):
        found = distance(F, views.points0, views.points1)
        assert 0.5 < np.median(found) < 3
        assert distance(-37 * F, views.points0, views.points1) == pytest.approx(found)
        assert distance(F.T, views.points1, views.points0) == pytest.approx(found)


def test_distance_at_an_epipole_is_zero_without_a_warning():
    F = np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, 0]])  # forward motion: both epipoles at (0, 0)
    assert symmetric_epipolar_distance(F, [[0, 0]], [[0, 0]]) == [0]
    assert sampson_distance(F, [[0, 0]], [[0, 0]]) == [0]


def test_pose_error_of_known_angles(turn):
    R, t = turn((1, 2, 3), 40), np.array([1.0, 2, 2])
    assert pose_error(R, t, R, 5 * t) == pytest.approx((0, 0), abs=1e-9)
    for degrees in (1e-4, 0.5, 90, 179):
        found = pose_error(R, t, turn((3, -1, 0), degrees) @ R, t)[0]
        assert found == pytest.approx(degrees, rel=1e-6)
    assert pose_error(R, (1, 0, 0), R, (0, 2, 0))[1] == pytest.approx(90)
    assert pose_error(R, t, R, -t)[1] == pytest.approx(180)
    assert pose_error(R, t, R, -t, either_sign=True)[1] == pytest.approx(0)
    assert pose_error(R, t, R, (0, 0, 0))[1] == 0


def test_triangulation_finds_the_points(two_views):
    views = two_views()
    P0 = views.camera0.matrix @ np.eye(3, 4)
    P1 = views.camera1.matrix @ np.c_[views.R, views.t]
    assert np.abs(triangulate(P0, P1, views.points0, views.points1) - views.points3d).max() < 1e-7
    noisy = two_views(noise=0.5)
    depth = triangulate(P0, P1, noisy.points0, noisy.points1)[:, 2]
    assert np.median(np.abs(depth - noisy.points3d[:, 2])) < 0.1
    cv2 = pytest.importorskip("cv2")
    expected = cv2.triangulatePoints(P0, P1, noisy.points0.T, noisy.points1.T)
    assert np.median(np.abs(expected[2] / expected[3] - depth)) < 1e-2


def test_parallel_rays_triangulate_to_infinity():
    shifted = np.c_[np.eye(3), [1, 0, 0]]
    assert np.isinf(triangulate(np.eye(3, 4), shifted, [[0, 0]], [[0, 0]])).any()
    assert triangulate(np.eye(3, 4), shifted, np.zeros((0, 2)), np.zeros((0, 2))).shape == (0, 3)


def test_pose_comes_back_from_the_essential_matrix(two_views):
    views = two_views()
    ideal0, ideal1 = views.camera0.undistort(views.points0), views.camera1.undistort(views.points1)
    for factor in (1, -3):
        R, t = pose_from_essential(factor * essential_from_pose(views.R, views.t), ideal0, ideal1)
        assert pose_error(R, t, views.R, views.t) == pytest.approx((0, 0), abs=1e-6)
        assert np.linalg.det(R) == pytest.approx(1)
        assert in_front(R, t, ideal0, ideal1).all()
        assert not in_front(R, -t, ideal0, ideal1).any()
