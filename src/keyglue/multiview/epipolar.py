"""Two-view geometry: essential and fundamental matrices, distances to them, poses and triangulation.

A pose (R, t) maps coordinates of camera 0 to camera 1: X1 = R X0 + t. With x in homogeneous normalised image
coordinates x1^T E x0 = 0, E = [t]_x R; with pixels x1^T F x0 = 0, F = K1^-T E K0^-1. Pixels are meant without lens
distortion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyglue.multiview.arrays import Array, as_array, as_pairs, homogeneous
from keyglue.multiview.cameras import Camera, as_camera


def cross_matrix(t: Array) -> Array:
    """Return [t]_x, the (3, 3) matrix with [t]_x v = t x v."""
    x, y, z = t
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def essential_from_pose(R: Any, t: Any) -> Array:
    """Return the essential matrix [t]_x R of a pose: (3, 3)."""
    return cross_matrix(as_array(t, (3,), "t")) @ as_array(R, (3, 3), "R")


def fundamental_from_essential(E: Any, camera0: Any, camera1: Any) -> Array:
    """Return the fundamental matrix K1^-T E K0^-1, (3, 3), of length one.

    Args:
        E: (3, 3) essential matrix.
        camera0: Camera of image 0: a ``Camera``, a (3, 3) matrix or a mapping; distortion plays no part.
        camera1: Camera of image 1.
    """
    inverse0, inverse1 = (np.linalg.inv(as_camera(camera).matrix) for camera in (camera0, camera1))
    fundamental = inverse1.T @ as_array(E, (3, 3), "E") @ inverse0
    length = np.linalg.norm(fundamental)
    return fundamental / length if length > 0 else fundamental


def fundamental_from_pose(R: Any, t: Any, camera0: Any, camera1: Any) -> Array:
    """Return the fundamental matrix of a pose and two cameras, (3, 3), of length one."""
    return fundamental_from_essential(essential_from_pose(R, t), camera0, camera1)


def symmetric_epipolar_distance(F: Any, points0: Any, points1: Any) -> Array:
    """Return the mean of the distances of each point to the epipolar line of its partner, in both images.

    Args:
        F: (3, 3) fundamental matrix, or essential matrix for normalised coordinates.
        points0: (N, 2) points of image 0.
        points1: (N, 2) corresponding points of image 1.

    Returns:
        (N,) distances in the unit of the points; 0 at an epipole, where every line passes.
    """
    residual, lines0, lines1 = _epipolar(F, points0, points1)
    return (_divide(residual, np.linalg.norm(lines0, axis=1)) + _divide(residual, np.linalg.norm(lines1, axis=1))) / 2


def sampson_distance(F: Any, points0: Any, points1: Any) -> Array:
    """Return the first-order approximation of the distance to the nearest pair of points that fits exactly.

    Hartley and Zisserman, "Multiple View Geometry", equation 11.9 (its square root); arguments and result as for
    ``symmetric_epipolar_distance``.
    """
    residual, lines0, lines1 = _epipolar(F, points0, points1)
    return _divide(residual, np.sqrt((lines0**2).sum(axis=1) + (lines1**2).sum(axis=1)))


def pose_error(R0: Any, t0: Any, R1: Any, t1: Any, *, either_sign: bool = False) -> tuple[float, float]:
    """Compare two poses whose translations are known up to length.

    Args:
        R0: (3, 3) rotation.
        t0: (3,) translation of any length.
        R1: (3, 3) rotation to compare with.
        t1: (3,) translation to compare with.
        either_sign: Take t and -t as the same direction, as published evaluations of essential matrices do.

    Returns:
        Angle of the rotation between the two, and angle between the directions of translation, in degrees. The second
        is 0 where a translation has no length and thus no direction.
    """
    difference = np.linalg.norm(as_array(R0, (3, 3), "R0") - as_array(R1, (3, 3), "R1"))
    rotation = 2 * np.arcsin(min(1.0, difference / np.sqrt(8)))  # exact near 0, where arccos of the trace is not
    first, second = as_array(t0, (3,), "t0"), as_array(t1, (3,), "t1")
    direction = np.arctan2(np.linalg.norm(np.cross(first, second)), first @ second)
    if not first.any() or not second.any():
        direction = 0.0
    if either_sign:
        direction = min(direction, np.pi - direction)
    return float(np.degrees(rotation)), float(np.degrees(direction))


def triangulate(P0: Any, P1: Any, points0: Any, points1: Any) -> Array:
    """Find the points of space that two cameras see at given pixels, by the direct linear transform.

    Args:
        P0: (3, 4) projection matrix of image 0, K [R t] without distortion.
        P1: (3, 4) projection matrix of image 1.
        points0: (N, 2) pixels of image 0 (or normalised coordinates with P = [R t]).
        points1: (N, 2) corresponding pixels of image 1.

    Returns:
        (N, 3) points in the frame of the projection matrices; infinite where the rays are parallel.
    """
    first, second = as_pairs(points0, points1)
    views = ((as_array(P0, (3, 4), "P0"), first), (as_array(P1, (3, 4), "P1"), second))
    equations = np.stack([points[:, [i]] * P[2] - P[i] for P, points in views for i in (0, 1)], axis=1)
    # Rows of equal length weigh both images alike, whatever the scale of their matrices.
    equations /= np.linalg.norm(equations, axis=2, keepdims=True)
    solution = np.linalg.svd(equations)[2][:, 3]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        points = solution[:, :3] / solution[:, 3:]
    return np.where(np.isfinite(points), points, np.inf)


def in_front(R: Array, t: Array, ideal0: Array, ideal1: Array) -> NDArray[np.bool_]:
    """Tell which correspondences meet in front of both cameras.

    Args:
        R: (3, 3) rotation.
        t: (3,) translation.
        ideal0: (N, 2) normalised coordinates in image 0.
        ideal1: (N, 2) normalised coordinates in image 1.

    Returns:
        (N,) boolean.
    """
    # Depths d0, d1 minimise |d1 x1 - d0 R x0 - t|; only their signs matter, so the positive determinant drops out.
    ray0, ray1 = homogeneous(ideal0) @ R.T, homogeneous(ideal1)
    a, b, c = (ray0**2).sum(axis=1), (ray0 * ray1).sum(axis=1), (ray1**2).sum(axis=1)
    along0, along1 = ray0 @ t, ray1 @ t
    return (b * along1 - c * along0 > 0) & (a * along1 - b * along0 > 0)


def pose_from_essential(E: Any, ideal0: Array, ideal1: Array) -> tuple[Array, Array]:
    """Return the one of an essential matrix's four poses that puts the most points in front of both cameras.

    Args:
        E: (3, 3) essential matrix.
        ideal0: (N, 2) normalised coordinates in image 0.
        ideal1: (N, 2) normalised coordinates in image 1.

    Returns:
        Rotation (3, 3) and translation (3,) of length one.
    """
    left, _, right = np.linalg.svd(as_array(E, (3, 3), "E"))
    left, right = left * np.linalg.det(left), right * np.linalg.det(right)
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    poses = [(left @ W @ right, sign * left[:, 2]) for W in (turn, turn.T) for sign in (1, -1)]
    counts = [int(in_front(R, t, ideal0, ideal1).sum()) for R, t in poses]
    return poses[int(np.argmax(counts))]


def pose_inliers(
    R: Array, t: Array, points0: Array, points1: Array, camera0: Camera, camera1: Camera, threshold: float
) -> NDArray[np.bool_]:
    """Tell which correspondences fit a pose: Sampson distance below ``threshold``, in front of both cameras.

    Args:
        R: (3, 3) rotation.
        t: (3,) translation.
        points0: (N, 2) pixels of image 0 without distortion.
        points1: (N, 2) pixels of image 1 without distortion.
        camera0: Camera of image 0; its distortion plays no part.
        camera1: Camera of image 1.
        threshold: In pixels.

    Returns:
        (N,) boolean.
    """
    fundamental = fundamental_from_essential(essential_from_pose(R, t), camera0, camera1)
    near = sampson_distance(fundamental, points0, points1) < threshold
    return near & in_front(R, t, normalised(points0, camera0), normalised(points1, camera1))


def normalised(points: Array, camera: Camera) -> Array:
    """Return the normalised coordinates of pixels (N, 2) without distortion."""
    return (points - (camera.cx, camera.cy)) / (camera.fx, camera.fy)


def _epipolar(F: Any, points0: Any, points1: Any) -> tuple[Array, Array, Array]:
    """Return |x1^T F x0| (N,) and the normals (N, 2) of the epipolar lines in image 0 and 1."""
    matrix = as_array(F, (3, 3), "F")
    first, second = (homogeneous(points) for points in as_pairs(points0, points1))
    lines1 = first @ matrix.T
    residual = np.abs((lines1 * second).sum(axis=1))
    return residual, (second @ matrix)[:, :2], lines1[:, :2]


def _divide(residual: Array, length: Array) -> Array:
    return np.divide(residual, length, out=np.zeros_like(residual), where=length > 0)
