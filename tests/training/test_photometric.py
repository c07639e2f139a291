"""Photometric changes: bounded, repeatable, each doing what its name says."""

from __future__ import annotations

import torch

from keyglue.training.photometric import (
    PhotometricSettings,
    _blur,
    _convolve,
    _Draw,
    _jpeg,
    _local_contrast,
    _motion_blur,
    _noise,
    _shadow,
    change_light,
)


def _images(photographs: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([photographs[name][:, :200, :304] for name in ("chelsea", "coffee")] * 8)


def _draw(count: int) -> _Draw:
    return _Draw(count, torch.device("cpu"), torch.Generator().manual_seed(0))


def test_changes_keep_shape_and_range_and_depend_on_the_seed_alone(photographs: dict[str, torch.Tensor]) -> None:
    images = _images(photographs)
    found = [change_light(images, PhotometricSettings(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert found[0].shape == images.shape
    assert found[0].min() >= 0
    assert found[0].max() <= 1
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    # Pictures stay recognisable: bright places are still brighter, for nearly all of them.
    pairs = zip(images.flatten(1), found[0].flatten(1), strict=True)
    assert sum(torch.corrcoef(torch.stack(pair))[0, 1] > 0.6 for pair in pairs) >= 14


def test_views_are_left_alone_where_nothing_is_to_change(photographs: dict[str, torch.Tensor]) -> None:
    images = _images(photographs)
    settings = PhotometricSettings(changed=0.0)
    assert torch.equal(change_light(images, settings, torch.Generator().manual_seed(0)), images)


def test_blurs_take_detail_away_and_keep_the_mean(photographs: dict[str, torch.Tensor]) -> None:
    images = _images(photographs)
    for blur in (_blur, _motion_blur):
        found = blur(images, _draw(16), PhotometricSettings())
        assert (found.diff(dim=-1).abs().mean((1, 2, 3)) < images.diff(dim=-1).abs().mean((1, 2, 3))).all()
        torch.testing.assert_close(found.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=0.01, rtol=0)


def test_each_image_is_convolved_with_its_own_kernel() -> None:
    images = torch.rand(2, 1, 16, 16)
    kernels = torch.zeros(2, 1, 3, 3)
    kernels[0, 0, 1, 1] = 1
    kernels[1, 0, 1, 0] = 1  # the pixel to the left
    found = _convolve(images, kernels)
    assert torch.equal(found[0], images[0])
    assert torch.equal(found[1, 0, :, 1:], images[1, 0, :, :-1])


def test_noise_is_of_the_size_that_was_asked_for() -> None:
    grey = torch.full((64, 1, 64, 64), 0.5)
    spread = (_noise(grey, _draw(64), PhotometricSettings(noise=0.04)) - grey).flatten(1).std(dim=1)
    assert spread.max() < 0.04 * 1.3
    assert spread.mean() > 0.01


def test_shadows_only_darken(photographs: dict[str, torch.Tensor]) -> None:
    images = _images(photographs)
    found = _shadow(images, _draw(16), PhotometricSettings())
    assert (found <= images).all()
    assert (found.mean((1, 2, 3)) < 0.98 * images.mean((1, 2, 3))).all()


def test_local_contrast_evens_out_brightness() -> None:
    ramp = torch.linspace(0, 1, 128).expand(4, 1, 128, 128) * 0.8
    found = _local_contrast(ramp, _draw(4), PhotometricSettings())
    middle = slice(32, 96)
    assert ((found[..., 95] - found[..., 32])[..., middle] < (ramp[..., 95] - ramp[..., 32])[..., middle]).all()


def test_jpeg_keeps_flat_blocks_and_changes_fine_detail(photographs: dict[str, torch.Tensor]) -> None:
    flat = torch.full((4, 1, 64, 64), 0.5)
    torch.testing.assert_close(_jpeg(flat, _draw(4), PhotometricSettings()), flat, atol=0.03, rtol=0)
    images = _images(photographs)
    error = (_jpeg(images, _draw(16), PhotometricSettings()) - images).abs().mean((1, 2, 3))
    assert (error > 0.002).all()
    assert (error < 0.05).all()
