"""Patches laid over another picture of the same thing, whose place there is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from keyglue.images.coordinates import pixel_grid
from keyglue.images.read import read_image
from keyglue.images.registration import Window, register, smooth, take_patches
from keyglue.images.resize import to_grayscale

WARP = torch.tensor([[1.1, 0.15], [-0.2, 0.9]])


@pytest.fixture(scope="module")
def image(assets: Path) -> torch.Tensor:
    return to_grayscale(read_image(assets / "coffee.png"))[0][:200, 100:340] / 255


def moved(image: torch.Tensor, linear: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return an image of the same size whose pixel linear p + shift shows what pixel p of the other does."""
    extent = torch.tensor([image.shape[1], image.shape[0]])
    source = (pixel_grid((image.shape[0], image.shape[1])) - shift) @ torch.linalg.inv(linear).T
    grid = ((2 * source + 1) / extent - 1).reshape(1, *image.shape, 2)
    return F.grid_sample(image[None, None], grid, mode="bicubic", padding_mode="border", align_corners=False)[0, 0]


def textured(image: torch.Tensor, window: Window) -> torch.Tensor:
    """Return centres (n, 2) of patches that have slopes both ways, away from the edge."""
    y, x = torch.meshgrid(torch.arange(40.0, 160, 12), torch.arange(40.0, 200, 12), indexing="ij")
    centres = torch.stack([x, y], dim=-1).flatten(0, 1) + 0.3
    slopes = take_patches(smooth(image), centres, window)[:, 1:]
    weakest = torch.linalg.eigvalsh((slopes * window.weights) @ slopes.transpose(1, 2))[:, 0]
    return centres[weakest > 3e-5]


# Between pixels, brightness is interpolated linearly in both images, which moves patches by some hundredths of a pixel.
@pytest.mark.parametrize(("shift", "bound"), [((1.0, -1.0), 1e-3), ((0.37, -1.21), 0.06)])
@pytest.mark.parametrize("affine", [False, True])
def test_a_shift_is_found_whatever_brightness_and_contrast(
    image: torch.Tensor, affine: bool, shift: tuple[float, float], bound: float
) -> None:
    moved_by = torch.tensor(shift)
    window = Window.gaussian(9)
    centres = textured(image, window)
    assert len(centres) > 20
    other = 0.2 + 0.5 * moved(image, torch.eye(2), moved_by)
    patches = take_patches(smooth(image), centres, window)
    identity = torch.eye(2).repeat(len(centres), 1, 1)
    found = register(smooth(other), patches, centres, identity, window, 10, affine=affine)
    error = (found.shift - moved_by).norm(dim=1)
    assert error.median() < bound
    assert (error < 0.2).float().mean() > 0.9
    assert found.similarity.median() > 0.99
    assert (found.similarity > found.expected_similarity).float().mean() > 0.95


def test_a_warp_is_taken_as_given_or_found(image: torch.Tensor) -> None:
    window = Window.gaussian(9)
    centres = textured(image, window)
    there = moved(image, WARP, torch.tensor([10.0, 30.0]))
    start = centres @ WARP.T + torch.tensor([10.0, 30.0])
    inside = ((start > 15) & (start < torch.tensor([224.0, 184.0]))).all(dim=1)
    centres, start = centres[inside], start[inside]
    patches = take_patches(smooth(image), centres, window)
    near = start + torch.tensor([0.8, -0.6])
    known = register(smooth(there), patches, near, WARP.repeat(len(start), 1, 1), window, 10, affine=False)
    identity = torch.eye(2).repeat(len(start), 1, 1)
    anew = register(smooth(there), patches, near, identity, window, 15, affine=True)
    unknown = register(smooth(there), patches, near, identity, window, 15, affine=False)
    errors = [(near + found.shift - start).norm(dim=1).median() for found in (known, anew, unknown)]
    assert errors[0] < 0.05
    assert errors[1] < 0.05
    assert errors[2] > errors[0]
    assert anew.change.median() == pytest.approx(0.2, abs=0.03)  # the largest entry of WARP - I
    assert (known.change == 0).all()


def test_nothing_to_go_by_stays_finite(image: torch.Tensor) -> None:
    window = Window.gaussian(5)
    centres = torch.tensor([[20.0, 20.0], [-50.0, 1e6]])
    flat = torch.full_like(image, 0.5)
    identity = torch.eye(2).repeat(2, 1, 1)
    for first, second in ((flat, flat), (image, flat), (flat, image)):
        patches = take_patches(first, centres, window)
        found = register(second, patches, centres, identity, window, 5, affine=True)
        assert found.shift.isfinite().all()
        assert (found.similarity < 0.5).all()
    empty = take_patches(image, torch.zeros(0, 2), window)
    none = register(image, empty, torch.zeros(0, 2), torch.zeros(0, 2, 2), window, 5, affine=True)
    assert none.shift.shape == (0, 2)
    assert none.similarity.shape == (0,)
