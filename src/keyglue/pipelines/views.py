"""Views: a part of an image, resized and turned, as the model gets to see it.

Shapes: C channels, h w pixels. Frame: x right, y down, the centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from keyglue.images.coordinates import cosine_sine, resize_keypoints, turned_size, unturn_keypoints
from keyglue.images.resize import resize_mask

Float = NDArray[np.float64]
Complex = NDArray[np.complexfloating[Any, Any]]
Size = tuple[int, int]

# Matches whose best ones every hypothesis is made of, and the shortest distance of two that make one, as a share of
# the diagonal.
_SEEDS, _SHORTEST = 40, 0.01
# A similarity is only what all matches have in common roughly: largest error as a share of the diagonal.
_TOLERANCE = 0.08


class MaskedImage(NamedTuple):
    """An image with what is wanted of it.

    Args:
        pixels: (C, h, w) from 0 to 255.
        mask: (h, w) booleans, true where keypoints are wanted; None for everywhere.
    """

    pixels: Tensor
    mask: Tensor | None

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[2]


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

    def to_image(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map points (N, 2) of the view to the image."""
        left, top, right, bottom = self.part
        upright = unturn_keypoints(points, self.degrees, self.size) if self.degrees else points
        resized = resize_keypoints(upright, self.size, (bottom - top, right - left))
        return resized + np.array([left, top], resized.dtype)

    def render(self, image: MaskedImage, prepare: Callable[[Tensor, Size], Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the pixels (C, h, w) of the view, and where keypoints are wanted (h, w), None for everywhere.

        Args:
            image: The image.
            prepare: Resizes pixels to a height and width, and does what else the model wants.
        """
        left, top, right, bottom = self.part
        part, mask = image.pixels[:, top:bottom, left:right], image.mask
        if mask is not None:
            mask = mask[top:bottom, left:right]
        turns = self.degrees / 90
        if turns == int(turns):  # turned first, so that an image and its turned copy become the same pixels
            size = turned_size(self.size, self.degrees)
            pixels = prepare(_rot90(part, int(turns)), size)
            return pixels, None if mask is None else resize_mask(_rot90(mask, int(turns)), size)
        pixels = prepare(part, self.size)
        mask = None if mask is None else resize_mask(mask, self.size)
        wanted = torch.ones(self.size, dtype=torch.bool) if mask is None else mask
        pixels, inside = self._turn(pixels, "bilinear", "border"), self._turn(wanted[None].float(), "nearest", "zeros")
        return pixels, inside[0] > 0.5

    def _turn(self, image: Tensor, mode: str, outside: str) -> Tensor:
        """Return an image (C, h, w) turned inside the smallest rectangle that holds it."""
        height, width = turned_size(self.size, self.degrees)
        cosine, sine = cosine_sine(self.degrees)
        # In grid_sample's coordinates edges lie at -1 and 1, so lengths are shares of half the sides.
        tall, wide = self.size
        theta = torch.tensor(
            [[cosine * width / wide, -sine * height / wide, 0], [sine * width / tall, cosine * height / tall, 0]],
            dtype=torch.float32,
        )
        grid = F.affine_grid(theta[None], [1, 1, height, width], align_corners=False).to(image.device)
        return F.grid_sample(image[None], grid, mode=mode, padding_mode=outside, align_corners=False)[0]


def _rot90(image: Tensor, turns: int) -> Tensor:
    return torch.rot90(image, turns, (-2, -1)) if turns % 4 else image


class Similarity(NamedTuple):
    """Roughly where things of image 0 are in image 1: x1 = factor x0 + shift, with points x + iy.

    Args:
        factor: How much larger things are in image 1, and how far turned (clockwise, because y points down).
        shift: In pixels of image 1.
        inliers: (S,) booleans, the matches that agree.
        support: Sum of their scores.
    """

    factor: complex
    shift: complex
    inliers: NDArray[np.bool_]
    support: float

    @property
    def degrees(self) -> float:
        """How far image 1 has to be turned counter-clockwise to be the same way up as image 0, from 0 to 360."""
        return math.degrees(np.angle(self.factor)) % 360


def find_similarity(points0: Float, points1: Float, scores: Float, size0: Size, size1: Size) -> Similarity | None:
    """Return the similarity that most matches roughly agree with: the images need not be planes, or the same scale.

    All pairs of the best matches are tried, so the same matches always give the same answer.

    Args:
        points0: (S, 2) matched points of image 0.
        points1: (S, 2) where they are in image 1.
        scores: (S,) scores of the matches.
        size0: Height and width of image 0.
        size1: Height and width of image 1.

    Returns:
        The similarity, or None where the matches allow none.
    """
    from0, to1 = _complex(points0), _complex(points1)
    diagonal0, diagonal1 = math.hypot(*size0), math.hypot(*size1)
    best = np.argsort(-scores, kind="stable")[:_SEEDS]
    first, second = (best[index] for index in np.triu_indices(len(best), 1))
    span0, span1 = from0[first] - from0[second], to1[first] - to1[second]
    apart = (np.abs(span0) > _SHORTEST * diagonal0) & (np.abs(span1) > _SHORTEST * diagonal1)
    first, span0, span1 = first[apart], span0[apart], span1[apart]
    if not len(first):
        return None
    factors = span1 / span0
    shifts = to1[first] - factors * from0[first]

    def agreeing(factors: Complex, shifts: Complex) -> NDArray[np.bool_]:
        error = np.abs(factors[:, None] * from0 + shifts[:, None] - to1)
        near = error < _TOLERANCE * diagonal1
        return near & (error < _TOLERANCE * diagonal0 * np.abs(factors)[:, None])

    inliers = agreeing(factors, shifts)
    winner = int((inliers @ scores).argmax())
    factor, shift, inside = complex(factors[winner]), complex(shifts[winner]), inliers[winner]
    for _ in range(3):  # least squares on those that agree
        weights = scores * inside
        if np.count_nonzero(weights) < 2:
            return None
        centre0, centre1 = (weights @ points / weights.sum() for points in (from0, to1))
        spread = weights @ np.abs(from0 - centre0) ** 2
        if spread <= 0:
            return None
        factor = complex(weights @ ((to1 - centre1) * (from0 - centre0).conj()) / spread)
        shift = complex(centre1 - factor * centre0)
        if factor == 0:
            return None
        inside = agreeing(np.array([factor]), np.array([shift]))[0]
    return Similarity(factor, shift, inside, float(scores @ inside))


def _complex(points: Float) -> Complex:
    return points[:, 0] + 1j * points[:, 1]


def common_parts(
    similarity: Similarity, points0: Float, points1: Float, size0: Size, size1: Size, margin: float = 0.1
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Return the part of each image that the other one shows too, as ``View.part`` takes it.

    Args:
        similarity: Where things of image 0 are in image 1.
        points0: (S, 2) matched points of image 0.
        points1: (S, 2) where they are in image 1.
        size0: Height and width of image 0.
        size1: Height and width of image 1.
        margin: What is added on each side, as a share of the part's sides.
    """
    factor, shift, inliers, _ = similarity

    def corners(size: Size) -> Complex:
        height, width = size
        return np.array([0, width, width + 1j * height, 1j * height]) - 0.5 - 0.5j

    def box(there: Complex, matched: Float, size: Size) -> tuple[int, int, int, int]:
        extent = np.array([size[1], size[0]])
        # What the similarity says the other image shows, and where matches are in any case.
        shown = np.clip(np.c_[there.real, there.imag], -0.5, extent - 0.5)
        low = np.minimum(shown.min(0), matched.min(0))
        high = np.maximum(shown.max(0), matched.max(0))
        room = margin * (high - low) + 8
        low, high = np.maximum(np.floor(low - room), 0), np.minimum(np.ceil(high + room), extent)
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])

    part0 = box((corners(size1) - shift) / factor, points0[inliers], size0)
    return part0, box(corners(size0) * factor + shift, points1[inliers], size1)
