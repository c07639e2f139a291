"""Reading descriptors out of a coarse map at keypoints."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def sample_descriptors(keypoints: Tensor, descriptor_map: Tensor, cell: int) -> Tensor:
    """Interpolate a map of descriptors at keypoints and normalise the result.

    SuperPoint's published sampling stretches the map by (W - cell) / (W - (cell + 1) / 2), less than half a cell over
    the whole image. Its matchers were trained on that, so it is kept to the letter.

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
    extent = keypoints.new_tensor([width, height]) * cell - cell / 2 - 0.5
    grid = (keypoints - cell / 2 + 0.5) / extent * 2 - 1
    sampled = F.grid_sample(descriptor_map[None], grid[None, None], mode="bilinear", align_corners=True)
    return F.normalize(sampled[0, :, 0], dim=0).T.contiguous()
