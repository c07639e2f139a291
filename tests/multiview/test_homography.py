from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keyglue.base.errors import InputError
from keyglue.multiview.homography import corner_error, dlt_homography, transfer_error, warp_points

H = np.array([[1.1, 0.05, 20], [-0.08, 0.95, -10], [1e-4, -5e-5, 1]])


@pytest.fixture
def points():
    return np.random.default_rng(1).uniform(0, 640, (60, 2))


@pytest.mark.parametrize("count", [4, 5, 60])
def test_dlt_is_exact_without_noise(points, count):
    found = dlt_homography(points[:count], warp_points(H, points[:count]))
    assert np.abs(found - H).max() < 1e-8
    assert transfer_error(found, points, warp_points(H, points)).max() < 1e-8


@settings(deadline=None)
@given(arrays(float, (3, 3), elements=st.floats(-1, 1)), st.floats(0.01, 1000), st.floats(-5000, 5000))
def test_dlt_does_not_depend_on_units_or_origin(change, scale, shift):
    true = np.eye(3) + 0.2 * change
    true[2, :2] *= 1e-3
    square = np.array([[0, 0], [100, 0], [100, 100], [0, 100], [30, 60], [80, 20]], dtype=float)
    target = warp_points(true, square)
    assume(np.abs(np.linalg.det(true)) > 0.05)
    found = dlt_homography(square * scale + shift, target * scale - shift)
    assert found is not None
    assert transfer_error(found, square * scale + shift, target * scale - shift).max() < 1e-6 * max(1, scale)


def test_dlt_weights_rule_out_wrong_points(points):
    target = warp_points(H, points)
    target[:10] += 50
    weights = np.ones(60)
    weights[:10] = 0
    assert np.abs(dlt_homography(points, target, weights) - H).max() < 1e-8
    assert np.abs(dlt_homography(points, target) - H).max() > 1e-2
    # A weight of two is the same as the point given twice.
    noisy = target + np.random.default_rng(0).normal(0, 1, target.shape)
    doubled = dlt_homography(np.r_[points, points[:1]], np.r_[noisy, noisy[:1]])
    weighted = dlt_homography(points, noisy, np.r_[2.0, np.ones(59)])
    assert warp_points(weighted, points) == pytest.approx(warp_points(doubled, points), abs=0.2)


def test_dlt_agrees_with_opencv_on_noisy_points(points):
    cv2 = pytest.importorskip("cv2")
    target = warp_points(H, points) + np.random.default_rng(0).normal(0, 0.5, points.shape)
    expected = cv2.findHomography(points, target, 0)[0]
    found = dlt_homography(points, target)
    assert corner_error(found, expected, (640, 640)) < 0.1  # OpenCV goes on with the geometric error
    assert corner_error(found, H, (640, 640)) < 0.6


@pytest.mark.parametrize(
    "points0",
    [
        np.zeros((0, 2)),
        [[0, 0], [1, 0], [0, 1]],
        np.c_[np.arange(9.0), 2 * np.arange(9.0)],
        np.ones((9, 2)),
        [[0, 0], [1, 1], [2, 2], [5, 0]],
    ],
)
def test_dlt_of_degenerate_points_is_none(points0):
    points0 = np.asarray(points0, dtype=float)
    assert dlt_homography(points0, points0 + 3) is None
    assert dlt_homography(np.array([[0, 0], [9, 0], [9, 9], [0, 9.0]]), np.zeros((4, 2))) is None


def test_points_at_infinity_are_infinite_without_a_warning():
    H = np.array([[1, 0, 0], [0, 1, 0], [1, 0, -2.0]])
    warped = warp_points(H, [[2, 0], [0, 0], [3, 1]])
    assert np.isinf(warped[0]).all()
    assert warped[1:] == pytest.approx(np.array([[0, 0], [3, 1]]))
    assert transfer_error(H, [[2, 0]], [[1, 1]]) == [np.inf]


def test_corner_error_of_known_cases():
    assert corner_error(np.eye(3), np.eye(3), (480, 640)) == 0
    assert corner_error([[1, 0, 3], [0, 1, 4], [0, 0, 1]], np.eye(3), (480, 640)) == pytest.approx(5)
    # Doubling moves the corners of a 3 x 5 image, at (0, 0), (4, 0), (4, 2), (0, 2), by 0, 4, sqrt(20), 2.
    assert corner_error(np.diag([2.0, 2, 1]), np.eye(3), (3, 5)) == pytest.approx((0 + 4 + 20**0.5 + 2) / 4)
    assert corner_error(None, np.eye(3), (480, 640)) == np.inf


def test_wrong_shapes_are_refused(points):
    with pytest.raises(InputError, match="correspond"):
        dlt_homography(points, points[:-1])
    with pytest.raises(InputError, match="shape"):
        warp_points(np.eye(4), points)
    with pytest.raises(InputError, match="NaN"):
        warp_points(np.eye(3), points * np.nan)
    with pytest.raises(InputError, match="negative"):
        dlt_homography(points, points, -np.ones(60))
