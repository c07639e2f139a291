"""Views: a part of an image, resized and turned, as the model gets to see it.

Shapes: C channels, h w pixels. Frame: x right, y down, the centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from keyglue.images.coordinates import pixel_grid, resize_keypoints, sampling_grid, turned_size, unturn_keypoints
from keyglue.images.resize import resize_mask
from keyglue.multiview.homography import warp_points
from keyglue.pipelines.photograph import Photograph, Size

Float = NDArray[np.float64]
Prepare = Callable[[Tensor, Size], Tensor]

# Keypoints nearer than this to where the image ends are none, as at the edges of an image.
_BORDER = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """What the model is shown of an image.

    Attributes:
        part: Left, top, right and bottom edge of the part of the image, in whole pixels.
        size: Height and width that the part is resized to.
        degrees: How far it is then turned counter-clockwise.
    """

    part: tuple[int, int, int, int]
    size: Size
    degrees: float = 0.0

    @classmethod
    def whole(cls, image: Size, size: Size, degrees: float = 0.0) -> View:
        """Return the view of a whole image of a height and width."""
        return cls(part=(0, 0, image[1], image[0]), size=size, degrees=degrees)

    @property
    def scale(self) -> float:
        """Pixels of the view for each pixel of the image."""
        left, top, right, bottom = self.part
        return math.sqrt(self.size[0] * self.size[1] / ((right - left) * (bottom - top)))

    @property
    def matrix(self) -> Float:
        """(3, 3) affine map from pixels of the view to pixels of the image."""
        origin, right, down = self.to_image(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        return np.array([[*row] for row in zip(right - origin, down - origin, origin, strict=True)] + [[0.0, 0.0, 1.0]])

    def to_image(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map points (N, 2) of the view to the image."""
        left, top, right, bottom = self.part
        upright = unturn_keypoints(points, self.degrees, self.size) if self.degrees else points
        resized = resize_keypoints(upright, self.size, (bottom - top, right - left))
        return resized + np.array([left, top], resized.dtype)

    def render(self, image: Photograph, prepare: Prepare) -> tuple[Tensor, Tensor | None]:
        """Return the pixels (C, h, w) of the view, and where keypoints are wanted (h, w), None for everywhere.

        Args:
            image: The image.
            prepare: Resizes pixels to a height and width, and does what else the model wants.
        """
        pixels, mask = image.cut(self.part)
        size = turned_size(self.size, self.degrees)
        turns = self.degrees / 90
        if turns == int(turns):  # turned first, so that an image and its turned copy become the same pixels
            pixels = prepare(_rot90(pixels, int(turns)), size)
            return pixels, None if mask is None else resize_mask(_rot90(mask, int(turns)), size)
        pixels = prepare(pixels, self.size)
        mask = None if mask is None else resize_mask(mask, self.size)
        return _sampled(pixels, mask, unturn_keypoints(pixel_grid(size), self.degrees, self.size), size)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Warp:
    """An image as it would look if it showed a plane like the other one does.

    Attributes:
        size: Height and width of the view.
        matrix: (3, 3) homography from pixels of the view to pixels of the image.
    """

    size: Size
    matrix: Float

    @classmethod
    def like(cls, view: View | Warp, H: Float) -> Warp:
        """Return how image 1 would look in a view of image 0, with a homography (3, 3) from image 0 to image 1."""
        return cls(size=view.size, matrix=H @ view.matrix)

    def to_image(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map points (N, 2) of the view to the image."""
        return warp_points(self.matrix, points)

    def render(self, image: Photograph, prepare: Prepare) -> tuple[Tensor, Tensor | None]:
        """Return pixels and mask as ``View.render`` does."""
        grid = pixel_grid(self.size).double().numpy()
        depth = grid @ self.matrix[2, :2] + self.matrix[2, 2]
        points = np.where((depth > 1e-9)[:, None], self.to_image(grid), np.inf)
        height, width = image.size
        inside = ((points > -0.5) & (points < [width - 0.5, height - 0.5])).all(axis=1)
        if not inside.any():
            return torch.zeros(1, *self.size).expand(3, -1, -1), torch.zeros(self.size, dtype=torch.bool)
        # Only what the view shows is prepared, and no larger than it is shown, so that it is not undersampled.
        low, high = np.floor(points[inside].min(axis=0)), np.ceil(points[inside].max(axis=0))
        shrink = max(1.0, math.sqrt(np.prod(high - low + 1) / np.count_nonzero(inside)))
        low = np.maximum(low - _BORDER * shrink, 0).astype(int)
        high = np.minimum(high + _BORDER * shrink + 1, [width, height]).astype(int)
        pixels, mask = image.cut((low[0], low[1], high[0], high[1]))
        part = (pixels.shape[1], pixels.shape[2])
        size = shrunk(part, shrink)
        pixels = prepare(pixels, size)
        mask = None if mask is None else resize_mask(mask, size)
        seen = resize_keypoints(points - low, part, size)
        return _sampled(pixels, mask, torch.from_numpy(np.clip(seen, -1e6, 1e6)).float(), self.size)


def shrunk(size: Size, factor: float) -> Size:
    """Return a height and width so many times smaller, at least one pixel."""
    return max(1, round(size[0] / factor)), max(1, round(size[1] / factor))


def _sampled(pixels: Tensor, mask: Tensor | None, points: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Return an image (C, height, width) of what an image (C, h, w) shows at points, and where that is wanted.

    Args:
        pixels: The image to look at.
        mask: (h, w) booleans, true where keypoints are wanted; None for everywhere.
        points: (height width, 2) where to look, row by row.
        size: Height and width of the result.
    """
    extent = points.new_tensor([pixels.shape[2], pixels.shape[1]])
    grid = sampling_grid(points, (pixels.shape[1], pixels.shape[2])).reshape(1, *size, 2).to(pixels.device)
    seen = F.grid_sample(pixels[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    inside = ((points > -0.5) & (points < extent - 0.5)).all(dim=-1).reshape(size)
    # Smeared edges are no keypoints.
    wanted = F.max_pool2d((~inside[None]).float(), 2 * _BORDER + 1, stride=1, padding=_BORDER)[0] == 0
    if mask is not None:
        x, y = points.round().long().unbind(-1)
        at = mask[y.clamp(0, mask.shape[0] - 1), x.clamp(0, mask.shape[1] - 1)].reshape(size)
        wanted &= at
    return seen, wanted


def _rot90(image: Tensor, turns: int) -> Tensor:
    return torch.rot90(image, turns, (-2, -1)) if turns % 4 else image
