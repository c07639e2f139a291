"""A folder of small photographs that overlap, and a model that is quick on them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from keyglue.images.read import read_image
from keyglue.pipelines.matcher import Matcher

if any(importlib.util.find_spec(library) is None for library in ("h5py", "pycolmap")):
    collect_ignore_glob = ["test_*.py"]  # the extra "sfm" is not installed

MakeMatcher = Callable[..., Matcher]
# name, asset, box (left, top, right, bottom): three overlapping views of one picture, two of another
VIEWS = (
    ("a1.png", "coffee.png", (0, 0, 420, 320)),
    ("a2.png", "coffee.png", (60, 40, 480, 360)),
    ("sub/a3.png", "coffee.png", (120, 60, 540, 380)),
    ("b1.png", "chelsea.png", (0, 0, 360, 260)),
    ("b2.png", "chelsea.png", (80, 30, 440, 290)),
)


@pytest.fixture(scope="session")
def make_matcher() -> MakeMatcher:
    """Loads the bundled model for small images, with settings that replace the test's usual ones."""

    def make(**settings: object) -> Matcher:
        return Matcher.from_pretrained(**{"device": "cpu", "resize": 240, "max_keypoints": 96, **settings})

    return make


@pytest.fixture(scope="session")
def matcher(make_matcher: MakeMatcher) -> Matcher:
    return make_matcher()


@pytest.fixture(scope="session")
def names() -> list[str]:
    """Names of the images of ``photos``."""
    return [name for name, *_ in VIEWS]


@pytest.fixture
def photos(tmp_path: Path, assets: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, asset, box in VIEWS:
        with Image.open(assets / asset) as picture:
            picture.convert("RGB").crop(box).save(folder / name)
    return folder


@dataclass(frozen=True)
class Corner:
    """Pictures of the inner corner of a room, with photographs on its three walls, and the cameras' poses."""

    images: Path
    truth: dict[str, tuple[np.ndarray, np.ndarray]]
    focal: float
    size: tuple[int, int]


@pytest.fixture(scope="session")
def corner(tmp_path_factory: pytest.TempPathFactory, assets: Path) -> Corner:
    folder, size, focal = tmp_path_factory.mktemp("corner"), (270, 360), 330.0
    walls = [read_image(assets / name).mean(dim=0) for name in ("coffee.png", "astronaut.png", "chelsea.png")]
    truth: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for index, angle in enumerate(np.linspace(-0.45, 0.45, 6)):
        # The walls are the planes x = 0, y = 0 and z = 0; the cameras stand where all three coordinates are positive.
        around = np.pi / 4 + angle
        centre = np.array([3.4 * np.cos(around), 1.6 + 0.5 * (-1) ** index, 3.4 * np.sin(around)])
        forward = np.array([0.35, 0.45, 0.35]) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 1, 0])
        right /= np.linalg.norm(right)
        R = np.stack([right, np.cross(forward, right), forward])
        name = f"{index}.png"
        truth[name] = R, -R @ centre
        _render(walls, R, centre, size, focal).save(folder / name)
    return Corner(folder, truth, focal, size)


def _render(
    walls: list[torch.Tensor], R: np.ndarray, centre: np.ndarray, size: tuple[int, int], focal: float
) -> Image.Image:
    fine = (3 * size[0], 3 * size[1])  # averaged down, so that edges are smooth
    rows, columns = np.mgrid[: fine[0], : fine[1]]
    ahead = np.ones(fine)
    pixels = np.stack([(columns + 0.5 - fine[1] / 2) / 3, (rows + 0.5 - fine[0] / 2) / 3, focal * ahead], axis=-1)
    rays = pixels / focal @ R
    steps = np.where(rays < 0, -centre / rays, np.inf)  # to the planes x = 0, y = 0, z = 0
    wall = steps.argmin(axis=-1)
    hit = centre + rays * steps.min(axis=-1)[..., None]
    picture = np.full(fine, 90.0)
    for axis, texture in enumerate(walls):
        across = np.delete(hit, axis, axis=-1)
        places = torch.from_numpy(across - 1).float()[None]  # a wall's picture covers 0 to 2
        seen = F.grid_sample(texture[None, None], places, align_corners=False)[0, 0].numpy()
        inside = (wall == axis) & (across > 0).all(axis=-1) & (across < 2).all(axis=-1)
        picture[inside] = seen[inside]
    return Image.fromarray(picture.round().astype(np.uint8)).reduce(3)
