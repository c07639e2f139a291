"""Arrays and tensors of any layout and number type to pixels: (1 or 3, h, w), uint8 or float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyglue.base.errors import ImageError
from keyglue.images.enums import ChannelDimension, resolve_channel_dimension

_CHANNELS = (1, 3, 4)
Array = NDArray[Any]


def as_numpy(image: Array | Tensor) -> Array:
    """Return an array or tensor as an array on the CPU, without copying where that is possible."""
    if not isinstance(image, Tensor):
        return image
    tensor = image.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def find_layout(shape: tuple[int, ...], input_data_format: Any = None) -> ChannelDimension:
    """Return where the channels of an image array are.

    Args:
        shape: Shape of the array.
        input_data_format: What the caller says; inferred where it is None. An array whose first and last dimension
            could both be channels is taken as channels first.

    Raises:
        ImageError: The shape is not that of one image, or not of the layout that the caller says.
    """
    forms = "Give one image as (h, w), (h, w, C) or (C, h, w) with C = 1, 3 or 4"
    if 0 in shape:
        raise ImageError(f"the image array is empty: its shape is {shape}. {forms}.")
    said = None if input_data_format is None else resolve_channel_dimension(input_data_format)
    if len(shape) == 2:  # has no channels to look for, whatever the caller says of the others
        return ChannelDimension.NONE
    if len(shape) != 3 or said == ChannelDimension.NONE:
        wanted = "" if said is None else f" for input_data_format={said.value!r}"
        raise ImageError(f"an image array cannot have shape {shape}{wanted}. {forms}.")
    fits = {
        layout: shape[axis] in _CHANNELS for layout, axis in ((ChannelDimension.FIRST, 0), (ChannelDimension.LAST, 2))
    }
    for layout, fit in fits.items():
        if fit and said in (None, layout):
            return layout
    wanted = "" if said is None else f" that input_data_format={said.value!r} tells to be there"
    raise ImageError(f"an image array of shape {shape} has no 1, 3 or 4 channels{wanted}. {forms}.")


def channels_first(array: Array, layout: ChannelDimension) -> Array:
    """Return a view (C, h, w) of an array of the given layout."""
    if layout == ChannelDimension.NONE:
        return array[None]
    return array if layout == ChannelDimension.FIRST else array.transpose(2, 0, 1)


def from_channels_first(array: Array, layout: ChannelDimension) -> Array:
    """Return a view of (..., C, h, w) in the given layout.

    Raises:
        ImageError: Layout "none" is asked for an image of several channels.
    """
    if layout == ChannelDimension.LAST:
        return np.moveaxis(array, -3, -1)
    if layout == ChannelDimension.NONE:
        if array.shape[-3] != 1:
            raise ImageError(f"an image of {array.shape[-3]} channels cannot be given without a channel dimension.")
        return array[..., 0, :, :]
    return array


def to_pixels(array: Array, name: str, *, guess_range: bool) -> Tensor:
    """Bring an array (C, h, w), C = 1 to 4, to uint8 or to float32 in 0..255, and put transparency on black.

    Args:
        array: Whole numbers 0..255 of any integer type, uint16 0..65535, bool, or floats. Of 2 and 4 channels the last
            is opacity.
        name: What to call the image in an error.
        guess_range: Take floats that are nowhere above 1 as 0..1, and refuse those above 255. False leaves floats as
            they are.

    Returns:
        (1 or 3, h, w) on the CPU, in memory of its own.

    Raises:
        ImageError: The numbers are NaN, infinite, negative, too large, or no numbers.
    """
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    colours = _to_byte_range(array[:-1] if len(array) in (2, 4) else array, name, guess_range=guess_range)
    if len(array) in (2, 4):
        colours = _on_black(colours, _to_byte_range(array[-1], name, guess_range=True))
    return torch.from_numpy(np.array(colours, order="C"))


def _to_byte_range(array: Array, name: str, *, guess_range: bool) -> Array:
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind not in "uif":
        raise ImageError(f"{name} holds values of type {array.dtype}. Give uint8, uint16, bool or floats.")
    lowest, highest = array.min(), array.max()
    if not np.isfinite(lowest) or not np.isfinite(highest):
        raise ImageError(f"{name} holds NaN or infinite values. Replace them first.")
    if lowest < 0:
        raise ImageError(f"{name} holds negative values (down to {lowest:g}). Pixel values start at 0.")
    if array.dtype == np.uint16:
        return array.astype(np.float32) / np.float32(257)
    if kind == "f" and not guess_range:
        return array.astype(np.float32)
    if highest > 255:
        raise ImageError(
            f"{name} holds {array.dtype} values up to {highest:g}. Give 0..255, floats in 0..1, or uint16 for 0..65535."
        )
    if kind != "f":
        return array.astype(np.uint8)
    return array.astype(np.float32) * np.float32(255 if highest <= 1 else 1)


def _on_black(colours: Array, alpha: Array) -> Array:
    """Return the colours as they look on black: what is transparent is no part of the picture, as padding is."""
    if alpha.min() == 255:
        return colours
    if colours.dtype == np.uint8 and alpha.dtype == np.uint8:
        return ((colours.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
    return colours.astype(np.float32) * (alpha.astype(np.float32) / np.float32(255))
