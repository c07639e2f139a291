"""Pixel coordinates and their frames: the only place that knows where a pixel's centre is.

Points are (..., 2) x and y, sizes are (height, width). x goes right, y goes down, and the centre of the top-left pixel
is (0, 0), so an image covers [-0.5, width - 0.5] x [-0.5, height - 0.5]. Every function takes torch tensors and NumPy
arrays and returns what it was given. A size is a tuple, or a tensor or array (..., 2) with one size for each leading
index of the points: relative (B, 2, K, 2) goes with sizes (B, 2, 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Points = TypeVar("Points", Tensor, NDArray[Any])
Size: TypeAlias = Sequence[int] | Tensor | NDArray[Any]

# EXIF orientation -> what turns the stored picture upright: swap x and y first, then flip top to bottom, left to right.
EXIF_UPRIGHT = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def resize_keypoints(keypoints: Points, from_size: Size, to_size: Size) -> Points:
    """Map points of an image to the same image resized: (p + 0.5) s - 0.5 on each axis.

    Args:
        keypoints: (..., N, 2) pixels of the image of ``from_size``.
        from_size: Height and width before.
        to_size: Height and width after.

    Returns:
        (..., N, 2) pixels of the image of ``to_size``.
    """
    points = _floating(keypoints)
    scale = _width_height(to_size, points) / _width_height(from_size, points)
    return cast("Points", (points + 0.5) * scale - 0.5)


def relative_to_pixels(relative: Points, size: Size) -> Points:
    """Turn relative points, x / width and y / height as other implementations give them, into pixels.

    Args:
        relative: (..., N, 2) relative points.
        size: Height and width of the image that the points are relative to.

    Returns:
        (..., N, 2) pixels of that image.
    """
    points = _floating(relative)
    return cast("Points", points * _width_height(size, points))


def pixels_to_relative(keypoints: Points, size: Size) -> Points:
    """Turn pixels into relative points, x / width and y / height: the inverse of ``relative_to_pixels``."""
    points = _floating(keypoints)
    return cast("Points", points / _width_height(size, points))


def normalize_keypoints(keypoints: Points, size: Size) -> Points:
    """Centre points and scale them by the longer side, (p - size / 2) / (max(size) / 2), as LightGlue takes them.

    Args:
        keypoints: (..., N, 2) pixels.
        size: Height and width of the image that the points lie in.

    Returns:
        (..., N, 2) in [-1, 1]; the shorter side covers less than that.
    """
    points = _floating(keypoints)
    half = _width_height(size, points) / 2
    longest = half.max(-1, keepdims=True) if isinstance(half, np.ndarray) else half.amax(-1, keepdim=True)
    return cast("Points", (points - half) / longest)


def to_colmap(keypoints: Points) -> Points:
    """Move points to COLMAP's frame, where the centre of the top-left pixel is (0.5, 0.5)."""
    return cast("Points", _floating(keypoints) + 0.5)


def from_colmap(keypoints: Points) -> Points:
    """Move points from COLMAP's frame to ours: the inverse of ``to_colmap``."""
    return cast("Points", _floating(keypoints) - 0.5)


def to_stored_frame(keypoints: Points, orientation: int, size: tuple[int, int]) -> Points:
    """Map points of an upright photograph to the picture as its file stores it, before the EXIF orientation.

    Args:
        keypoints: (..., 2) pixels of the upright image.
        orientation: EXIF orientation, 1 to 8.
        size: Height and width of the upright image.

    Returns:
        (..., 2) pixels of the stored picture.
    """
    points = _floating(keypoints)
    swap, flip_y, flip_x = EXIF_UPRIGHT.get(orientation, (False, False, False))
    x, y = points[..., 0], points[..., 1]
    x = size[1] - 1 - x if flip_x else x
    y = size[0] - 1 - y if flip_y else y
    x, y = (y, x) if swap else (x, y)
    if isinstance(points, np.ndarray):
        return cast("Points", np.stack(cast("Any", (x, y)), axis=-1))
    return cast("Points", torch.stack(cast("Any", (x, y)), dim=-1))


