"""Sub-pixel places of keypoints: from the detector's scores around them, and from the image.

A detector's scores say that there is a keypoint; the image says where. Peaks of the determinant of its Hessian, large
on blobs and corners and zero on edges, lie nearer to each other in two views of a place than centres of scores do.

Shapes: B images, h w pixels, N points. Frame: x right, y down, the centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.base import native
from keyglue.keypoints.nms import window_maximum

# The compiled kernels look no further.
_MOST_RADIUS = 64


def refine_keypoints(
    keypoints: Tensor,
    scores: Tensor,
    radius: int,
    image: Tensor | None = None,
    sigma: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Move each keypoint to the centre of mass of the scores around it, then to a peak of the image if there is one.

    The peak is the highest one of the determinant of the Hessian. Of several keypoints that would go to one peak only
    the nearest does.

    Args:
        keypoints: (N, 2) x, y in whole pixels.
        scores: (h, w) before suppression.
        radius: Half width of the square window in pixels that is looked at; 0 leaves the keypoints as they are.
        image: (h', w') gray values, at least as large as the scores.
        sigma: Standard deviation in pixels of the blur of the image; 0 leaves the image out.
        mask: (h', w'), nonzero on the pixels of the image whose peaks count; all unless given.

    Returns:
        (N, 2) x, y in pixels, at most ``radius`` and half a pixel away along each axis.
    """
    if radius == 0 or len(keypoints) == 0:
        return keypoints
    centres = _centres_of_mass(keypoints, scores, radius)
    if image is None or sigma == 0 or min(image.shape) < 3:
        return centres
    return _move_to_peaks(keypoints, centres, image, radius, sigma, mask)


def _around(keypoints: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Return offsets (W, 2) of the pixels of a window as x and y, and those pixels (N, W, 2) around each keypoint."""
    reach = torch.arange(-radius, radius + 1, device=keypoints.device)
    offsets = torch.stack(torch.meshgrid(reach, reach, indexing="xy"), dim=-1).flatten(0, 1)
    return offsets, keypoints.long()[:, None] + offsets


def _centres_of_mass(keypoints: Tensor, scores: Tensor, radius: int) -> Tensor:
    """Return keypoints (N, 2) moved to the centre of mass of the scores around them."""
    offsets, pixels = _around(keypoints, radius)
    columns, rows = pixels.unbind(-1)
    # Outside the map nothing weighs anything.
    padded = F.pad(scores, (radius,) * 4)
    weights = padded[rows + radius, columns + radius]
    shift = weights @ offsets.to(weights) / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return keypoints + shift


def _move_to_peaks(
    keypoints: Tensor, centres: Tensor, image: Tensor, radius: int, sigma: float, mask: Tensor | None
) -> Tensor:
    """Return the peaks of the image near keypoints (N, 2), and the centres (N, 2) of those that get none."""
    image = image.float()
    kernels = native.kernels(torch.float32) if image.device.type == "cpu" else None
    near = _compiled_peaks if kernels is not None and radius <= _MOST_RADIUS else _peaks
    places, pixels = near(keypoints, image, radius, sigma)
    places = places.to(centres)
    found = pixels >= 0
    if mask is not None:
        found &= mask.to(image.device).bool().flatten()[pixels.clamp(min=0)]
    # The nearest keypoint of each peak has the lowest rank.
    order = (places - centres).norm(dim=1).masked_fill(~found, torch.inf).argsort(stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    lowest = torch.full((image.numel(),), len(order), device=image.device)
    pixels = pixels.clamp(min=0)
    lowest.scatter_reduce_(0, pixels, torch.where(found, rank, len(order)), "amin")
    return torch.where((found & (lowest[pixels] == rank))[:, None], places, centres)


def _peaks(keypoints: Tensor, image: Tensor, radius: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Return the highest peak near each keypoint: its place (N, 2), and its pixel (N,) y w + x, -1 if there is none."""
    height, width = image.shape
    scores = det_hessian(image[None, None], sigma).clamp(min=0)
    peaks = torch.where(scores == window_maximum(scores, 1), scores, 0)[0]
    peaks[[0, -1]] = 0
    peaks[:, [0, -1]] = 0
    x, y = _around(keypoints, radius)[1].unbind(-1)
    pixels = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    best = peaks.flatten()[pixels].max(dim=1)
    goal = pixels.gather(1, best.indices[:, None])[:, 0]
    places = torch.stack([goal % width, goal // width], dim=1) + vertices(scores, goal[None])[0]
    return places, goal.masked_fill(best.values <= 0, -1)


def _compiled_peaks(keypoints: Tensor, image: Tensor, radius: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Return what ``_peaks`` returns, from the compiled kernels."""
    places, pixels = torch.zeros(len(keypoints), 2), torch.empty(len(keypoints), dtype=torch.long)
    importlib.import_module("keyglue_native").peaks_near(
        native.kernels(torch.float32),
        image.contiguous(),
        keypoints.float().contiguous(),
        radius,
        _derivatives(sigma, torch.float32, image.device).contiguous(),
        sigma**4,
        torch.get_num_threads(),
        places,
        pixels,
    )
    return places, pixels


def det_hessian(images: Tensor, sigma: float) -> Tensor:
    """Return the determinant of the Hessian times sigma^4 (B, h, w) of images (B, 1, h, w) blurred by sigma pixels."""
    gauss, first, second = weights = _derivatives(sigma, images.dtype, images.device)
    padded = F.pad(images, (len(gauss) // 2,) * 4, mode="replicate")
    rows = F.conv2d(padded, weights[:, None, None, :])
    columns = torch.stack([second, first, gauss])[:, None, :, None]
    yy, xy, xx = F.conv2d(rows, columns, groups=3).unbind(1)
    return sigma**4 * (xx * yy - xy * xy)


def _derivatives(sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a Gaussian, its first and its second derivative, (3, taps)."""
    radius = int(3 * sigma + 0.5)
    x = torch.arange(-radius, radius + 1, dtype=dtype, device=device)
    gauss = torch.exp(-0.5 * (x / sigma) ** 2)
    gauss = gauss / gauss.sum()
    second = (x**2 / sigma**4 - 1 / sigma**2) * gauss
    return torch.stack([gauss, -x / sigma**2 * gauss, second - second.mean()])


def vertices(scores: Tensor, index: Tensor) -> Tensor:
    """Return where the parabolas through each pixel and its neighbours along x and y are highest.

    Args:
        scores: (B, h, w).
        index: (B, N) pixels y w + x, none of them at the edge.

    Returns:
        (B, N, 2) x and y from the pixel, each from -0.5 to 0.5.
    """
    flat = scores.flatten(1)
    shifts: list[Tensor] = []
    for step in (1, scores.shape[2]):
        before, at, after = (flat.gather(1, (index + s).clamp(0, flat.shape[1] - 1)) for s in (-step, 0, step))
        curvature = (2 * at - before - after).clamp(min=torch.finfo(scores.dtype).tiny)
        shifts.append((0.5 * (after - before) / curvature).clamp(-0.5, 0.5))
    return torch.stack(shifts, dim=-1)
