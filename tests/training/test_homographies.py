"""Views of photographs: homographies that are what they say, and pixels that lie where the homographies say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.images.coordinates import pixel_grid
from keyglue.multiview.homography import homography_from_corners
from keyglue.training.homographies import (
    ViewSettings,
    between_views,
    random_views,
    render_views,
    view_scales,
    warp,
)
from keyglue.training.photos import Photos

SIZES = torch.tensor([[480.0, 640.0], [400.0, 300.0], [100.0, 640.0]], dtype=torch.float64)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _corners(size: tuple[int, int]) -> Tensor:
    height, width = size
    return torch.tensor([[0, 0], [width, 0], [width, height], [0, height]], dtype=torch.float64) - 0.5


def _ramp(height: int, width: int, a: float, b: float) -> Tensor:
    """A picture whose value is a x + b y, so that what is seen says where it is."""
    grid = pixel_grid((height, width), torch.device("cpu"))
    return (a * grid[:, 0] + b * grid[:, 1]).reshape(height, width)


def test_four_points_go_exactly_where_they_should() -> None:
    target = torch.tensor([[3.0, 4.0], [90.0, -2.0], [120.0, 80.0], [-5.0, 60.0]], dtype=torch.float64)
    H = torch.from_numpy(homography_from_corners(_corners((48, 64)).numpy(), target.numpy()))
    torch.testing.assert_close(warp(H, _corners((48, 64))), target)


def test_points_behind_the_camera_go_nowhere() -> None:
    H = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.1, 0, 1]], dtype=torch.float64)
    found = warp(H, torch.tensor([[0.0, 5.0], [-20.0, 5.0]], dtype=torch.float64))
    assert torch.isfinite(found[0]).all()
    assert torch.isnan(found[1]).all()


@pytest.mark.parametrize("max_angle", [0.0, 45.0, 180.0])
def test_views_stay_inside_their_photograph_at_any_rotation(max_angle: float) -> None:
    settings = ViewSettings(size=(96, 128), max_angle=max_angle, overhang=0)
    views = random_views(SIZES, 200, settings, _generator())
    corners = warp(views, _corners((96, 128)).expand(3, 200, 4, 2))
    photo = SIZES.flip(1)[:, None, None]
    assert (corners >= -0.5 - 1e-6).all()
    assert (corners <= photo - 0.5 + 1e-6).all()


def test_rotations_cover_the_range_that_was_asked_for() -> None:
    for limit in (0.0, 30.0, 180.0):
        settings = ViewSettings(size=(96, 128), max_angle=limit, difficulty=0.0)
        corners = warp(random_views(SIZES[:1], 500, settings, _generator()), _corners((96, 128)).expand(1, 500, 4, 2))
        top = corners[0, :, 1] - corners[0, :, 0]
        angle = torch.rad2deg(torch.atan2(top[:, 1], top[:, 0]))
        assert angle.abs().max() <= limit + 1e-6
        assert angle.abs().max() >= 0.95 * limit
        assert angle.min() <= -0.9 * limit


def test_half_of_the_views_zoom_in_by_up_to_the_factor() -> None:
    settings = ViewSettings(size=(96, 128), max_angle=0, difficulty=0.0, region=(1.0, 1.0), overhang=0, zoom=3.0)
    views = random_views(SIZES[:1], 1000, settings, _generator())[0]
    factor = (640 / 128) / view_scales(views, (96, 128))
    assert (factor < 1.001).double().mean() == pytest.approx(0.5, abs=0.05)
    assert factor.min() > 0.999
    assert 2.9 < factor.max() < 3.001
    assert factor[factor > 1.001].log().mean() == pytest.approx(math.log(3) / 2, abs=0.05)


def test_overhanging_views_leave_the_photograph_and_the_mask_says_so() -> None:
    photos = Photos.of_images(["grey"], [torch.full((240, 320), 128.0)])
    settings = ViewSettings(size=(96, 128), max_angle=45, region=(1.0, 1.0), overhang=1.0)
    views = random_views(photos.sizes([0]), 40, settings, _generator())[0]
    seen, inside = render_views(photos, [0] * 40, views, (96, 128), torch.full((40,), 0.25))
    assert not inside.all()
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(seen[:, 0][~inside], torch.full((int((~inside).sum()),), 0.25))
    assert (seen[:, 0][inside] > 0.4).all()


def test_what_is_rendered_lies_where_the_homography_says() -> None:
    photos = Photos.of_images(["x", "y"], [_ramp(300, 400, 0.6, 0), _ramp(300, 400, 0, 0.8)])
    settings = ViewSettings(size=(120, 160), difficulty=0.3, region=(0.4, 0.5), overhang=0)
    view = random_views(photos.sizes([0]), 1, settings, _generator(3))[0]
    assert view_scales(view, settings.size) < 1.5  # full resolution is sampled
    seen, inside = render_views(photos, [0, 1], view.expand(2, 3, 3), settings.size, torch.zeros(2))
    assert inside.all()
    where = warp(view[0], pixel_grid(settings.size, torch.device("cpu")).double())
    torch.testing.assert_close(seen[0].flatten() * 255, (0.6 * where[:, 0]).float(), atol=0.6, rtol=0)
    torch.testing.assert_close(seen[1].flatten() * 255, (0.8 * where[:, 1]).float(), atol=0.6, rtol=0)


@pytest.mark.parametrize("factor", [2, 4])
def test_far_views_are_taken_from_the_level_that_fits_without_a_shift(factor: int) -> None:
    picture = torch.rand(160, 240, generator=_generator()) * 255
    photos = Photos.of_images(["noise"], [picture])
    size = (160 // factor, 240 // factor)
    view = torch.tensor([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2], [0, 0, 1]], dtype=torch.float64)
    seen, _ = render_views(photos, [0], view[None], size, torch.zeros(1))
    expected = F.avg_pool2d(picture[None, None], factor)
    torch.testing.assert_close(seen * 255, expected, atol=0.51, rtol=0)


def test_two_views_of_one_place_agree_after_warping() -> None:
    photos = Photos.of_images(["ramp"], [_ramp(300, 400, 0.3, 0.3)])
    views = random_views(photos.sizes([0]), 2, ViewSettings(size=(96, 128), overhang=0), _generator(1))[0]
    seen, _ = render_views(photos, [0, 0], views, (96, 128), torch.zeros(2))
    H = between_views(views[0], views[1])
    grid = pixel_grid((96, 128), torch.device("cpu")).double()
    there = warp(H, grid)
    inside = ((there > 1) & (there < torch.tensor([126.0, 94.0]))).all(dim=1)
    assert inside.sum() > 500
    x, y = there[inside].round().long().unbind(1)
    torch.testing.assert_close(seen[0, 0].flatten()[inside], seen[1, 0, y, x], atol=0.02, rtol=0)


def test_scale_of_a_view_is_the_width_of_its_pixels() -> None:
    angle = math.radians(30)
    view = 1.7 * torch.tensor(
        [[math.cos(angle), -math.sin(angle), 9], [math.sin(angle), math.cos(angle), 4], [0, 0, 1 / 1.7]],
        dtype=torch.float64,
    )
    assert float(view_scales(view[None], (60, 80))) == pytest.approx(1.7)


def test_the_same_seed_draws_the_same_views() -> None:
    first, again = (random_views(SIZES, 3, ViewSettings(), _generator(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, random_views(SIZES, 3, ViewSettings(), _generator(6)))
