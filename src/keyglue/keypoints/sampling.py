"""Reading descriptors out of a coarse map at keypoints.

SuperPoint's published sampling stretches the map by (W - cell) / (W - (cell + 1) / 2), less than half a cell over the
whole image. Its matchers were trained on that, so it is kept to the letter.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sample_descriptors(keypoints: Tensor, descriptor_map: Tensor, cell: int) -> Tensor:
    """Interpolate a map of descriptors at keypoints and normalise the result.

    Args:
        keypoints: (N, 2) x, y in pixels of the image.
        descriptor_map: (D, h, w) with unit-length descriptors, one for each ``cell`` x ``cell`` pixels.
        cell: Pixels of the image a cell of the map, along each axis.

    Returns:
        (N, D) unit-length descriptors.
    """
    if len(keypoints) == 0:
        return descriptor_map.new_zeros(0, len(descriptor_map))
    _, height, width = descriptor_map.shape
    grid = _relative_places(keypoints, (height, width), cell) * 2 - 1
    sampled = F.grid_sample(descriptor_map[None], grid[None, None], mode="bilinear", align_corners=True)
    return F.normalize(sampled[0, :, 0], dim=0).T.contiguous()


def bilinear_corners(keypoints: Tensor, size: tuple[int, int], cell: int) -> tuple[Tensor, Tensor]:
    """Return which cells ``sample_descriptors`` reads, and how much each counts.

    Args:
        keypoints: (N, 2) x, y in pixels of the image.
        size: Height and width of the map.
        cell: Pixels of the image a cell of the map, along each axis.

    Returns:
        Indices (N, 4) of cells counted row by row, and their weights (N, 4), zero for a corner outside the map.
    """
    height, width = size
    last = keypoints.new_tensor([width - 1, height - 1])
    places = _relative_places(keypoints, size, cell) * last
    corner = places.floor()
    steps = keypoints.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    corners = corner[:, None] + steps
    weights = (1 - (places[:, None] - corners).abs()).prod(dim=-1)
    weights = weights.masked_fill(((corners < 0) | (corners > last)).any(dim=-1), 0)
    columns, rows = torch.minimum(corners.clamp(min=0), last).long().unbind(-1)
    return rows * width + columns, weights


def _relative_places(keypoints: Tensor, size: tuple[int, int], cell: int) -> Tensor:
    """Return (N, 2) places of keypoints in a map of (height, width) cells: 0 first cell's centre, 1 last cell's."""
    extent = keypoints.new_tensor([size[1], size[0]]) * cell - cell / 2 - 0.5
    return (keypoints - cell / 2 + 0.5) / extent
