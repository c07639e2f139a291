"""Choosing keypoints from a map of scores: non-maximum suppression, border, threshold, the best k."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Where more than one pixel in so many may be a keypoint, suppression looks at all pixels.
_DENSE = 2


def window_maximum(scores: Tensor, radius: int) -> Tensor:
    """Return the maximum of each (2 radius + 1)-sized square window, rows first, then columns.

    Each step doubles the length that a value stands for, so a window costs the logarithm of its size.

    Args:
        scores: (B, h, w), not negative.
        radius: Half width of the window in pixels.
    """
    size = 2 * radius + 1
    padded = F.pad(scores, (radius,) * 4)
    return _running_maximum(_running_maximum(padded, size, 2), size, 1)


def _running_maximum(x: Tensor, size: int, dim: int) -> Tensor:
    """Return the maximum of every ``size`` neighbours along a dimension, which gets ``size - 1`` shorter."""
    covered = 1
    while covered < size:
        step = min(covered, size - covered)
        length = x.shape[dim] - step
        x = torch.maximum(x.narrow(dim, 0, length), x.narrow(dim, step, length))
        covered += step
    return x


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
        reached = window_maximum(kept.to(torch.uint8), radius) > 0
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
        max_keypoints: Largest number to return, the best first, equal ones in reading order; -1 returns all in reading
            order.
        border_right_bottom: Whether the border holds at the right and bottom edges too.

    Returns:
        Keypoints (N, 2) as x, y in pixels (float32) and their scores (N,).
    """
    return find_keypoints(scores, 0, threshold, border, max_keypoints, border_right_bottom=border_right_bottom)


def find_keypoints(
    scores: Tensor,
    radius: int,
    threshold: float,
    border: int,
    max_keypoints: int,
    *,
    border_right_bottom: bool = True,
    recovery_rounds: int = 2,
) -> tuple[Tensor, Tensor]:
    """Suppress and select in one go: the same keypoints, without recovering points that could not be selected.

    A point can only be suppressed by one that scores at least as high. So scores below a bound change nothing above
    it, and where there are more maxima than wanted, the best one that is left out is such a bound.

    Args:
        scores: (h, w), not negative.
        radius: As for ``suppress_non_maxima``.
        threshold: As for ``select_keypoints``, as are the others.
        border: Pixels.
        max_keypoints: Largest number.
        border_right_bottom: Whether the border holds there.
        recovery_rounds: As for ``suppress_non_maxima``.

    Returns:
        Keypoints (N, 2) as x, y in pixels (float32) and their scores (N,).
    """

    def selected(index: Tensor) -> Tensor:
        return index[_inside(index // width, index % width, scores.shape, border, border_right_bottom)]

    width = scores.shape[1]
    flat = scores.flatten()
    if radius == 0 or max_keypoints == 0:
        return _best(selected(torch.nonzero(flat > threshold)[:, 0]), scores, max_keypoints)
    bound = torch.nextafter(flat.new_tensor(threshold), flat.new_tensor(torch.inf))
    above = flat >= bound
    if max_keypoints < 0 and int(above.sum()) > len(flat) // _DENSE:
        kept = suppress_non_maxima(scores[None], radius, recovery_rounds).flatten()
        return _best(selected(torch.nonzero(kept >= bound)[:, 0]), scores, max_keypoints)
    peaks = torch.nonzero(flat == window_maximum(scores[None], radius).flatten().clamp_(min=bound))[:, 0]
    possible = selected(peaks)
    if 0 < max_keypoints < len(possible):
        bound = flat[possible].topk(max_keypoints + 1).values[-1]
        peaks, above = peaks[flat[peaks] >= bound], flat >= bound
    # One sparse round after the other; ``rest`` are the pixels that no kept one reaches.
    rest = torch.nonzero(above)[:, 0]
    mark = torch.zeros_like(scores, dtype=torch.uint8)
    found, kept = peaks, [peaks]
    for _ in range(recovery_rounds):
        mark.view(-1)[found] = 1
        rest = rest[_window_maximum_at(mark, rest, radius) == 0]
        if len(rest) == 0:
            break
        left = torch.zeros_like(flat)
        left[rest] = flat[rest]
        found = rest[flat[rest] == _window_maximum_at(left.view_as(scores), rest, radius)]
        kept.append(found)
    return _best(selected(torch.cat(kept).sort().values), scores, max_keypoints)


def _window_maximum_at(scores: Tensor, index: Tensor, radius: int) -> Tensor:
    """Return ``window_maximum`` of one map (h, w) at some of its pixels (N,), each by itself where they are few."""
    size, width = 2 * radius + 1, scores.shape[1]
    if len(index) * size**2 > scores.numel():
        return window_maximum(scores[None], radius).flatten()[index]
    windows = F.pad(scores, (radius,) * 4).unfold(0, size, 1).unfold(1, size, 1)
    return windows[index // width, index % width].amax(dim=(1, 2))


def _inside(rows: Tensor, columns: Tensor, size: torch.Size, border: int, right_bottom: bool) -> Tensor:
    """Tell which pixels (N,) keep their distance from the edges of a map (h, w)."""
    inside = (rows >= border) & (columns >= border)
    if right_bottom:
        inside &= (rows < size[0] - border) & (columns < size[1] - border)
    return inside


def _best(index: Tensor, scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return keypoints (N, 2) and scores (N,) of pixels in reading order: all, or the best if there are too many."""
    values = scores.flatten()[index]
    if 0 <= most < len(values):
        # Stable, so that which of equal ones are left out is the same everywhere.
        values, order = values.sort(descending=True, stable=True)
        values, index = values[:most], index[order[:most]]
    width = scores.shape[1]
    return torch.stack([index % width, index // width], dim=1).to(torch.float32), values
