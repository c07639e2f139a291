"""A folder of small photographs that overlap, and a model that is quick on them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

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
