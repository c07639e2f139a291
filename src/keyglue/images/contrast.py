"""Dark and hazy photographs made to look like others: contrast-limited adaptive histogram equalisation.

After Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV, 1994: each tile of an image gets
the brightness curve that would spread its own values evenly, no steeper than a limit, and between tiles the curves
are blended.

Shapes: C channels, h w pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyglue.images.resize import to_grayscale

# Tiles along each side, and how many times as many pixels as on average a value may count.
_TILES, _LIMIT = 8, 3.0
_LEVELS = 256
# An image shows little contrast where the values of a typical tile (of those that show anything at all) deviate less
# than this from their mean. Of 200 photographs one does; of the same at a fifth of the light nearly all.
_LITTLE, _ANYTHING = 12.0, 2.0
# Smaller images are left alone; larger ones are judged by every n-th pixel, at about this size.
_SMALLEST, _JUDGED = 64, 256
_ROWS = 256


def with_contrast(pixels: Tensor) -> Tensor:
    """Return an image (C, h, w), 0 to 255, itself, or equalised and gray where it shows little contrast."""
    return equalised(pixels) if lacks_contrast(pixels) else pixels


def lacks_contrast(pixels: Tensor) -> bool:
    """Return whether an image (C, h, w), 0 to 255, shows little contrast: it is dark, or behind haze."""
    shorter = min(pixels.shape[1:])
    if shorter < _SMALLEST:
        return False
    step = max(1, shorter // _JUDGED)
    gray = to_grayscale(pixels[:, ::step, ::step].float())[0].double().cpu()
    tile = _tile_of_pixels(gray.shape[0], gray.shape[1]).flatten()
    count, total, squares = (
        torch.bincount(tile, weights=weights, minlength=_TILES**2)
        for weights in (None, gray.flatten(), gray.square().flatten())
    )
    deviation = (squares / count - (total / count).square()).clamp(min=0).sqrt()
    shown = deviation[deviation >= _ANYTHING]
    return len(shown) > 0 and float(shown.median()) < _LITTLE


def equalised(pixels: Tensor) -> Tensor:
    """Return an image (C, h, w), 0 to 255, in gray, its contrast raised everywhere as far as there is any."""
    gray = to_grayscale(pixels.float())[0].cpu()
    levels = gray.round().clamp(0, _LEVELS - 1).long()
    height, width = levels.shape
    tile = _tile_of_pixels(height, width)
    counts = torch.bincount((tile * _LEVELS + levels).flatten(), minlength=_TILES**2 * _LEVELS)
    histogram = counts.reshape(_TILES**2, _LEVELS).double()
    pixels_of_tile = histogram.sum(dim=1, keepdim=True)
    limit = _LIMIT * pixels_of_tile / _LEVELS
    excess = (histogram - limit).clamp(min=0).sum(dim=1, keepdim=True)
    curves = ((histogram.minimum(limit) + excess / _LEVELS).cumsum(dim=1) * ((_LEVELS - 1) / pixels_of_tile)).float()
    curves = curves.reshape(_TILES, _TILES, _LEVELS)
    (up, down, below), (left, right, beside) = _between(height), _between(width)
    result = torch.empty(height, width)
    for first in range(0, height, _ROWS):  # a few rows at once: large images stay within memory
        rows = slice(first, first + _ROWS)
        value = levels[rows]
        upper, lower = up[rows, None], down[rows, None]
        above = torch.lerp(curves[upper, left, value], curves[upper, right, value], beside)
        under = torch.lerp(curves[lower, left, value], curves[lower, right, value], beside)
        result[rows] = torch.lerp(above, under, below[rows, None])
    shown = result if pixels.is_floating_point() else result.round()
    return shown.to(pixels).expand(pixels.shape)


def _tile_of_pixels(height: int, width: int) -> Tensor:
    """Return the number of the tile (h, w) that each pixel is in."""
    rows, columns = (torch.arange(length) * _TILES // length for length in (height, width))
    return rows[:, None] * _TILES + columns


def _between(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each pixel along a side the two tiles whose middles it lies between, and how far it is."""
    position = ((torch.arange(length) + 0.5) * (_TILES / length) - 0.5).clamp(0, _TILES - 1)
    before = position.long()
    return before, (before + 1).clamp(max=_TILES - 1), position - before
