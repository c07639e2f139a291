"""Photometric changes: what light, lens, sensor and compression do to a picture, each view by itself.

Shapes: B views, h w pixels, a multiple of 8 each. Gray values from 0 to 1.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Quantisation of brightness in the JPEG standard (annex K), at quality 50.
_JPEG_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_KERNEL = 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotometricSettings:
    """Share of the views that each change is made to, and how strong it is.

    Attributes:
        changed: Share of views that are changed at all.
        gamma: Largest factor of the exponent, and one over its smallest.
        brightness: Largest shift either way.
        contrast: Largest relative change either way.
        noise: Largest standard deviation of sensor noise.
        blur: Largest standard deviation of a blur in pixels.
        shadow: Largest share of the light that a shadow takes.
        rare: Probability of each of blur, motion blur, shadow, local contrast and JPEG.
    """

    changed: float = 0.95
    gamma: float = 1.7
    brightness: float = 0.15
    contrast: float = 0.4
    noise: float = 0.04
    blur: float = 1.6
    shadow: float = 0.6
    rare: float = 0.25


def change_light(images: Tensor, settings: PhotometricSettings, generator: torch.Generator) -> Tensor:
    """Return images with random photometric changes.

    Args:
        images: (B, 1, h, w) values from 0 to 1.
        settings: How often and how strong.
        generator: Source of randomness, on the CPU; the noise of the pixels too comes from it.

    Returns:
        (B, 1, h, w) values from 0 to 1.
    """
    draw = _Draw(len(images), images.device, generator)
    changed = draw.chance(settings.changed)
    out = images
    # In the order in which the world does it: light, lens, sensor, compression.
    steps: list[tuple[float, Callable[[Tensor, _Draw, PhotometricSettings], Tensor]]] = [
        (settings.rare, _shadow),
        (1.0, _tone),
        (settings.rare, _local_contrast),
        (settings.rare, _blur),
        (settings.rare, _motion_blur),
        (0.7, _noise),
        (settings.rare, _jpeg),
    ]
    for share, step in steps:
        # Every step draws its numbers for all views, so that a view does not depend on which others are changed.
        rows = (changed & draw.chance(share)).nonzero().squeeze(1)
        part = draw.rows(rows)
        if len(rows):
            on_device = rows.to(images.device)
            out = out.index_copy(0, on_device, step(out[on_device], part, settings).clamp(0, 1))
    return out


class _Draw:
    """Random numbers for each view: one generator on the CPU gives the same ones on any device."""

    def __init__(self, count: int, device: torch.device, generator: torch.Generator) -> None:
        self.count, self.device, self.generator = count, device, generator

    def rows(self, rows: Tensor) -> _Draw:
        return _Draw(len(rows), self.device, self.generator)

    def chance(self, probability: float) -> Tensor:
        return torch.rand(self.count, generator=self.generator) < probability

    def uniform(self, low: float, high: float) -> Tensor:
        """Return (B, 1, 1, 1) numbers on the device."""
        values = low + (high - low) * torch.rand(self.count, 1, 1, 1, generator=self.generator)
        return values.to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Return (B, *shape) numbers of the device's own generator, seeded by the one on the CPU."""
        seed = int(torch.randint(2**62, (), generator=self.generator))
        local = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(self.count, *shape, generator=local, device=self.device)


def _tone(images: Tensor, draw: _Draw, settings: PhotometricSettings) -> Tensor:
    gamma = torch.exp(draw.uniform(-1, 1) * math.log(settings.gamma))
    contrast = 1 + draw.uniform(-settings.contrast, settings.contrast)
    brightness = draw.uniform(-settings.brightness, settings.brightness)
    mean = images.mean(dim=(2, 3), keepdim=True)
    return ((images.clamp(min=1e-4) ** gamma - mean) * contrast + mean + brightness).clamp(0, 1)


def _shadow(images: Tensor, draw: _Draw, settings: PhotometricSettings) -> Tensor:
    """Darken one side of a soft, slightly bent edge."""
    height, width = images.shape[2:]
    y = torch.linspace(-1, 1, height, device=images.device)[None, None, :, None]
    x = torch.linspace(-1, 1, width, device=images.device)[None, None, None, :]
    angle = draw.uniform(0, 2 * math.pi)
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    edge = along - draw.uniform(-0.6, 0.6) - draw.uniform(-0.5, 0.5) * across.square()
    softness = torch.exp(draw.uniform(math.log(2.0), math.log(60.0)))
    return images * (1 - draw.uniform(0.1, settings.shadow) * (edge * softness).sigmoid())


