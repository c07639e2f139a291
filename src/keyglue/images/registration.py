"""Patches of one image laid over another, to a small part of a pixel.

Inverse compositional Gauss-Newton (Baker and Matthews, IJCV 2004) over a shift or an affine warp, brightness and
contrast free.

Shapes: h w pixels, n patches, s samples of a patch. Frame: x right, y down, the centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.images.coordinates import sampling_grid

_SMOOTHING = 0.8  # pixels
_LONGEST_STEP, _LARGEST_CHANGE = 2.0, 0.3
# Steps along what the patch does not show are damped by this share of the mean of the Hessian's diagonal.
_DAMPING = 1e-3


class Window(NamedTuple):
    """Where a patch is sampled.

    Args:
        offsets: (s, 2) from its centre, in pixels.
        weights: (s,) how much each sample counts; they sum to one.
    """

    offsets: Tensor
    weights: Tensor

    @classmethod
    def gaussian(cls, radius: int) -> Window:
        """Return a square of a half width whose samples count less away from its centre, by a Gaussian."""
        reach = torch.arange(-radius, radius + 1, dtype=torch.float32)
        offsets = torch.stack(torch.meshgrid(reach, reach, indexing="xy"), dim=-1).flatten(0, 1)
        weights = torch.exp(-3 * (offsets / (radius + 1)).square().sum(dim=1))
        return cls(offsets, weights / weights.sum())


class Registration(NamedTuple):
    """Where patches came to lie.

    Args:
        shift: (n, 2) from where they were expected, in pixels of the other image; 0 where that came to nothing finite.
        similarity: (n,) normalised cross-correlation there, from -1 to 1.
        expected_similarity: (n,) the same where they were expected.
        change: (n,) largest change of an entry of the warp.
    """

    shift: Tensor
    similarity: Tensor
    expected_similarity: Tensor
    change: Tensor


def smooth(image: Tensor) -> Tensor:
    """Filter an image (h, w) by a small Gaussian, so that it may be interpolated and its slopes are calm."""
    reach = torch.arange(3).float()
    weights = torch.exp(-reach.square() / (2 * _SMOOTHING**2))
    centre, near, far = (weights / (2 * weights.sum() - weights[0])).tolist()
    # Sums of shifted rows: for one channel several times as fast as a convolution on a CPU.
    rows = F.pad(image[None, None], (0, 0, 2, 2), mode="replicate")[0, 0]
    down = centre * rows[2:-2] + near * (rows[1:-3] + rows[3:-1]) + far * (rows[:-4] + rows[4:])
    columns = F.pad(down[None, None], (2, 2, 0, 0), mode="replicate")[0, 0]
    return (
        centre * columns[:, 2:-2]
        + near * (columns[:, 1:-3] + columns[:, 3:-1])
        + far * (columns[:, :-4] + columns[:, 4:])
    )


def take_patches(image: Tensor, centres: Tensor, window: Window) -> Tensor:
    """Cut patches out.

    Args:
        image: (h, w), smooth.
        centres: (n, 2) pixels.
        window: Where patches are sampled.

    Returns:
        (n, 3, s) brightness and its slopes along x and y.
    """
    samples = centres[:, None] + window.offsets
    half = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    slopes = [_sample(image, samples + step) - _sample(image, samples - step) for step in half]
    return torch.stack([_sample(image, samples), *slopes], dim=1)


def register(
    image: Tensor,
    patches: Tensor,
    start: Tensor,
    warp: Tensor,
    window: Window,
    iterations: int,
    *,
    affine: bool,
) -> Registration:
    """Find where patches of one image lie in another.

    Args:
        image: (h, w) the other image, smooth.
        patches: (n, 3, s) as ``take_patches`` returns them.
        start: (n, 2) where their centres are expected.
        warp: (n, 2, 2) expected map from offsets in their image to offsets in the other.
        window: What they were sampled with.
        iterations: Number of steps.
        affine: Find the warp anew, too; else only the place.
    """
    weights = window.weights
    radius = window.offsets.max()
    wanted, deviation = _standardised(patches[:, 0], weights)
    slopes = patches[:, 1:].transpose(1, 2) / deviation[..., None]  # (n, s, 2)
    scaled = window.offsets / radius
    linear_part = [slopes[..., :1] * scaled, slopes[..., 1:] * scaled] if affine else []
    steepest = torch.cat([slopes, *linear_part], dim=-1)  # (n, s, 6): shift, then rows of the linear part
    weighted = steepest * weights[:, None]
    hessian = weighted.transpose(1, 2) @ steepest
    damping = _DAMPING * hessian.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-9)
    inverse = torch.linalg.inv_ex(hessian + damping[:, None, None] * torch.eye(hessian.shape[1])).inverse
    shift = torch.zeros(len(start), 2)
    linear = torch.eye(2).repeat(len(start), 1, 1)
    spread = _spread(window, warp)
    found, expected_similarity = _look(image, start, spread, window, wanted)
    similarity, moved = expected_similarity, shift
    for _ in range(iterations):
        step = (inverse @ (weighted.transpose(1, 2) @ (found - wanted)[..., None]))[..., 0]
        step = step.nan_to_num().clamp(-_LONGEST_STEP, _LONGEST_STEP)
        if affine:
            change = step[:, 2:].unflatten(1, (2, 2)).clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE) / radius
            # The step warps the patch; its inverse is put before the warp so far.
            linear = linear @ torch.linalg.inv(torch.eye(2) + change)
            spread = _spread(window, warp @ linear)
        shift = shift - (linear @ step[:, :2, None])[..., 0]
        moved = (warp @ shift[..., None])[..., 0]
        found, similarity = _look(image, start + moved, spread, window, wanted)
    sound = moved.isfinite().all(dim=1)
    return Registration(
        shift=torch.where(sound[:, None], moved, 0),
        similarity=torch.where(sound, similarity, -1),
        expected_similarity=expected_similarity,
        change=(linear - torch.eye(2)).abs().amax(dim=(1, 2)),
    )


def _spread(window: Window, warp: Tensor) -> Tensor:
    """Return the offsets of samples (n, s, 2) as warps (n, 2, 2) have them."""
    return window.offsets[:, :1] * warp[:, None, :, 0] + window.offsets[:, 1:] * warp[:, None, :, 1]


def _look(image: Tensor, centres: Tensor, spread: Tensor, window: Window, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the image shows where patches are taken to lie (n, s), and how like the wanted that is (n,)."""
    found, _ = _standardised(_sample(image, centres[:, None] + spread), window.weights)
    return found, (found * wanted) @ window.weights


def _standardised(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return (n, s) values of mean zero and deviation one, and their deviation (n, 1)."""
    centred = values - (values @ weights)[:, None]
    deviation = (centred.square() @ weights).sqrt().clamp(min=1e-3)[:, None]
    return centred / deviation, deviation


def _sample(image: Tensor, places: Tensor) -> Tensor:
    """Return (n, s) brightness at places (n, s, 2); outside, that of the edge."""
    grid = sampling_grid(places, (image.shape[0], image.shape[1]))
    seen = F.grid_sample(image[None, None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)
    return seen[0, 0]
