"""Where points of one image lie in another, by depth, pose and disparity.

Shapes: M and N points, h w pixels. Frame: pixels, the centre of the top-left pixel at (0, 0); x_1 = R x_0 + t takes
points from camera 0 to camera 1, with x right, y down and z forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.multiview.cameras import as_camera

# Points are taken as hidden where they would lie further behind what the other image sees than this share of the depth.
DEPTH_TOLERANCE = 0.05


def camera_matrix(camera: Any, device: torch.device) -> Tensor:
    """Return the (3, 3) float64 matrix of a camera in any of the forms in which people hold one.

    Raises:
        InputError: It is no camera, or one with lens distortion.
    """
    known = as_camera(camera.detach().cpu().numpy() if isinstance(camera, Tensor) else camera)
    if any(known.distortion):
        raise InputError("labels need images without lens distortion. Undistort images and depth first.")
    return torch.from_numpy(known.matrix).to(device)


def sample_nearest(values: Tensor, points: Tensor) -> Tensor:
    """Return the values (N,) of a map (h, w) at the pixels nearest to points (N, 2), NaN outside."""
    height, width = values.shape
    x, y = points.nan_to_num(-10).round().long().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = values[y.clamp(0, height - 1), x.clamp(0, width - 1)]
    return torch.where(inside, found, torch.nan)


def project_by_depth(
    points: Tensor, depth0: Tensor, depth1: Tensor, K0: Tensor, K1: Tensor, R: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Map points of image 0 to image 1 by their depth.

    Args:
        points: (M, 2) points of image 0.
        depth0: (h, w) depth along the axis of camera 0; 0, NaN or infinite where it is not known.
        depth1: (h, w) the same for camera 1, in the same unit.
        K0: (3, 3) matrix of camera 0.
        K1: (3, 3) matrix of camera 1.
        R: (3, 3) rotation from camera 0 to camera 1.
        t: (3,) translation, in the unit of depth.

    Returns:
        (M, 2) points of image 1, NaN where the depth is not known, or the point is behind camera 1 or hidden there; and
        (M,) booleans, true where the depth is known.
    """
    z = sample_nearest(depth0.to(points), points)
    known = torch.isfinite(z) & (z > 0)
    rays = torch.cat([points, torch.ones_like(points[:, :1])], dim=1) @ torch.linalg.inv(K0).mT
    moved = (rays * z[:, None]) @ R.mT + t
    ahead = moved[:, 2] > 1e-6
    mapped = moved @ K1.mT
    mapped = mapped[:, :2] / mapped[:, 2:]
    seen = sample_nearest(depth1.to(points), mapped)
    hidden = (seen > 0) & torch.isfinite(seen) & (moved[:, 2] > seen * (1 + DEPTH_TOLERANCE))
    # In front of what image 1 sees, the two depths contradict each other; that is no match either.
    hidden |= (seen > 0) & torch.isfinite(seen) & (moved[:, 2] < seen * (1 - DEPTH_TOLERANCE))
    good = known & ahead & ~hidden
    return torch.where(good[:, None], mapped, torch.nan), known


def shared_view(depths: tuple[Tensor, Tensor], Ks: tuple[Tensor, Tensor], R: Tensor, t: Tensor) -> float:
    """Return the share of a coarse grid of image 0 that image 1 sees, or the other way round, whichever is less.

    Args:
        depths: Depth (h, w) along the axis of each camera.
        Ks: Matrix (3, 3) of each camera.
        R: (3, 3) rotation from camera 0 to camera 1.
        t: (3,) translation, in the unit of depth.
    """
    shares: list[float] = []
    for own, motion in enumerate(((R, t), (R.mT, -R.mT @ t))):
        depth, other = depths[own], depths[1 - own]
        height, width = depth.shape
        y, x = torch.meshgrid(torch.arange(8, height, 16), torch.arange(8, width, 16), indexing="ij")
        grid = torch.stack([x, y], dim=-1).reshape(-1, 2).to(depth.device, torch.float64)
        mapped, known = project_by_depth(grid, depth, other, Ks[own], Ks[1 - own], *motion)
        seen = ((mapped >= 0) & (mapped < mapped.new_tensor([other.shape[1], other.shape[0]]))).all(dim=1)
        shares.append(float(seen.sum() / known.sum().clamp(min=1)))
    return min(shares)


def fundamental_matrix(K0: Tensor, K1: Tensor, R: Tensor, t: Tensor) -> Tensor:
    """Return the (3, 3) matrix F with x1^T F x0 = 0 for corresponding points of image 0 and 1."""
    x, y, z = t.unbind()
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
    return torch.linalg.inv(K1).mT @ cross @ R @ torch.linalg.inv(K0)


def epipolar_distances(points0: Tensor, points1: Tensor, F: Tensor) -> Tensor:
    """Return the distances (M, N) in pixels of points of image 1 to the epipolar lines of points of image 0.

    Where F is zero, as without translation, there are no lines, and the distance is 0.
    """
    lines = torch.cat([points0, torch.ones_like(points0[:, :1])], dim=1) @ F.mT
    homogeneous1 = torch.cat([points1, torch.ones_like(points1[:, :1])], dim=1)
    length = lines[:, :2].norm(dim=1, keepdim=True)
    return torch.where(length > 0, (lines @ homogeneous1.mT).abs() / length.clamp(min=1e-300), 0.0)


def disparity_of_right(disparity: Tensor) -> Tensor:
    """Return the disparity (h, w) that the right image has, from that of the left; NaN where nothing is known.

    Of several pixels that fall onto one the nearest, with the largest disparity, is seen.
    """
    height, width = disparity.shape
    columns = torch.arange(width, device=disparity.device).expand(height, width)
    known = torch.isfinite(disparity) & (disparity > 0)
    target = (columns - torch.where(known, disparity, 0)).round().long()
    usable = known & (target >= 0)
    value = torch.where(usable, disparity, -1.0)
    right = torch.full_like(disparity, -1.0).scatter_reduce(1, target.clamp(0, width - 1), value, "amax")
    return torch.where(right > 0, right, torch.nan)


def project_by_disparity(points: Tensor, own: Tensor, other: Tensor, sign: float) -> tuple[Tensor, Tensor]:
    """Map points of one image of a rectified stereo pair to the other: x + sign d, y.

    Args:
        points: (M, 2).
        own: (h, w) disparity of the image that the points are in.
        other: (h, w) disparity of the other image.
        sign: -1 from left to right, +1 back.

    Returns:
        (M, 2) points of the other image, NaN where the disparity is not known or the point is hidden, and (M,)
        booleans, true where the disparity is known.
    """
    d = sample_nearest(own.to(points), points)
    known = torch.isfinite(d) & (d > 0)
    mapped = torch.stack([points[:, 0] + sign * d, points[:, 1]], dim=1)
    seen = sample_nearest(other.to(points), mapped)
    hidden = torch.isfinite(seen) & ((seen - d).abs() > 2)
    return torch.where((known & ~hidden)[:, None], mapped, torch.nan), known
