"""Sizes, resizing with Pillow's filters, and gray: what is done to pixels between file and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.images.enums import resolve_resampling

_FORMS = '{"height": h, "width": w}, {"longest_edge": n}, {"shortest_edge": n} or both edges'
_GRAY_WEIGHTS = (0.2989, 0.5870, 0.1140)


def check_target(target: Any) -> dict[str, int]:
    """Return a target size as a plain dictionary of integers.

    Args:
        target: Dictionary with "height" and "width", with "longest_edge", with "shortest_edge", or with both edges;
            other libraries' size objects are accepted, and keys whose value is None are passed over.

    Raises:
        InputError: It is of another form, or a value is not a whole number of at least one pixel.
    """
    try:
        given: dict[Any, Any] = dict(target)
    except (TypeError, ValueError):
        raise InputError(f"size must be {_FORMS}, got {target!r}.") from None
    given = {key: value for key, value in given.items() if value is not None}
    if set(given) not in ({"height", "width"}, {"longest_edge"}, {"shortest_edge"}, {"longest_edge", "shortest_edge"}):
        raise InputError(f"size must be {_FORMS}, got {target!r}.")
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise InputError(f"size[{key!r}] must be a whole number of at least 1, got {value!r}.")
    return {key: int(value) for key, value in given.items()}


def resized_size(size: Sequence[int], target: Mapping[str, int]) -> tuple[int, int]:
    """Return the height and width that an image gets.

    ``height`` and ``width`` squeeze the image to just that. ``longest_edge`` keeps the aspect ratio and only ever
    shrinks: an image that is smaller is left alone. ``shortest_edge`` keeps the aspect ratio and enlarges small images
    too. Given both, the shortest edge is brought to its value unless the longest would then be too long.

    Args:
        size: Height and width of the image.
        target: As for ``check_target``.

    Returns:
        Height and width, rounded to the nearest, at least one pixel.
    """
    wanted = check_target(target)
    height, width = int(size[0]), int(size[1])
    if min(height, width) < 1:
        raise InputError(f"an image of size {(height, width)} (height, width) has no pixels to resize.")
    if "height" in wanted:
        return wanted["height"], wanted["width"]
    longest, shortest = max(height, width), min(height, width)
    scale = wanted["shortest_edge"] / shortest if "shortest_edge" in wanted else 1.0
    if "longest_edge" in wanted:
        scale = min(scale, wanted["longest_edge"] / longest)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_image(image: Tensor, size: Sequence[int], resample: Any = 2) -> Tensor:
    """Resize an image with one of Pillow's filters, which look at all the pixels that they shrink (antialiasing).

    Whole numbers 0..255 give whole numbers, the very ones that Pillow gives for 8-bit images. Other values are computed
    in float32 and stay within the range of the input.

    Args:
        image: (C, h, w) uint8 or floating point.
        size: Height and width to give it.
        resample: Filter as Pillow's enum, name or number: nearest 0, lanczos 1, bilinear 2, bicubic 3, box 4,
            hamming 5.

    Returns:
        (C, height, width) of the same type.

    Raises:
        InputError: The image has no three dimensions or no pixels, or the size or filter is impossible.
    """
    if image.ndim != 3 or image.numel() == 0:
        raise InputError(f"an image to resize must be (C, h, w) and not empty, got shape {tuple(image.shape)}.")
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size must be (height, width) of at least one pixel, got {tuple(size)!r}.")
    resampling = resolve_resampling(resample)
    height, width = int(size[0]), int(size[1])
    if (height, width) == tuple(image.shape[1:]):
        return image
    bytewise = _holds_bytes(image)
    channels = image.detach().cpu().to(torch.uint8 if bytewise else torch.float32).numpy()
    resized = np.stack(
        [np.asarray(Image.fromarray(channel).resize((width, height), resampling)) for channel in channels]
    )
    if not bytewise:  # filters with negative lobes overshoot
        resized = resized.clip(channels.min(), channels.max())
    return torch.from_numpy(resized).to(device=image.device, dtype=image.dtype)


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Take for each pixel of a resized image the mask (h, w) at its centre; return (height, width)."""
    height, width = mask.shape
    rows = ((torch.arange(size[0]) + 0.5) * (height / size[0])).long().clamp(max=height - 1)
    columns = ((torch.arange(size[1]) + 0.5) * (width / size[1])).long().clamp(max=width - 1)
    return mask[rows[:, None], columns[None, :]]


def to_grayscale(image: Tensor) -> Tensor:
    """Return the brightness 0.2989 R + 0.5870 G + 0.1140 B; an image that is gray already keeps its values.

    Args:
        image: (..., C, h, w), C = 1 or 3.

    Returns:
        (..., 1, h, w).

    Raises:
        InputError: The image has other than 1 or 3 channels.
    """
    channels = image.shape[-3] if image.ndim >= 3 else None
    if channels not in (1, 3):
        raise InputError(f"an image to make gray must be (..., C, h, w) with C = 1 or 3, got {tuple(image.shape)}.")
    if channels == 1:
        return image
    red, green, blue = image.split(1, dim=-3)
    is_gray = ((red == green) & (green == blue)).all(-1, keepdim=True).all(-2, keepdim=True)
    weighted = red * _GRAY_WEIGHTS[0] + green * _GRAY_WEIGHTS[1] + blue * _GRAY_WEIGHTS[2]
    return torch.where(is_gray, red.to(weighted.dtype), weighted)


def _holds_bytes(image: Tensor) -> bool:
    """Whether an image holds whole numbers 0..255. Where none is above 1 it may as well be in the range 0..1."""
    if image.dtype == torch.uint8:
        return True
    if not 1 < image.max() <= 255 or image.min() < 0:
        return False
    return all(torch.equal(channel, channel.round()) for channel in image)
