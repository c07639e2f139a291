"""Random views of photographs: homographies, and the pixels seen through them.

A view is a homography A that maps pixels of the view to pixels of its photograph. Two views of one photograph are
related by the homography A1^-1 A0, from pixels of view 0 to pixels of view 1.

Shapes: B photographs, V views of each, N points. Frame: x right, y down, the centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.images.coordinates import pixel_grid, sampling_grid
from keyglue.multiview.homography import homography_from_corners
from keyglue.training.photos import Photos


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """How much views of one photograph differ.

    Attributes:
        size: Height and width of a view, multiples of 8.
        difficulty: Each corner of the part of the photograph that a view shows is pulled in along both axes by up to
            half of this share.
        max_angle: Views are rotated by up to this many degrees either way; 180 for any rotation.
        region: Smallest and largest side of the part of the photograph that all its views look at, as a share of what
            fits.
        zoom: Half of the views show a part that is smaller again, by up to this factor (evenly in the logarithm).
        overhang: Share of the views that may reach over the photograph's edge; what lies outside is of one gray value.
    """

    size: tuple[int, int] = (192, 256)
    difficulty: float = 0.7
    max_angle: float = 45.0
    region: tuple[float, float] = (0.6, 1.0)
    zoom: float = 1.0
    overhang: float = 0.1


def random_views(sizes: Tensor, views: int, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """Draw views of photographs (LightGlue's recipe for homographies).

    The corners of a rectangle are pulled in, the quadrangle is rotated, shrunk until it fits into the region of the
    photograph, and shifted at random inside it.

    Args:
        sizes: (B, 2) height and width of the photographs, float64.
        views: Number V of views of each.
        settings: How much they differ.
        generator: Source of randomness, on the CPU.

    Returns:
        (B, V, 3, 3) float64 homographies from pixels of the view to pixels of the photograph.
    """

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    count = len(sizes)
    photo = sizes.flip(1)
    view = torch.tensor(settings.size, dtype=torch.float64).flip(0)
    # The part of the photograph that is looked at: of the view's shape, somewhere inside.
    largest = view * (photo / view).amin(dim=1, keepdim=True)
    region = largest * uniform(count, 1, low=settings.region[0], high=settings.region[1])
    corner = (photo - region) * uniform(count, 2) - 0.5
    # Corners of each view's quadrangle around its centre, in units of the region's sides.
    square = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    pulled = square + (1 - 2 * square) * uniform(count, views, 4, 2, high=settings.difficulty / 2)
    quad = (pulled - 0.5) * region[:, None, None]
    if settings.zoom > 1:
        quad = quad * settings.zoom ** -uniform(count, views, 1, 1, low=-1.0).clamp(min=0)
    angle = torch.deg2rad(uniform(count, views, low=-settings.max_angle, high=settings.max_angle))
    quad = quad @ _rotations(angle).mT
    # Fit the bounding box into the photograph, except where a view may reach over the edge.
    low, high = quad.amin(dim=2), quad.amax(dim=2)
    over = uniform(count, views, 1) < settings.overhang
    shrink = (photo[:, None] / (high - low)).amin(dim=2, keepdim=True).clamp(max=1)
    shrink = torch.where(over, 1.0, shrink)
    quad, low, high = quad * shrink[..., None], low * shrink, high * shrink
    # Shift it, as far as the region reaches and the photograph goes.
    room = torch.maximum(region[:, None] - (high - low), torch.zeros(()))
    centre = corner[:, None] + region[:, None] / 2 + (uniform(count, views, 2) - 0.5) * room
    least, most = -0.5 - low, photo[:, None] - 0.5 - high
    inside = torch.minimum(torch.maximum(centre, least), torch.maximum(most, least))
    centre = torch.where(over, centre + (uniform(count, views, 2) - 0.5) * 0.2 * region[:, None], inside)
    corners = quad + centre[:, :, None]
    return torch.from_numpy(homography_from_corners((square * view - 0.5).numpy(), corners.numpy()))


def _rotations(angles: Tensor) -> Tensor:
    cosine, sine = angles.cos(), angles.sin()
    return torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)


def between_views(view0: Tensor, view1: Tensor) -> Tensor:
    """Return the homographies (..., 3, 3) from pixels of view 0 to pixels of view 1 of the same photograph."""
    H = torch.linalg.solve(view1, view0)
    return H / H[..., 2:, 2:]


def warp(H: Tensor, points: Tensor) -> Tensor:
    """Map points (..., N, 2) by homographies (..., 3, 3); points that go to infinity or come from behind are NaN."""
    mapped = points @ H[..., :2].mT + H[..., None, :, 2]
    depth = mapped[..., 2:]
    return torch.where(depth > 1e-6, mapped[..., :2] / depth, torch.nan)


def render_views(
    photos: Photos, index: Sequence[int], views: Tensor, size: tuple[int, int], fill: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what views show of their photographs, with bilinear interpolation at the level that fits.

    Args:
        photos: The photographs.
        index: B photographs, one for each view.
        views: (B, 3, 3) float64 homographies from pixels of the view to pixels of the photograph.
        size: Height and width of the views.
        fill: (B,) gray value from 0 to 1 of what lies outside the photograph.

    Returns:
        (B, 1, h, w) views in float32 from 0 to 1, and (B, h, w) booleans, false outside the photograph.
    """
    levels = _levels(views, size, len(photos.pyramids[0]))
    images = photos.gather(index, levels)
    device = images.device
    shrink = 0.5 ** torch.tensor(levels, dtype=torch.float64)
    # From pixels of level 0 to pixels of the chosen level: (x + 0.5) s - 0.5.
    to_level = torch.zeros(len(levels), 3, 3, dtype=torch.float64)
    to_level[:, 0, 0] = to_level[:, 1, 1] = shrink
    to_level[:, :2, 2] = (0.5 * shrink - 0.5)[:, None]
    to_level[:, 2, 2] = 1
    pixels = warp((to_level @ views).to(device, torch.float32), pixel_grid(size, device)).nan_to_num(-1e4)
    pixels = pixels.reshape(len(levels), *size, 2)
    grid = sampling_grid(pixels, (images.shape[2], images.shape[3]))
    seen = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    content = photos.sizes(index).flip(1).to(pixels) * shrink.to(pixels)[:, None]
    inside = ((pixels > -0.5) & (pixels < content[:, None, None] - 0.5)).all(dim=-1)
    return torch.where(inside[:, None], seen, fill.to(seen)[:, None, None, None]), inside


def view_scales(views: Tensor, size: tuple[int, int]) -> Tensor:
    """Return how many pixels of the photograph one pixel of each view (B, 3, 3) is wide, on average: (B,)."""
    height, width = size
    corners = torch.tensor([[0, 0], [width, 0], [width, height], [0, height]], dtype=torch.float64) - 0.5
    x, y = warp(views, corners).nan_to_num(0).unbind(-1)
    # Shoelace formula for the area that the view shows.
    area = (x * y.roll(-1, -1) - x.roll(-1, -1) * y).sum(-1).abs() / 2
    return (area / (height * width)).sqrt().clamp(min=1e-3)


def _levels(views: Tensor, size: tuple[int, int], count: int) -> list[int]:
    """Return the level of the pyramid whose pixels are nearest to, and not much larger than, the view's pixels."""
    return [min(max(round(math.log2(scale) - 0.1), 0), count - 1) for scale in view_scales(views, size).tolist()]
