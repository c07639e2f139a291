"""Matched points moved to where the two images themselves agree, and matches around which they do not dropped.

A detector finds a place to about a pixel, in each image for itself. The surroundings of a match say how the two places
lie to each other much more closely: what image 0 shows around its point is laid over image 1. How far it is turned,
scaled and sheared there is taken from the matches nearby.

Shapes: h w pixels, S matches. Frame: x right, y down, the centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyglue.images.registration import Registration, Window, register, smooth, take_patches

# Half width of the patches in pixels, and steps of the registration.
_RADIUS, _ITERATIONS = 8, 6
# Points move no farther than this, in pixels of the image.
_FARTHEST = 3.0
# Images whose normalised cross-correlation around a match is smaller are not believed to show the same there: of one
# of score 0, and how much smaller it may be for one of score 1.
_ALIKE, _TRUST = 0.85, 0.3
# Matches nearby that tell how image 1 is warped, and fewest that do.
_NEARBY, _FEWEST = 12, 3
# How much the similarity counts against one match nearby, the error from which on such a match loses weight as a share
# of their usual distance, and rounds of reweighting.
_PRIOR, _OUTLYING, _ROUNDS = 0.1, 0.2, 4
# Distances are computed for so many matches at once, and so many are registered: what fits into a processor's cache.
_CHUNK, _AT_ONCE = 1024, 100


class Refined(NamedTuple):
    """Matches as the images have them.

    Args:
        points1: (S, 2) points of image 1, moved where that makes the images more alike.
        alike: (S,) booleans, false where the images show different things around a match; the less sure it is, the more
            alike they have to be.
    """

    points1: Tensor
    alike: Tensor


def refine_matches(
    image0: Tensor, image1: Tensor, points0: Tensor, points1: Tensor, scores: Tensor, wanted1: Tensor | None = None
) -> Refined:
    """Move matched points of image 1 to where it shows what image 0 shows around theirs.

    Args:
        image0: (h, w) brightness from 0 to 1.
        image1: (h, w) the same of the other image, in which things are about as large.
        points0: (S, 2) matched points of image 0.
        points1: (S, 2) where they are in image 1, to a few pixels.
        scores: (S,) scores of the matches.
        wanted1: (h, w) booleans, false where no point of image 1 may move to; None for nowhere.
    """
    window = Window.gaussian(_RADIUS)
    image0, image1 = smooth(image0), smooth(image1)
    parts = [part.split(_AT_ONCE) for part in (points0, points1, local_warps(points0, points1, scores))]
    registrations = [
        register(image1, take_patches(image0, at, window), near, warp, window, _ITERATIONS, affine=False)
        for at, near, warp in zip(*parts, strict=True)
    ]
    found = Registration(*map(torch.cat, zip(*registrations, strict=True)))
    better = (found.similarity > found.expected_similarity) & (found.shift.norm(dim=1) < _FARTHEST)
    if wanted1 is not None:
        x, y = (points1 + found.shift).round().long().unbind(1)
        better &= wanted1[y.clamp(0, wanted1.shape[0] - 1), x.clamp(0, wanted1.shape[1] - 1)]
    similarity = torch.where(better, found.similarity, found.expected_similarity)
    return Refined(points1 + torch.where(better[:, None], found.shift, 0), similarity > _ALIKE - _TRUST * scores)


def local_warps(points0: Tensor, points1: Tensor, scores: Tensor) -> Tensor:
    """Return (S, 2, 2) maps from offsets in image 0 to offsets in image 1, as the matches around each match have them.

    Weighted least squares, drawn to the similarity that most of these agree on, again and again with less weight for
    those that do not fit.

    Args:
        points0: (S, 2) matched points of image 0.
        points1: (S, 2) where they are in image 1.
        scores: (S,) scores of the matches.
    """
    identity = torch.eye(2)
    count = min(_NEARBY, len(points0) - 1)
    if count < _FEWEST:
        return identity.repeat(len(points0), 1, 1)
    chunks = [torch.cdist(part, points0).topk(count + 1, largest=False).indices for part in points0.split(_CHUNK)]
    near = torch.cat(chunks)[:, 1:]  # the nearest is the match itself
    offsets0, offsets1 = points0[near] - points0[:, None], points1[near] - points1[:, None]
    unit = offsets0.norm(dim=2).median(dim=1).values.clamp(min=1)[:, None, None]
    offsets0, offsets1 = offsets0 / unit, offsets1 / unit
    scores = scores[near]
    prior = warps = _similarities(offsets0, offsets1, scores)
    for _ in range(_ROUNDS):
        weighted = offsets0 * _fitting(warps, offsets0, offsets1, scores)[..., None]
        moments = weighted.transpose(1, 2) @ offsets0 + _PRIOR * identity
        products = offsets1.transpose(1, 2) @ weighted + _PRIOR * prior
        warps = products @ torch.linalg.inv(moments)
    return warps


def _similarities(offsets0: Tensor, offsets1: Tensor, scores: Tensor) -> Tensor:
    """Return (S, 2, 2) turns with a size that most of the matches around each match agree on: one of theirs."""
    x, y = offsets0.unbind(dim=2)
    u, v = offsets1.unbind(dim=2)
    square = (x * x + y * y).clamp(min=1e-3)
    along, across = (x * u + y * v) / square, (x * v - y * u) / square
    turns = torch.stack([along, -across, across, along], dim=2).unflatten(2, (2, 2))  # (S, K, 2, 2)
    support = _fitting(turns, offsets0[:, None], offsets1[:, None], scores[:, None]).sum(dim=2)
    return turns[torch.arange(len(turns)), support.argmax(dim=1)]


def _fitting(warps: Tensor, offsets0: Tensor, offsets1: Tensor, scores: Tensor) -> Tensor:
    """Return scores (..., K), less where offsets (..., K, 2) do not fit warps (..., 2, 2)."""
    errors = (offsets0 @ warps.transpose(-1, -2) - offsets1).square().sum(dim=-1)
    return scores / (1 + errors / _OUTLYING**2) ** 2
