"""What a detector is to learn: points that stand out in two views of the same place, as one class for each cell.

Shapes: B pairs, h w pixels, P peaks a view. Frame: x right, y down, the centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from keyglue.images.coordinates import pixel_grid
from keyglue.keypoints.nms import suppress_non_maxima, window_maximum
from keyglue.keypoints.refinement import vertices
from keyglue.matching.lightglue.loss import IGNORE
from keyglue.training.homographies import warp

CELL = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """How the points are found.

    Attributes:
        sigma: Standard deviation in pixels of the blur before the second derivatives are taken.
        threshold: Smallest determinant of the Hessian, scaled by sigma^4, of gray values from 0 to 1.
        density: Most peaks a cell of 8 x 8 pixels, on average over a view.
        repeat: A peak counts where the other view has one within this many pixels.
        margin: Peaks nearer than this many pixels to the edge of the view or of the photograph don't count.
    """

    sigma: float = 2.0
    threshold: float = 1e-4
    density: float = 0.5
    repeat: float = 2.0
    margin: int = 4


def find_peaks(scores: Tensor, inside: Tensor, settings: DetectionSettings) -> tuple[Tensor, Tensor]:
    """Return the highest local maxima of score maps.

    Args:
        scores: (B, h, w).
        inside: (B, h, w) booleans, false outside the photograph.
        settings: Threshold, density and margin.

    Returns:
        (B, P, 2) x and y between pixels, the best first, and (B, P) booleans, false for entries that are none.
    """
    height, width = scores.shape[1:]
    scores = scores.clamp(min=0)
    kept = suppress_non_maxima(scores, CELL // 2, recovery_rounds=0)
    near_edge = torch.ones_like(inside)
    margin = settings.margin
    near_edge[:, margin : height - margin, margin : width - margin] = False
    cut = (~inside).flatten(1).any(dim=1).nonzero().squeeze(1)
    near_edge[cut] |= window_maximum((~inside[cut]).float(), margin) > 0
    kept = kept.masked_fill(near_edge, 0)
    count = int(settings.density * height * width / CELL**2)
    values, index = kept.flatten(1).topk(count, dim=1)
    points = torch.stack([index % width, index // width], dim=-1)
    return points.to(scores.dtype) + vertices(scores, index), values > settings.threshold


def repeated(
    peaks0: Tensor, valid0: Tensor, peaks1: Tensor, valid1: Tensor, H: Tensor, H_back: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Tell which peaks of view 0 view 1 repeats, and where the two views agree that they are.

    Args:
        peaks0: (B, P, 2) peaks of view 0, ``valid0`` (B, P) those that count.
        valid0: See ``peaks0``.
        peaks1: (B, P, 2) peaks of view 1.
        valid1: (B, P) those that count.
        H: (B, 3, 3) homographies from view 0 to view 1.
        H_back: (B, 3, 3) the way back.
        radius: Largest distance in pixels.

    Returns:
        (B, P) booleans, and (B, P, 2) the middle, in view 0, between each such peak and the one that repeats it;
        the peaks themselves where there is none.
    """
    distance = torch.cdist(warp(H, peaks0).nan_to_num(-1e4), peaks1).masked_fill(~valid1[:, None, :], torch.inf)
    nearest, partner = distance.min(dim=2)
    kept = valid0 & (nearest <= radius)
    back = warp(H_back, peaks1.gather(1, partner[..., None].expand(-1, -1, 2)))
    # Where this view is much larger, two pixels of the other are many here.
    kept &= (back - peaks0).norm(dim=2).nan_to_num(torch.inf) <= 2 * radius
    return kept, torch.where(kept[..., None], 0.5 * (peaks0 + back), peaks0)


class CellLabels(NamedTuple):
    """What each cell holds.

    Args:
        classes: (B, h/8, w/8) int64: the pixel 0 to 63 that holds the keypoint, 64 for none, -100 for unknown.
        places: (B, h/8, w/8, 2) x and y of the keypoint from the centre of the cell's first pixel; any where none is.
    """

    classes: Tensor
    places: Tensor


