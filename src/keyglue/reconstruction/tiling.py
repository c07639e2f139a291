"""Describing an image that is too large for the model at once: in tiles that overlap, with the answer of the whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.base.types import Features
from keyglue.pipelines.matcher import Matcher

# Tiles begin at multiples of it, so that the detector's cells lie as in the whole image.
_GRID = 32
# What lies further away changes neither a keypoint nor its descriptor: 45 pixels that SuperPoint's convolutions see,
# one cell of interpolation, and the reach of two rounds of non-maximum suppression.
_MARGIN = 96
SMALLEST_TILE = 4 * _MARGIN


def describe_tiled(matcher: Matcher, pixels: Tensor, mask: Tensor | None, max_tile: int) -> Features:
    """Describe an image in tiles no longer than ``max_tile`` on a side.

    Each keypoint comes from the tile in whose middle it lies, so none is found twice. The whole image's keypoints are
    the same but for rounding; descriptors are nearly so, because SuperPoint samples its map a little further out the
    larger the image (up to half a cell), and in a tile it does not.

    Args:
        matcher: Describes the tiles.
        pixels: (C, h, w), 0 to 255, at the size that the model is to see.
        mask: (h, w) boolean, true where keypoints are wanted.
        max_tile: Longest side of a tile in pixels.

    Raises:
        InputError: ``max_tile`` is too small to hold margins.
    """
    if max_tile < SMALLEST_TILE:
        raise InputError(f"tiles must be at least {SMALLEST_TILE} pixels long, got {max_tile}.")
    height, width = pixels.shape[1], pixels.shape[2]
    parts = [
        _describe_tile(matcher, pixels, mask, rows, columns)
        for rows in _spans(height, max_tile)
        for columns in _spans(width, max_tile)
    ]
    if len(parts) == 1:
        return parts[0]
    most = getattr(matcher.model.keypoint_detector.config, "max_keypoints", -1)
    return _strongest(_joined(parts, (height, width)), most)


def _spans(length: int, max_tile: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (tile start, tile stop, middle start, middle stop) along one side; the middles cover it without overlap."""
    if length <= max_tile:
        yield 0, length, 0, length
        return
    step = (max_tile - 2 * _MARGIN) // _GRID * _GRID
    for start in range(0, length, step):
        stop = min(length, start + step)
        yield max(0, start - _MARGIN), min(length, stop + _MARGIN), start, stop


def _describe_tile(
    matcher: Matcher,
    pixels: Tensor,
    mask: Tensor | None,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
) -> Features:
    """Return the keypoints in the middle of a tile, in pixels of the whole image."""
    window = (slice(rows[0], rows[1]), slice(columns[0], columns[1]))
    tile = matcher.processor.steps(do_resize=False).apply(pixels[:, window[0], window[1]], "channels_first")
    wanted = None if mask is None else mask[window]
    features = matcher.model.extract(tile.to(matcher.model.device), mask=wanted)
    points = features.keypoints + torch.tensor([columns[0], rows[0]], device=features.device)
    x, y = points.unbind(dim=1)
    # Half a pixel, because a pixel reaches that far around its centre.
    inside = (x >= columns[2] - 0.5) & (x < columns[3] - 0.5) & (y >= rows[2] - 0.5) & (y < rows[3] - 0.5)
    moved = Features(
        keypoints=points,
        descriptors=features.descriptors,
        image_size=(pixels.shape[1], pixels.shape[2]),
        keypoint_scores=features.keypoint_scores,
        scales=features.scales,
        orientations=features.orientations,
        detector=features.detector,
    )
    return moved.select(inside)


def _joined(parts: list[Features], size: tuple[int, int]) -> Features:
    def cat(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    return Features(
        keypoints=torch.cat([part.keypoints for part in parts]),
        descriptors=torch.cat([part.descriptors for part in parts]),
        image_size=size,
        keypoint_scores=cat("keypoint_scores"),
        scales=cat("scales"),
        orientations=cat("orientations"),
        detector=parts[0].detector,
    )


def _strongest(features: Features, most: int) -> Features:
    """Return the ``most`` best keypoints, best first; all of them where ``most`` is negative."""
    if features.keypoint_scores is None:
        return features
    order = torch.argsort(features.keypoint_scores, descending=True, stable=True)
    return features.select(order if most < 0 else order[:most])
