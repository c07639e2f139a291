"""True matches against planted geometry: homographies, depth and pose, disparity, tracks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.base.types import Features
from keyglue.matching.lightglue.loss import check_labels
from keyglue.training.geometry import disparity_of_right, epipolar_distances, fundamental_matrix
from keyglue.training.homographies import warp
from keyglue.training.labels import (
    labels_from_depth,
    labels_from_disparity,
    labels_from_homography,
    labels_from_tracks,
)

SIZE = (240, 320)
IGNORE = -100


def _features(points: Tensor, size: tuple[int, int] = SIZE) -> Features:
    return Features(keypoints=points, descriptors=torch.zeros(len(points), 4), image_size=size)


def _grid(step: int = 20, margin: int = 40) -> Tensor:
    """Points so far apart that none is near two of the other image."""
    y, x = torch.meshgrid(
        torch.arange(margin, SIZE[0] - margin, step), torch.arange(margin, SIZE[1] - margin, step), indexing="ij"
    )
    return torch.stack([x, y], dim=-1).reshape(-1, 2).double()


H = torch.tensor([[1.05, 0.1, -8.0], [-0.06, 0.97, 12.0], [1e-4, -5e-5, 1.0]], dtype=torch.float64)


def test_planted_matches_of_a_homography_are_found() -> None:
    points0 = _grid()
    order = torch.randperm(len(points0), generator=torch.Generator().manual_seed(0))
    points1 = warp(H, points0)[order] + 0.5
    labels0, labels1 = labels_from_homography(_features(points0), _features(points1), H)
    assert torch.equal(labels1, order)
    assert torch.equal(labels0[order], torch.arange(len(order)))
    check_labels(labels0, labels1)


def test_what_has_no_counterpart_is_unmatchable_and_what_is_unsure_is_ignored() -> None:
    points0 = torch.tensor([[50.0, 50.0], [100.0, 100.0], [150.0, 60.0], [200.0, 150.0]], dtype=torch.float64)
    there = warp(H, points0)
    # exact; 4 px off; not there; shifted out of everything's reach
    points1 = torch.stack([there[0], there[1] + torch.tensor([4.0, 0.0]), there[3] + 40])
    labels0, labels1 = labels_from_homography(_features(points0), _features(points1), H, positive=3, negative=6)
    assert labels0.tolist() == [0, IGNORE, -1, -1]
    assert labels1.tolist() == [0, IGNORE, -1]
    labels0, labels1 = labels_from_homography(_features(points0), _features(points1), H)
    assert labels0.tolist() == [0, -1, -1, -1]


def test_of_two_near_points_the_nearer_one_matches() -> None:
    points0 = torch.tensor([[50.0, 50.0]], dtype=torch.float64)
    points1 = torch.tensor([[52.0, 50.0], [51.0, 50.0]], dtype=torch.float64)
    labels0, labels1 = labels_from_homography(_features(points0), _features(points1), torch.eye(3))
    assert labels0.tolist() == [1]
    assert labels1.tolist() == [IGNORE, 0]


def test_distances_count_in_both_images() -> None:
    """Shrunk fourfold, 2 px in the small image are 8 in the large one."""
    shrink = torch.diag(torch.tensor([0.25, 0.25, 1.0], dtype=torch.float64))
    points0 = torch.tensor([[100.0, 100.0]], dtype=torch.float64)
    points1 = torch.tensor([[27.0, 25.0]], dtype=torch.float64)
    labels0, labels1 = labels_from_homography(_features(points0), _features(points1), shrink)
    assert labels0.tolist() == [IGNORE]
    assert labels1.tolist() == [-1]


def test_images_without_keypoints_have_labels_without_entries() -> None:
    labels0, labels1 = labels_from_homography(_features(_grid()), _features(torch.zeros(0, 2)), H)
    assert (labels0 == -1).all()
    assert labels1.shape == (0,)


def test_wrong_arguments_are_told() -> None:
    one = _features(_grid())
    with pytest.raises(InputError, match="finite"):
        labels_from_homography(one, one, torch.full((3, 3), torch.nan))
    with pytest.raises(InputError, match="positive <= negative"):
        labels_from_homography(one, one, H, positive=5, negative=3)
    with pytest.raises(InputError, match="depth0"):
        labels_from_depth(one, one, torch.ones(3, 3), torch.ones(SIZE), K, K, torch.eye(3), torch.zeros(3))
    distorted = {"K": K.numpy(), "dist": [0.1, 0.0]}
    with pytest.raises(InputError, match="distortion"):
        labels_from_depth(one, one, torch.ones(SIZE), torch.ones(SIZE), distorted, K, torch.eye(3), torch.zeros(3))


K = torch.tensor([[300.0, 0, 159.5], [0, 310.0, 119.5], [0, 0, 1]], dtype=torch.float64)
ANGLE = math.radians(8)
R = torch.tensor(
    [[math.cos(ANGLE), 0, math.sin(ANGLE)], [0, 1, 0], [-math.sin(ANGLE), 0, math.cos(ANGLE)]], dtype=torch.float64
)
T = torch.tensor([-0.35, 0.05, 0.02], dtype=torch.float64)


def _rays(points: Tensor) -> Tensor:
    return torch.cat([points, torch.ones_like(points[:, :1])], dim=1) @ torch.linalg.inv(K).mT


def _pixels() -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).double()


def _planted_scene() -> tuple[Tensor, Tensor, Tensor]:
    """A slanted wall; its depth in both images, and the homography that it induces."""
    normal, distance = torch.tensor([0.2, 0.1, 1.0], dtype=torch.float64), 3.0
    depth0 = (distance / (_rays(_pixels()) @ normal)).reshape(SIZE)
    # n . X0 = d with X1 = R X0 + t: (R n) . X1 = d + (R n) . t
    turned = R @ normal
    depth1 = ((distance + turned @ T) / (_rays(_pixels()) @ turned)).reshape(SIZE)
    induced = K @ (R + T[:, None] @ normal[None, :] / distance) @ torch.linalg.inv(K)
    return depth0, depth1, induced


def test_depth_and_pose_of_a_plane_label_as_its_homography_does() -> None:
    depth0, depth1, induced = _planted_scene()
    generator = torch.Generator().manual_seed(0)
    points0 = torch.rand(150, 2, generator=generator, dtype=torch.float64) * 200 + 30
    points1 = warp(induced, points0)[torch.randperm(150, generator=generator)[:120]]
    points1 = points1 + torch.randn(points1.shape, generator=generator, dtype=torch.float64)
    inside = ((points1 > 0) & (points1 < torch.tensor([319.0, 239.0]))).all(dim=1)
    pair = _features(points0), _features(points1[inside])
    expected = labels_from_homography(*pair, induced, negative=5)
    found = labels_from_depth(*pair, depth0, depth1, K, K, R, T)
    assert (expected[0] >= 0).sum() > 40
    for one, other in zip(found, expected, strict=True):
        # Depth is read at whole pixels, so at the limits of 3 and 5 px the two may differ.
        assert (one == other).float().mean() > 0.97


def test_hidden_points_have_no_match() -> None:
    depth0, depth1, induced = _planted_scene()
    point = torch.tensor([[120.0, 100.0]], dtype=torch.float64)
    pair = _features(point), _features(warp(induced, point))
    assert labels_from_depth(*pair, depth0, depth1, K, K, R, T)[0].tolist() == [0]
    # Something stands in front of the wall in image 1.
    labels0, labels1 = labels_from_depth(*pair, depth0, depth1 * 0.7, K, K, R, T)
    assert labels0.tolist() == [-1]
    assert labels1.tolist() != [0]


def test_points_without_depth_are_judged_by_the_epipolar_line() -> None:
    depth0, depth1, induced = _planted_scene()
    points0 = torch.tensor([[120.0, 100.0], [120.0, 180.0]], dtype=torch.float64)
    points1 = warp(induced, points0[:1])
    depth0 = torch.zeros_like(depth0)
    lines = epipolar_distances(points0, points1, fundamental_matrix(K, K, R, T))
    assert lines[0, 0] < 1e-6
    assert lines[1, 0] > 5
    labels0, _ = labels_from_depth(_features(points0), _features(points1), depth0, depth1, K, K, R, T)
    assert labels0.tolist() == [IGNORE, -1]


def test_labels_of_exchanged_images_are_exchanged() -> None:
    depth0, depth1, induced = _planted_scene()
    points0 = _grid()
    points1 = warp(induced, points0) + 1.0
    pair = _features(points0), _features(points1.clamp(0, 239))
    found = labels_from_depth(*pair, depth0, depth1, K, K, R, T)
    other = labels_from_depth(pair[1], pair[0], depth1, depth0, K, K, R.mT, -R.mT @ T)
    assert torch.equal(found[0], other[1])
    assert torch.equal(found[1], other[0])


@pytest.fixture(scope="module")
def disparity(assets: Path) -> Tensor:
    return torch.from_numpy(np.load(assets / "motorcycle_disparity.npz")["disparity"])


def test_disparity_of_the_right_image_leads_back_to_the_left(disparity: Tensor) -> None:
    right = disparity_of_right(disparity)
    known = torch.isfinite(right)
    assert known.float().mean() > 0.7
    y, x = known.nonzero().unbind(1)
    back = (x + right[y, x]).round().long()
    keep = back < disparity.shape[1]
    left = disparity[y[keep], back[keep]]
    near = (left - right[y, x][keep]).abs() < 1.5
    assert near[torch.isfinite(left)].float().mean() > 0.98


def test_planted_points_of_the_stereo_pair_are_matched(disparity: Tensor) -> None:
    size = (disparity.shape[0], disparity.shape[1])
    y, x = torch.meshgrid(torch.arange(30, size[0] - 30, 25), torch.arange(80, size[1] - 20, 25), indexing="ij")
    points0 = torch.stack([x, y], dim=-1).reshape(-1, 2)
    d = disparity[points0[:, 1], points0[:, 0]]
    known = torch.isfinite(d)
    points1 = points0.double()
    points1[:, 0] -= torch.where(known, d, 500.0)
    features0, features1 = _features(points0.double(), size), _features(points1, size)
    labels0, labels1 = labels_from_disparity(features0, features1, disparity)
    check_labels(labels0, labels1)
    own = torch.arange(len(points0))
    # Some are hidden behind what is nearer to the right camera.
    assert (labels0[known] == own[known]).float().mean() > 0.85
    assert ((labels0[known] == own[known]) | (labels0[known] < 0)).float().mean() > 0.98
    assert (labels0[~known] < 0).all()


def test_tracks_match_what_is_nearest_to_the_same_point() -> None:
    depth0, _, induced = _planted_scene()
    del depth0
    tracks0 = _grid(40)
    tracks1 = warp(induced, tracks0)
    F = fundamental_matrix(K, K, R, T)
    # Keypoints near the first five points of the model, one near none of them, one that no epipolar line reaches.
    points0 = torch.cat([tracks0[:5] + 0.7, torch.tensor([[150.0, 110.0]], dtype=torch.float64)])
    points1 = torch.cat([tracks1[:5] - 0.7, torch.tensor([[160.0, 500.0]], dtype=torch.float64)])
    labels0, labels1 = labels_from_tracks(_features(points0), _features(points1), tracks0, tracks1, F)
    assert labels0[:5].tolist() == [0, 1, 2, 3, 4]
    assert labels1.tolist() == [0, 1, 2, 3, 4, -1]
    assert labels0[5] < 0
    far, _ = labels_from_tracks(_features(points0 + 4), _features(points1), tracks0, tracks1, F)
    assert (far < 0).all()
    with pytest.raises(InputError, match="points0"):
        labels_from_tracks(_features(points0), _features(points1), tracks0, tracks1[:3], F)
