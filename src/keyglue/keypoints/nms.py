"""Choosing keypoints from a map of scores: non-maximum suppression, border, threshold, the best k, sub-pixel places."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def window_maximum(scores: Tensor, radius: int) -> Tensor:
    """Return the maximum of each (2 radius + 1)-sized square window; rows then columns, which gives the same answer.

    Args:
        scores: (B, h, w).
        radius: Half width of the window in pixels.
    """
    size = 2 * radius + 1
    rows = F.max_pool2d(scores[:, None], (1, size), stride=1, padding=(0, radius))
    return F.max_pool2d(rows, (size, 1), stride=1, padding=(radius, 0))[:, 0]


def suppress_non_maxima(scores: Tensor, radius: int, recovery_rounds: int = 2) -> Tensor:
    """Keep the scores that are the largest within ``radius`` pixels and set all others to zero.

    A point that only a suppressed point had beaten is recovered, in two rounds, as in SuperPoint's published code.

    Args:
        scores: (B, h, w), not negative.
        radius: Suppression radius in pixels; 0 keeps everything.
        recovery_rounds: How often points outside the reach of the kept ones are looked at again.

    Returns:
        (B, h, w) scores, zero where suppressed.
    """
    if radius == 0:
        return scores
    kept = scores == window_maximum(scores, radius)
    for _ in range(recovery_rounds):
        reached = window_maximum(kept.to(scores.dtype), radius) > 0
        rest = scores.masked_fill(reached, 0)
        kept |= (rest == window_maximum(rest, radius)) & ~reached
    return scores.masked_fill(~kept, 0)


def select_keypoints(
    scores: Tensor, threshold: float, border: int, max_keypoints: int, *, border_right_bottom: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the pixels of one score map that are above the threshold and inside the border, the best at most.

    Args:
        scores: (h, w) after suppression.
        threshold: Scores must be larger than it.
        border: Pixels nearer than this to an edge are left out.
        max_keypoints: Largest number to return, the best first; -1 returns all in reading order.
        border_right_bottom: Whether the border holds at the right and bottom edges too.

    Returns:
        Keypoints (N, 2) as x, y in pixels (float32) and their scores (N,).
    """
    height, width = scores.shape
    keep = scores > threshold
    if border > 0:
        keep[:border] = False
        keep[:, :border] = False
        if border_right_bottom:
            keep[max(height - border, 0) :] = False
            keep[:, max(width - border, 0) :] = False
    rows, columns = torch.nonzero(keep, as_tuple=True)
    values = scores[rows, columns]
    if 0 <= max_keypoints < len(values):
        values, best = torch.topk(values, max_keypoints)
        rows, columns = rows[best], columns[best]
    return torch.stack([columns, rows], dim=1).to(torch.float32), values


def refine_keypoints(keypoints: Tensor, scores: Tensor, radius: int) -> Tensor:
    """Move each keypoint to the centre of mass of the scores around it, which places it between pixels.

    Args:
        keypoints: (N, 2) x, y in whole pixels.
        scores: (h, w) before suppression.
        radius: Half width of the square window in pixels; 0 leaves the keypoints as they are.

    Returns:
        (N, 2) x, y in pixels, at most ``radius`` away along each axis.
    """
    if radius == 0 or len(keypoints) == 0:
        return keypoints
    reach = torch.arange(-radius, radius + 1, device=scores.device)
    offsets = torch.stack(torch.meshgrid(reach, reach, indexing="xy"), dim=-1).flatten(0, 1)
    columns, rows = (keypoints.long()[:, None] + offsets).unbind(-1)
    # Outside the map nothing weighs anything.
    padded = F.pad(scores, (radius,) * 4)
    weights = padded[rows + radius, columns + radius]
    shift = weights @ offsets.to(weights) / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return keypoints + shift
