"""Fixtures that several folders of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from keyglue.base.types import Features
from keyglue.images.read import read_image
from keyglue.images.resize import resize_image, to_grayscale
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the bundled photographs."""
    return ROOT / "assets"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the evaluation data beside the project; the test is skipped where it is not there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the data beside the project is not here")
    return folder


@pytest.fixture(scope="session")
def photographs(assets: Path) -> dict[str, torch.Tensor]:
    """Bundled photographs as gray (1, h, w) tensors from 0 to 1, at sizes that keep tests quick."""
    sizes = {"motorcycle_left.png": (240, 352), "motorcycle_right.png": (240, 352), "astronaut.png": (256, 256)}
    sizes.update({"chelsea.png": (200, 304), "coffee.png": (200, 304), "rocket.jpg": (216, 320)})
    return {
        name.partition(".")[0]: to_grayscale(resize_image(read_image(assets / name), size)) / 255
        for name, size in sizes.items()
    }


@pytest.fixture(scope="session")
def small() -> LightGlueForKeypointMatching:
    """The bundled model."""
    return LightGlueForKeypointMatching.from_pretrained("keyglue-small")


@pytest.fixture(scope="session")
def described(small: LightGlueForKeypointMatching, photographs: dict[str, torch.Tensor]) -> dict[str, Features]:
    """Features of the bundled photographs, at most 300 keypoints each."""
    detector = SuperPointForKeypointDetection.from_pretrained("keyglue-small", max_keypoints=300)
    with torch.no_grad():
        return {name: detector.extract(image) for name, image in photographs.items()}