def cell_labels(
    points: Tensor, kept: Tensor, H: Tensor, size: tuple[int, int], inside_other: Tensor, generator: torch.Generator
) -> CellLabels:
    """Return what every cell holds.

    Of several keypoints in a cell one is drawn at random. The outermost cells, and cells whose centre the other view
    does not see, are ignored: nothing is known of them.

    Args:
        points: (B, P, 2) x and y.
        kept: (B, P) booleans: the keypoints among them.
        H: (B, 3, 3) homographies from this view to the other.
        size: Height and width of both views.
        inside_other: (B, h, w) booleans, false where the other view shows nothing of the photograph.
        generator: Source of randomness, on the CPU.
    """
    height, width = size
    rows, columns, count = height // CELL, width // CELL, points.shape[1]
    x, y = points.round().long().unbind(-1)
    kept = kept & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    cell = (y // CELL * columns + x // CELL).masked_fill(~kept, 0)
    lots = torch.randint(2**20, kept.shape, generator=generator).to(points.device)
    ticket = torch.where(kept, lots * count + torch.arange(count, device=points.device), -1)
    won = torch.full((len(points), rows * columns), -1, dtype=torch.long, device=points.device)
    won = won.scatter_reduce(1, cell, ticket, "amax")
    winner = won.clamp(min=0) % count
    pixel = (y % CELL * CELL + x % CELL).gather(1, winner)
    classes = torch.where(won >= 0, pixel, CELL**2).unflatten(1, (rows, columns))
    corners = pixel_grid((rows, columns), points.device) * CELL
    seen = visible(warp(H, corners + (CELL - 1) / 2), inside_other).unflatten(1, (rows, columns))
    classes = classes.masked_fill(~seen, IGNORE)
    classes[:, [0, -1]] = IGNORE
    classes[:, :, [0, -1]] = IGNORE
    places = points.gather(1, winner[..., None].expand(-1, -1, 2)) - corners
    return CellLabels(classes, places.unflatten(1, (rows, columns)))


def visible(points: Tensor, inside: Tensor, margin: int = 0) -> Tensor:
    """Tell which points (B, N, 2), NaN for nowhere, lie in a view, ``margin`` from its edge, and on the photograph."""
    height, width = inside.shape[1:]
    x, y = points.round().unbind(-1)
    within = (x >= margin) & (x < width - margin) & (y >= margin) & (y < height - margin)
    index = (y.nan_to_num(0).clamp(0, height - 1) * width + x.nan_to_num(0).clamp(0, width - 1)).long()
    return within & inside.flatten(1).gather(1, index)


def cell_loss(logits: Tensor, labels: CellLabels, spread: float = 0.0) -> Tensor:
    """Return the cross entropy of logits (B, 65, h/8, w/8) with what the cells hold, zero if nothing is known.

    A keypoint between pixels is shared among the pixels around it, so that their centre of mass is its place.

    Args:
        logits: Of the cells' pixels, and of "no keypoint".
        labels: What the cells hold.
        spread: Standard deviation in pixels over which a keypoint's label is spread inside its cell. At the beginning
            this gives the network a slope to follow; below half a pixel there is none.
    """
    known = labels.classes != IGNORE
    classes = labels.classes[known]
    targets = torch.zeros(len(classes), CELL**2 + 1, device=logits.device)
    targets[:, -1] = (classes == CELL**2).float()
    holds = classes != CELL**2
    targets[holds, :-1] = _shares(labels.places[known][holds], spread)
    log_probability = logits.float().movedim(1, -1)[known].log_softmax(dim=-1)
    return -(targets * log_probability).sum() / known.sum().clamp(min=1)


def _shares(places: Tensor, spread: float) -> Tensor:
    """Return how much of keypoints (N, 2) each pixel of their cell holds, (N, 64), in all 1."""
    offsets = pixel_grid((CELL, CELL), places.device) - places[:, None]
    if spread < 0.5:
        shares = (1 - offsets.abs()).clamp(min=0).prod(dim=-1)
    else:
        shares = torch.exp(-0.5 * offsets.square().sum(dim=-1) / spread**2)
    return shares / shares.sum(dim=1, keepdim=True)