def cosine_sine(degrees: float) -> tuple[float, float]:
    """Return cosine and sine of an angle, exact for quarter turns."""
    turns, rest = divmod(degrees, 90)
    cosine, sine = math.cos(math.radians(rest)), math.sin(math.radians(rest))
    for _ in range(int(turns) % 4):
        cosine, sine = -sine, cosine
    return cosine, sine


def turned_size(size: Sequence[int], degrees: float) -> tuple[int, int]:
    """Return height and width of the smallest image that holds one of height and width ``size`` when it is turned."""
    cosine, sine = (abs(value) for value in cosine_sine(degrees))
    height, width = size[0] * cosine + size[1] * sine, size[1] * cosine + size[0] * sine
    # What is less than a hundredth of a pixel is rounding.
    return math.ceil(height - 0.01), math.ceil(width - 0.01)


def turn_keypoints(keypoints: Points, degrees: float, size: tuple[int, int]) -> Points:
    """Map points of an image to that image turned counter-clockwise about its centre.

    Quarter turns are those of ``torch.rot90`` and ``np.rot90``.

    Args:
        keypoints: (..., 2) pixels of the upright image.
        degrees: How far it is turned.
        size: Height and width of the upright image.

    Returns:
        (..., 2) pixels of the turned image, whose size is ``turned_size(size, degrees)``.
    """
    return _turned(keypoints, degrees, size, turned_size(size, degrees))


def unturn_keypoints(keypoints: Points, degrees: float, size: tuple[int, int]) -> Points:
    """Map points of a turned image back: the inverse of ``turn_keypoints``.

    Args:
        keypoints: (..., 2) pixels of the turned image.
        degrees: How far the image was turned counter-clockwise.
        size: Height and width of the upright image, before it was turned.

    Returns:
        (..., 2) pixels of the upright image.
    """
    return _turned(keypoints, -degrees, turned_size(size, degrees), size)


def pixel_grid(size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Return x and y of all pixels, (h w, 2) float32, row by row."""
    rows, columns = torch.meshgrid(
        torch.arange(size[0], device=device), torch.arange(size[1], device=device), indexing="ij"
    )
    return torch.stack([columns, rows], dim=-1).reshape(-1, 2).float()


def sampling_grid(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Turn pixels (..., 2) of an image of a height and width into what grid_sample takes without align_corners."""
    return (2 * points + 1) / points.new_tensor([size[1], size[0]]) - 1


def _turned(keypoints: Points, degrees: float, from_size: tuple[int, int], to_size: tuple[int, int]) -> Points:
    points = _floating(keypoints)
    cosine, sine = cosine_sine(degrees)
    x, y = points[..., 0] - (from_size[1] - 1) / 2, points[..., 1] - (from_size[0] - 1) / 2
    turned = (cosine * x + sine * y + (to_size[1] - 1) / 2, cosine * y - sine * x + (to_size[0] - 1) / 2)
    if isinstance(points, np.ndarray):
        return cast("Points", np.stack(cast("Any", turned), axis=-1))
    return cast("Points", torch.stack(cast("Any", turned), dim=-1))


def _floating(points: Any) -> Any:
    """Return the points in a floating point type; whole numbers would cut the half pixels off."""
    if isinstance(points, Tensor):
        return points if points.is_floating_point() else points.float()
    array = np.asarray(points)
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float32)


def _width_height(size: Size, points: Any) -> Any:
    """Return (..., 1, 2) width and height of the kind, type and device of ``points``, ready to broadcast over them."""
    if isinstance(points, Tensor):
        return torch.as_tensor(size, dtype=points.dtype, device=points.device).flip(-1).unsqueeze(-2)
    array = size.detach().cpu().numpy() if isinstance(size, Tensor) else np.asarray(size)
    return array.astype(points.dtype)[..., None, ::-1]