def _local_contrast(images: Tensor, draw: _Draw, settings: PhotometricSettings) -> Tensor:
    """Even out brightness and contrast over the picture, as adaptive equalisation does."""
    del settings
    size = max(8, min(images.shape[2:]) // 6) | 1

    def local_mean(values: Tensor) -> Tensor:
        # Rows, then columns: the same answer as a square window, many times quicker.
        rows = F.avg_pool2d(values, (1, size), 1, (0, size // 2), count_include_pad=False)
        return F.avg_pool2d(rows, (size, 1), 1, (size // 2, 0), count_include_pad=False)

    mean = local_mean(images)
    spread = (local_mean(images.square()) - mean.square()).clamp(min=1e-3).sqrt()
    even = (images - mean) / spread * 0.18 + 0.5
    return torch.lerp(images, even, draw.uniform(0.1, 0.8))


def _blur(images: Tensor, draw: _Draw, settings: PhotometricSettings) -> Tensor:
    sigma = draw.uniform(0.4, settings.blur)[:, :, 0]
    offsets = torch.arange(_KERNEL, device=images.device) - _KERNEL // 2
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum(dim=-1, keepdim=True)
    return _convolve(_convolve(images, kernel[:, :, None, :]), kernel[:, :, :, None])


def _motion_blur(images: Tensor, draw: _Draw, settings: PhotometricSettings) -> Tensor:
    """Average along a short line of random direction and length."""
    del settings
    angle, length = draw.uniform(0, math.pi), draw.uniform(1.5, _KERNEL - 2.0)
    offsets = torch.arange(_KERNEL, device=images.device) - _KERNEL // 2
    y, x = offsets[:, None], offsets[None, :]
    across = (y * angle.cos() - x * angle.sin()).abs()
    along = (x * angle.cos() + y * angle.sin()).abs()
    kernel = (1 - across).clamp(min=0) * (length / 2 + 0.5 - along).clamp(0, 1)
    return _convolve(images, kernel / kernel.sum(dim=(2, 3), keepdim=True))


def _convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each image (B, 1, h, w) with its own kernel (B, 1, kh, kw)."""
    kh, kw = kernels.shape[2:]
    padded = F.pad(images, (kw // 2, kw // 2, kh // 2, kh // 2), mode="replicate")
    return F.conv2d(padded.transpose(0, 1), kernels, groups=len(images)).transpose(0, 1)


def _noise(images: Tensor, draw: _Draw, settings: PhotometricSettings) -> Tensor:
    """Add sensor noise: partly the same everywhere, partly growing with the light."""
    read, shot = draw.uniform(0, settings.noise), draw.uniform(0, settings.noise)
    spread = (read.square() + shot.square() * images).sqrt()
    return images + spread * draw.normal(*images.shape[1:])


@functools.lru_cache
def _cosines(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the orthogonal DCT matrix (8, 8) and JPEG's quantisation table (8, 8) for values from 0 to 255."""
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)[None, :]
    matrix = torch.cos(math.pi * (2 * n + 1) * k / 16) * 0.5
    matrix[0] = 8**-0.5
    return matrix.to(device), torch.tensor(_JPEG_TABLE, dtype=torch.float32, device=device)


def _jpeg(images: Tensor, draw: _Draw, settings: PhotometricSettings) -> Tensor:
    """Do what JPEG does to the brightness: cosine transform of 8 x 8 blocks, rounding, and back."""
    del settings
    matrix, table = _cosines(images.device)
    quality = draw.uniform(20, 90)
    factor = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    count, _, height, width = images.shape
    blocks = images.reshape(count, height // 8, 8, width // 8, 8).transpose(2, 3) * 255 - 128
    steps = (table * factor[:, :, 0, 0, None, None, None]).clamp(min=1).reshape(count, 1, 1, 8, 8)
    rounded = (matrix @ blocks @ matrix.T / steps).round() * steps
    blocks = (matrix.T @ rounded @ matrix + 128) / 255
    return blocks.transpose(2, 3).reshape(images.shape)
