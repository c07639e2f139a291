"""What a detector is to learn: points that stand out in two views of the same place, as one class for each cell.

Shapes: B pairs, h w pixels, P peaks a view. Frame: x right, y down, the centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.keypoints.nms import suppress_non_maxima, window_maximum
from keyglue.matching.lightglue.loss import IGNORE
from keyglue.training.homographies import pixel_grid, warp

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

    sigma: float = 1.3
    threshold: float = 1e-4
    density: float = 0.5
    repeat: float = 2.0
    margin: int = 4


def det_hessian(images: Tensor, sigma: float) -> Tensor:
    """Return the scaled determinant of the Hessian (B, h, w) of images (B, 1, h, w): large on blobs, zero on edges."""
    radius = int(3 * sigma + 0.5)
    x = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    gauss = torch.exp(-0.5 * (x / sigma) ** 2)
    gauss = gauss / gauss.sum()
    first = -x / sigma**2 * gauss
    second = (x**2 / sigma**4 - 1 / sigma**2) * gauss
    second = second - second.mean()
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, torch.stack([gauss, first, second])[:, None, None, :])
    columns = torch.stack([second, first, gauss])[:, None, :, None]
    yy, xy, xx = F.conv2d(rows, columns, groups=3).unbind(1)
    return sigma**4 * (xx * yy - xy * xy)


def find_peaks(scores: Tensor, inside: Tensor, settings: DetectionSettings) -> tuple[Tensor, Tensor]:
    """Return the highest local maxima of score maps.

    Args:
        scores: (B, h, w).
        inside: (B, h, w) booleans, false outside the photograph.
        settings: Threshold, density and margin.

    Returns:
        (B, P, 2) x and y, the best first, and (B, P) booleans, false for entries that are none.
    """
    height, width = scores.shape[1:]
    kept = suppress_non_maxima(scores.clamp(min=0), CELL // 2, recovery_rounds=0)
    near_edge = torch.ones_like(inside)
    margin = settings.margin
    near_edge[:, margin : height - margin, margin : width - margin] = False
    cut = (~inside).flatten(1).any(dim=1).nonzero().squeeze(1)
    near_edge[cut] |= window_maximum((~inside[cut]).float(), margin) > 0
    kept = kept.masked_fill(near_edge, 0)
    count = int(settings.density * height * width / CELL**2)
    values, index = kept.flatten(1).topk(count, dim=1)
    points = torch.stack([index % width, index // width], dim=-1)
    return points.to(scores.dtype), values > settings.threshold


def repeated(
    peaks0: Tensor, valid0: Tensor, peaks1: Tensor, valid1: Tensor, H: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Tell which peaks of view 0 view 1 repeats, and where they lie in view 1.

    Args:
        peaks0: (B, P, 2) peaks of view 0, ``valid0`` (B, P) those that count.
        valid0: See ``peaks0``.
        peaks1: (B, P, 2) peaks of view 1.
        valid1: (B, P) those that count.
        H: (B, 3, 3) homographies from view 0 to view 1.
        radius: Largest distance in pixels.

    Returns:
        (B, P) booleans, and (B, P, 2) the peaks mapped to view 1.
    """
    mapped = warp(H, peaks0)
    distance = torch.cdist(mapped.nan_to_num(-1e4), peaks1).masked_fill(~valid1[:, None, :], torch.inf)
    return valid0 & (distance.amin(dim=2) <= radius), mapped


def cell_labels(
    peaks: Tensor, kept: Tensor, H: Tensor, size: tuple[int, int], inside_other: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the class of every cell: the pixel 0 to 63 that holds a keypoint, or 64 for none.

    Of several keypoints in a cell one is drawn at random. The outermost cells, and cells whose centre the other view
    does not see, are ignored: nothing is known of them.

    Args:
        peaks: (B, P, 2) pixels.
        kept: (B, P) booleans: the keypoints among them.
        H: (B, 3, 3) homographies from this view to the other.
        size: Height and width of both views.
        inside_other: (B, h, w) booleans, false where the other view shows nothing of the photograph.
        generator: Source of randomness, on the CPU.

    Returns:
        (B, h / 8, w / 8) int64 classes, -100 to ignore.
    """
    height, width = size
    rows, columns = height // CELL, width // CELL
    pixels = peaks.long()
    cell = (pixels[..., 1] // CELL) * columns + pixels[..., 0] // CELL
    place = (pixels[..., 1] % CELL) * CELL + pixels[..., 0] % CELL
    lots = torch.randint(2**20, kept.shape, generator=generator).to(peaks.device)
    ticket = torch.where(kept, lots * CELL**2 + place, -1)
    won = torch.full((len(peaks), rows * columns), -1, dtype=torch.long, device=peaks.device)
    won = won.scatter_reduce(1, cell, ticket, "amax")
    labels = torch.where(won >= 0, won % CELL**2, CELL**2).unflatten(1, (rows, columns))
    centres = pixel_grid((rows, columns), peaks.device) * CELL + (CELL - 1) / 2
    seen = visible(warp(H, centres), inside_other).unflatten(1, (rows, columns))
    labels = labels.masked_fill(~seen, IGNORE)
    labels[:, [0, -1]] = IGNORE
    labels[:, :, [0, -1]] = IGNORE
    return labels


def visible(points: Tensor, inside: Tensor, margin: int = 0) -> Tensor:
    """Tell which points (B, N, 2), NaN for nowhere, lie in a view, ``margin`` from its edge, and on the photograph."""
    height, width = inside.shape[1:]
    x, y = points.round().unbind(-1)
    within = (x >= margin) & (x < width - margin) & (y >= margin) & (y < height - margin)
    index = (y.nan_to_num(0).clamp(0, height - 1) * width + x.nan_to_num(0).clamp(0, width - 1)).long()
    return within & inside.flatten(1).gather(1, index)


def cell_loss(logits: Tensor, labels: Tensor, spread: float = 0.0) -> Tensor:
    """Return the cross entropy of logits (B, 65, h/8, w/8) with cell labels (B, h/8, w/8), zero if all are ignored.

    Args:
        logits: Of the cells' pixels, and of "no keypoint".
        labels: Classes, -100 to ignore.
        spread: Standard deviation in pixels over which a keypoint's label is spread inside its cell. At the beginning
            this gives the network a slope to follow; 0 gives the plain cross entropy.
    """
    known = labels != IGNORE
    targets = _spread_labels(spread, logits.device)[labels[known]]
    log_probability = logits.float().movedim(1, -1)[known].log_softmax(dim=-1)
    return -(targets * log_probability).sum() / known.sum().clamp(min=1)


def _spread_labels(spread: float, device: torch.device) -> Tensor:
    """Return (65, 65): for each class the distribution that stands for it."""
    targets = torch.eye(CELL**2 + 1, device=device)
    if spread > 0:
        places = pixel_grid((CELL, CELL), device)
        nearness = torch.exp(-0.5 * (torch.cdist(places, places) / max(spread, 0.1)) ** 2)
        targets[: CELL**2, : CELL**2] = nearness / nearness.sum(dim=1, keepdim=True)
    return targets
