from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyglue.base.errors import InputError
from keyglue.multiview.cameras import Camera, as_camera

DISTORTIONS = [(), (-0.28, 0.07), (0.1, -0.05, 1e-3, -2e-3), (-0.3, 0.12, 5e-4, 1e-3, -0.02), (0.4, 0.2)]


def camera_with(distortion):
    return Camera(fx=600, fy=580, cx=310.2, cy=245.7, distortion=distortion, width=640, height=480)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).uniform((0, 0), (640, 480), (500, 2))


@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_undistort_agrees_with_opencv(distortion, pixels):
    cv2 = pytest.importorskip("cv2")
    camera = camera_with(distortion)
    coefficients = np.array((*distortion, 0, 0, 0, 0, 0)[:5], dtype=float)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 500, 1e-15)
    expected = cv2.undistortPoints(pixels[:, None], camera.matrix, coefficients, criteria=criteria)[:, 0]
    assert np.abs(camera.undistort(pixels) - expected).max() < 1e-9


@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_project_agrees_with_opencv_and_inverts_undistort(distortion, pixels):
    cv2 = pytest.importorskip("cv2")
    camera = camera_with(distortion)
    points = np.c_[camera.undistort(pixels), np.ones(len(pixels))] * np.linspace(0.5, 20, len(pixels))[:, None]
    coefficients = np.array((*distortion, 0, 0, 0, 0, 0)[:5], dtype=float)
    expected = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera.matrix, coefficients)[0][:, 0]
    assert np.abs(camera.project(points) - expected).max() < 1e-9
    assert np.abs(camera.project(points) - pixels).max() < 1e-9


@settings(deadline=None)
@given(
    k1=st.floats(-0.3, 0.5),
    k2=st.floats(0, 0.2),
    p1=st.floats(-0.005, 0.005),
    p2=st.floats(-0.005, 0.005),
    x=st.floats(-0.6, 0.6),
    y=st.floats(-0.6, 0.6),
)
def test_undistort_inverts_project_for_any_moderate_lens(k1, k2, p1, p2, x, y):
    camera = camera_with((k1, k2, p1, p2))
    assert np.abs(camera.undistort(camera.project([[x, y, 1]])) - (x, y)).max() < 1e-9


def test_undistort_of_a_pixel_that_no_ray_reaches_stays_near_the_fold():
    # x (1 - 0.3 x^2) grows up to x = 1.054, where it is 0.703: nothing projects to 0.9.
    camera = Camera(fx=1, fy=1, cx=0, cy=0, distortion=(-0.3, 0))
    assert camera.undistort([[0.9, 0]])[0] == pytest.approx((1.054, 0), abs=0.01)
    assert camera.undistort([[0.7, 0]])[0] == pytest.approx((1, 0))  # the near one of two solutions


def test_points_behind_the_camera_project_to_nan_and_no_points_to_no_points():
    camera = camera_with((0.1, 0.0))
    assert np.isnan(camera.project([[0, 0, -1], [0, 0, 0]])).all()
    assert camera.project(np.zeros((0, 3))).shape == camera.undistort(np.zeros((0, 2))).shape == (0, 2)


def test_scaled_keeps_viewing_rays():
    camera = camera_with((-0.2, 0.05))
    half = camera.scaled((240, 320))
    assert (half.width, half.height, half.fx, half.fy) == (320, 240, 300, 290)
    ray = [[0.3, -0.2, 1]]
    assert half.project(ray) == pytest.approx((camera.project(ray) + 0.5) / 2 - 0.5)
    back = half.scaled((480, 640))
    assert (back.cx, back.cy, back.fx) == pytest.approx((camera.cx, camera.cy, camera.fx))
    with pytest.raises(InputError, match="width and height"):
        Camera.from_matrix(camera.matrix).scaled((10, 10))


def test_field_of_view_spans_the_outer_edges():
    camera = Camera.from_field_of_view((480, 640), 60)
    edges = camera.undistort([[-0.5, 239.5], [639.5, 239.5]])
    assert np.degrees(np.arctan(edges[:, 0])) == pytest.approx([-30, 30])
    assert camera.size == (480, 640)
    with pytest.raises(InputError, match="180"):
        Camera.from_field_of_view((480, 640), 180)


def test_as_camera_takes_what_people_have(shared_data):
    camera = camera_with(())
    assert as_camera(camera) is camera
    assert as_camera(camera.matrix.tolist()).fx == 600
    assert as_camera({"K": camera.matrix, "dist": np.array([[0.1, 0.2, 0, 0, 0.3]])}).distortion == (
        0.1,
        0.2,
        0,
        0,
        0.3,
    )
    frame = json.loads((shared_data / "eval/strecha/fountain-P11/scene.json").read_text())["frames"][0]
    found = as_camera(frame)
    assert (found.size, found.fx, found.cx, found.distortion) == ((1024, 1536), 1379.74, 760.345, ())


@pytest.mark.parametrize(
    ("given_camera", "message"),
    [
        (np.eye(4), "shape"),
        (np.zeros((3, 3)), "third row"),
        (np.diag([-1.0, 1, 1]), "positive"),
        (np.diag([np.nan, 1, 1]), "NaN"),
        ([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]], "skew"),
        ({"R": 3}, "'K'"),
        ({"K": np.eye(3), "dist": [1, 2, 3]}, "3 values"),
        ({"K": np.eye(3), "w": 0, "h": 5}, "positive whole"),
        ("camera", "array of numbers"),
        (None, "camera"),
    ],
)
def test_impossible_cameras_are_refused(given_camera, message):
    with pytest.raises(InputError, match=message):
        as_camera(given_camera)
