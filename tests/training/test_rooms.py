"""Rooms made up at random: what is seen of a known one, and that depth, poses and pixels agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from keyglue.base.errors import InputError
from keyglue.images.coordinates import pixel_grid
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.lightglue.loss import check_labels
from keyglue.matching.nearest_neighbor import match_nearest
from keyglue.training.geometry import project_by_depth
from keyglue.training.photometric import PhotometricSettings
from keyglue.training.photos import Photos, load_photos
from keyglue.training.rooms import Rectangles, RoomSettings, random_room, render
from keyglue.training.sources import RoomSource, describe

SIZE = (96, 128)
SETTINGS = RoomSettings()


@pytest.fixture(scope="module")
def photos(assets: Path) -> Photos:
    return load_photos([assets / name for name in ("chelsea.png", "coffee.png", "astronaut.png")], long_side=320)


def _facing(photos: Photos, depths: list[float], extents: list[float]) -> Rectangles:
    """Photographs before the camera, one of their pixels to one of the view's, nearer ones smaller."""
    count = len(depths)
    z = torch.tensor(depths, dtype=torch.float64)
    origin = torch.stack([torch.zeros(count).double(), torch.zeros(count).double(), z], dim=1)
    step = torch.eye(3, dtype=torch.float64)[None] * (z / 100)[:, None, None]
    extent = torch.tensor(extents, dtype=torch.float64)[:, None].expand(-1, 2)
    return Rectangles(origin, step[:, 0], step[:, 1], extent, list(range(count)))


def test_a_photograph_that_faces_the_camera_is_seen_as_it_is(photos: Photos) -> None:
    K = torch.tensor([[[100.0, 0, 0], [0, 100, 0], [0, 0, 1]]], dtype=torch.float64)
    R, t = torch.eye(3, dtype=torch.float64)[None], torch.zeros(1, 3, dtype=torch.float64)
    images, depths = render(photos, _facing(photos, [2.0, 1.0], [90.0, 40.0]), K, R, t, SIZE, sky=0.25)
    behind, before = (photos.pyramids[number][0].float() / 255 for number in (0, 1))
    torch.testing.assert_close(images[0, 0, 41:90, :90], behind[41:90, :90], rtol=0, atol=2e-3)
    torch.testing.assert_close(images[0, 0, :40, :40], before[:40, :40], rtol=0, atol=2e-3)
    assert (images[0, 0, 91:] == 0.25).all()
    torch.testing.assert_close(depths[0, 41:90, :90], torch.full((49, 90), 2.0))
    torch.testing.assert_close(depths[0, :40, :40], torch.ones(40, 40))
    assert (depths[0, 91:] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_pixels_of_two_views_agree_where_depth_and_poses_take_them(photos: Photos, seed: int) -> None:
    room = random_room(photos, 3, SIZE, SETTINGS, torch.Generator().manual_seed(seed))
    again = random_room(photos, 3, SIZE, SETTINGS, torch.Generator().manual_seed(seed))
    assert torch.equal(room.images, again.images)
    assert torch.equal(room.t, again.t)
    assert 0 <= room.images.min() <= room.images.max() <= 1
    assert room.images.std() > 0.05
    compared = 0
    grid = pixel_grid(SIZE, torch.device("cpu")).double()
    blurred = F.avg_pool2d(room.images, 5, 1, 2)
    for first, second in ((0, 1), (1, 2), (2, 0)):
        R, t = room.motion(first, second)
        torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=torch.float64))
        mapped, known = project_by_depth(grid, room.depths[first], room.depths[second], *room.K[[first, second]], R, t)
        normalised = (2 * mapped + 1) / torch.tensor([SIZE[1], SIZE[0]]) - 1
        usable = known & (normalised.abs() < 0.95).all(dim=1)
        if room.overlap(first, second) < 0.1 or usable.sum() < 200:
            continue
        seen = F.grid_sample(blurred[second : second + 1], normalised[usable].float()[None, None], align_corners=False)
        expected = blurred[first].flatten()[usable]
        error = (seen[0, 0, 0] - expected).abs()
        shuffled = (seen[0, 0, 0].flip(0) - expected).abs()
        assert error.median() < 0.03
        assert error.mean() < 0.5 * shuffled.mean()
        compared += 1
    assert compared


def test_matches_of_rooms_are_labelled_and_descriptors_find_them(photos: Photos) -> None:
    detector = SuperPointForKeypointDetection.from_pretrained("keyglue-small", max_keypoints=200)
    source = RoomSource(photos, (160, 208), SETTINGS)
    right = labelled = 0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        plan = source.draw(3, generator)
        assert plan.images.shape == (3, 1, 160, 208)
        group = describe(plan, detector, PhotometricSettings(changed=0), generator)
        for number in range(len(plan.pairs)):
            features0, features1, labels = group.labelled(number, 512)
            check_labels(*labels)
            nearest = match_nearest(features0.descriptors, features1.descriptors).matches0
            true = labels[0] >= 0
            labelled += int(true.sum())
            right += int((nearest[true] == labels[0][true]).sum())
    assert labelled > 100
    assert right > 0.5 * labelled


def test_settings_under_which_no_two_views_see_the_same_end_with_an_error(photos: Photos) -> None:
    generator = torch.Generator().manual_seed(0)
    narrow = RoomSource(photos, (24, 32), RoomSettings(field_of_view=(0.01, 0.01)))
    with pytest.raises(InputError, match=r"no two of 2 views see the same things\. Let the cameras stand closer"):
        narrow.draw(2, generator)
    with pytest.raises(InputError, match="two views at the least, got 1"):
        RoomSource(photos, (24, 32), SETTINGS).draw(1, generator)
