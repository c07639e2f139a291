"""Dark and hazy images are equalised, others are left alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from keyglue.images.contrast import equalised, lacks_contrast, with_contrast
from keyglue.images.read import load_pixels

PICTURES = ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png")


@pytest.fixture(scope="module")
def stereo(assets: Path) -> Tensor:
    """A photograph of 496x736 pixels, whose sides are multiples of the number of tiles."""
    return load_pixels(assets / "motorcycle_left.png", guess_range=False)[:, :496, :736]


def dark(pixels: Tensor, share: float) -> Tensor:
    """Return an image (C, h, w) with a share of its light."""
    return (pixels.float() * share).round().to(pixels.dtype)


@pytest.mark.parametrize("name", [*PICTURES, "motorcycle_left.png", "motorcycle_right.png"])
def test_bundled_photographs_are_left_alone(name: str, assets: Path) -> None:
    pixels = load_pixels(assets / name, guess_range=False)
    assert with_contrast(pixels) is pixels


@pytest.mark.parametrize("change", [lambda x: dark(x, 0.1), lambda x: dark(x, 0.15) + 150])
def test_dark_and_hazy_ones_are_equalised(stereo: Tensor, change) -> None:
    poor = change(stereo)
    assert lacks_contrast(poor)
    shown = with_contrast(poor)
    assert shown.shape == poor.shape
    assert shown.dtype == poor.dtype
    assert (shown[0] == shown[1]).all()
    assert not lacks_contrast(shown)


def test_what_is_nearly_plain_is_left_alone(stereo: Tensor) -> None:
    """A product before a white wall, a page: most tiles show nothing, the others much."""
    white = torch.full((3, 480, 640), 250, dtype=torch.uint8)
    product = white.clone()
    product[:, 200:300, 250:380] = stereo[:, 150:250, 200:330]
    assert not lacks_contrast(product)
    assert not lacks_contrast(white)
    assert not lacks_contrast(torch.zeros(3, 480, 640, dtype=torch.uint8))
    assert not lacks_contrast(dark(stereo[:, :40, :60], 0.1))


def test_equalised_as_opencv_does(stereo: Tensor) -> None:
    for pixels in (stereo, dark(stereo, 0.1)):
        gray = pixels.float().mean(dim=0).round().to(torch.uint8)
        expected = cv2.createCLAHE(3.0, (8, 8)).apply(gray.numpy()).astype(int)
        difference = np.abs(equalised(gray[None])[0].numpy().astype(int) - expected)
        assert difference.mean() < 1
        assert np.quantile(difference, 0.99) <= 5


def test_sides_that_tiles_do_not_divide_and_values_between(stereo: Tensor) -> None:
    pixels = dark(stereo, 0.1)[:, :301, :467]
    whole = equalised(pixels)
    assert whole.shape == (3, 301, 467)
    between = equalised(pixels.float())
    assert between.dtype == torch.float32
    assert (between - whole.float()).abs().max() <= 0.5
    assert between.min() >= 0
    assert between.max() <= 255
