"""Describing an image that is too large for the model at once: in tiles that overlap, with the answer of the whole."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from keyglue.base.devices import to_device
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
    larger the image (up to half a cell), and in a tile it does not. Those of several tiles come as float16 on the CPU:
    a large image can have a million keypoints, and a store keeps no more than that.

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
    return _strongest(parts, getattr(matcher.model.keypoint_detector.config, "max_keypoints", -1))


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
    features = matcher.model.extract(to_device(tile, matcher.model.device), mask=wanted)
    if tile.shape[1:] == pixels.shape[1:]:
        return features
    features = features.to("cpu")
    points = features.keypoints + torch.tensor([columns[0], rows[0]])
    x, y = points.unbind(dim=1)
    # Half a pixel, because a pixel reaches that far around its centre.
    inside = (x >= columns[2] - 0.5) & (x < columns[3] - 0.5) & (y >= rows[2] - 0.5) & (y < rows[3] - 0.5)
    moved = Features(
        keypoints=points,
        descriptors=features.descriptors.half(),
        image_size=(pixels.shape[1], pixels.shape[2]),
        keypoint_scores=features.keypoint_scores,
        scales=features.scales,
        orientations=features.orientations,
        detector=features.detector,
    )
    return moved.select(inside)


def _strongest(parts: list[Features], most: int) -> Features:
    """Return the ``most`` best keypoints of all tiles, best first; all of them where ``most`` is negative."""
    starts = [0, *itertools.accumulate(len(part) for part in parts)]
    order = torch.arange(starts[-1])
    if parts[0].keypoint_scores is not None:
        scores = torch.cat([part.keypoint_scores for part in parts if part.keypoint_scores is not None])
        order = torch.argsort(scores, descending=True, stable=True)
        order = order if most < 0 else order[:most]
    tile = torch.bucketize(order, torch.tensor(starts[1:]), right=True)

    def gathered(name: str) -> Any:
        """Return a tensor of all tiles in the new order, without a second copy on the way."""
        first = getattr(parts[0], name)
        if first is None:
            return None
        values = first.new_empty(len(order), *first.shape[1:])
        for number, part in enumerate(parts):
            places = (tile == number).nonzero().squeeze(1)
            values[places] = getattr(part, name)[order[places] - starts[number]]
        return values

    names = ("keypoints", "descriptors", "keypoint_scores", "scales", "orientations")
    return dataclasses.replace(parts[0], **{name: gathered(name) for name in names})
