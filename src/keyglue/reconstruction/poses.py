"""How far the poses of a model are from the truth, after the similarity that brings them closest together."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyglue.base.errors import InputError

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class PoseErrors:
    """Errors of the registered cameras against the truth.

    Attributes:
        names: The images that have both poses.
        rotations: (n,) angle between the orientations in degrees.
        centres: (n,) distance of the centres, as a share of ``extent``.
        extent: Largest distance of two true centres, in the unit of the truth.
        scale: By how much the model had to be enlarged.
    """

    names: list[str]
    rotations: Array
    centres: Array
    extent: float
    scale: float


def pose_errors(model: Any, truth: Mapping[str, tuple[Array, Array]]) -> PoseErrors:
    """Compare the poses of a model with the truth.

    Args:
        model: A pycolmap.Reconstruction.
        truth: R (3, 3) and t (3,) of each image, x_camera = R x_world + t.

    Raises:
        InputError: Fewer than three images have both poses.
    """
    poses = {image.name: image.cam_from_world().matrix() for image in model.images.values() if image.has_pose}
    names = sorted(set(poses) & set(truth))
    if len(names) < 3:
        raise InputError(f"comparing poses takes three images that have both; there are {len(names)}.")
    found = np.stack([-poses[name][:, :3].T @ poses[name][:, 3] for name in names])
    true = np.stack([-truth[name][0].T @ truth[name][1] for name in names])
    scale, turn, shift = similarity(found, true)
    moved = scale * found @ turn.T + shift
    extent = max(float(np.linalg.norm(first - second)) for first, second in itertools.combinations(true, 2))
    angles = [_angle(poses[name][:, :3] @ turn.T @ truth[name][0].T) for name in names]
    centres = np.linalg.norm(moved - true, axis=1) / extent
    return PoseErrors(names, np.array(angles), centres, extent, scale)


def similarity(source: Array, target: Array) -> tuple[float, Array, Array]:
    """Return scale s, rotation R (3, 3) and shift t (3,) with the least squares of s R x + t - y.

    Source: Umeyama, Least-squares estimation of transformation parameters between two point patterns, 1991.

    Args:
        source: (n, 3) points x.
        target: (n, 3) points y.
    """
    mean0, mean1 = source.mean(axis=0), target.mean(axis=0)
    first, second = source - mean0, target - mean1
    left, singular, right = np.linalg.svd(second.T @ first)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    turn = (left * signs) @ right
    scale = float((singular * signs).sum() / (first**2).sum())
    return scale, turn, mean1 - scale * turn @ mean0


def _angle(rotation: Array) -> float:
    """Return the angle of a rotation in degrees, exact for small ones too."""
    sine = np.linalg.norm(rotation - rotation.T) / np.sqrt(8)
    cosine = (np.trace(rotation) - 1) / 2
    return float(np.degrees(np.arctan2(sine, cosine)))
