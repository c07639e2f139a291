"""Photographs in memory: read from folders and tar files, split by name, put together at the level that is needed."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from keyglue.base.errors import InputError
from keyglue.scoring.held_out import is_held_out
from keyglue.training.data import load_data
from keyglue.training.photos import Photos, load_photos


@pytest.fixture
def folder(tmp_path: Path, assets: Path) -> Path:
    """A folder with a folder, a tar file, a damaged image, a tiny image and a text."""
    below = tmp_path / "photos" / "below"
    below.mkdir(parents=True)
    with tarfile.open(tmp_path / "photos" / "more.tar", "w") as archive:
        archive.add(assets / "rocket.jpg", "some/where/rocket.jpg")
    (below / "chelsea.png").symlink_to(assets / "chelsea.png")
    (below / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    (below / "note.txt").write_text("nothing to see")
    Image.fromarray(np.zeros((20, 300), np.uint8)).save(below / "strip.png")
    return tmp_path / "photos"


def test_folders_and_tar_files_are_read_and_bad_images_passed_over(folder: Path) -> None:
    photos = load_photos([folder])
    assert photos.names == ("chelsea.png", "rocket.jpg")
    for levels in photos.pyramids:
        height, width = levels[0].shape
        assert max(height, width) <= 640
        assert [tuple(level.shape) for level in levels[1:]] == [(height // 2, width // 2), (height // 4, width // 4)]
        assert all(level.dtype == torch.uint8 for level in levels)


def test_large_photographs_are_shrunk(assets: Path) -> None:
    photos = load_photos([assets / "chelsea.png"], long_side=100)
    assert max(photos.pyramids[0][0].shape) == 100


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no usable photograph"):
        load_photos([tmp_path])
    with pytest.raises(InputError, match="does not exist"):
        load_photos([tmp_path / "nowhere"])
    (tmp_path / "bad.tar").write_bytes(b"not a tar file")
    with pytest.raises(InputError, match="tar"):
        load_photos([tmp_path / "bad.tar"])
    with pytest.raises(InputError, match="nothing to train on"):
        load_data([], torch.device("cpu"))


def test_split_holds_out_by_name_alone() -> None:
    names = [f"photo{number}.jpg" for number in range(300)]
    photos = Photos.of_images(names, [torch.zeros(8, 8)] * 300)
    train, held_out = photos.split()
    assert all(is_held_out(name) for name in held_out.names)
    assert not any(is_held_out(name) for name in train.names)
    assert len(train) + len(held_out) == 300
    assert 5 < len(held_out) < 50
    alone = photos.select([0])
    assert alone.split()[0].names == alone.split()[1].names == ("photo0.jpg",)


def test_training_set_holds_out_two_hundred(shared_data: Path) -> None:
    names: list[str] = []
    for path in sorted((shared_data / "train").glob("*.tar")):
        with tarfile.open(path) as archive:
            names += [member.name for member in archive if member.isfile()]
    assert sum(map(is_held_out, names)) == 200


def test_photographs_of_many_sizes_are_put_together_by_repeating_their_edge() -> None:
    photos = Photos.of_images(["a", "b"], [torch.full((8, 12), 51.0), torch.arange(64.0).reshape(16, 4)])
    found = photos.gather([0, 1], [0, 0])
    assert found.shape == (2, 1, 16, 12)
    torch.testing.assert_close(found[0], torch.full((1, 16, 12), 0.2))
    torch.testing.assert_close(found[1, 0, :, 4:], found[1, 0, :, 3:4].expand(16, 8))
    assert photos.sizes([1, 0]).tolist() == [[16, 4], [8, 12]]
