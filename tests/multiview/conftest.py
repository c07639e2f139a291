"""A planted pair of views: known cameras, pose and points, with noise and wrong matches on demand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from keyglue.multiview.cameras import Camera


def rotation(axis, degrees):
    axis = np.asarray(axis, dtype=float) / np.linalg.norm(axis)
    K = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K


@dataclasses.dataclass
class TwoViews:
    R: np.ndarray
    t: np.ndarray
    camera0: Camera
    camera1: Camera
    points3d: np.ndarray
    points0: np.ndarray
    points1: np.ndarray
    right: np.ndarray


def make_two_views(count=300, wrong=0, noise=0.0, distortion=(), seed=0, plane=False) -> TwoViews:
    rng = np.random.default_rng(seed)
    camera0 = Camera(fx=700, fy=720, cx=319.5, cy=239.5, distortion=distortion, width=640, height=480)
    camera1 = Camera(fx=650, fy=640, cx=330, cy=250, distortion=distortion, width=640, height=480)
    R, t = rotation((0.2, 1, 0.1), 12), np.array([-1.0, 0.1, 0.2])
    depth = np.full(count, 6.0) if plane else rng.uniform(4, 9, count)
    pixels = rng.uniform((20, 20), (620, 460), (count, 2))
    rays = camera0.undistort(pixels)
    points3d = np.c_[rays, np.ones(count)] * depth[:, None]
    points0 = camera0.project(points3d)
    points1 = camera1.project(points3d @ R.T + t)
    points0 = points0 + rng.normal(0, noise, points0.shape)
    points1 = points1 + rng.normal(0, noise, points1.shape)
    right = np.ones(count, dtype=bool)
    right[rng.permutation(count)[:wrong]] = False
    points1[~right] = rng.uniform((0, 0), (640, 480), (wrong, 2))
    return TwoViews(R, t, camera0, camera1, points3d, points0, points1, right)


@pytest.fixture
def two_views():
    """Factory of planted pairs."""
    return make_two_views


@pytest.fixture
def turn():
    """Rotation matrix about an axis by degrees."""
    return rotation
