"""Reading images and masks: paths, URLs, Pillow images, arrays and tensors, all to one kind of tensor.

Coordinates everywhere in the package refer to the upright image: a camera's EXIF orientation is applied here, once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from keyglue.base.errors import ImageError, InputError
from keyglue.images.arrays import as_numpy, channels_first, find_layout, to_pixels
from keyglue.images.decode import decode_file, decode_picture, file_size, picture_size
from keyglue.images.enums import ChannelDimension
from keyglue.images.fetch import fetch

ImageInput: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor

MAX_PIXELS = 200_000_000
_URL_STARTS = ("http://", "https://", "data:")


def read_image(
    image: ImageInput,
    *,
    timeout: float | None = None,
    max_pixels: int = MAX_PIXELS,
    input_data_format: Any = None,
) -> Tensor:
    """Read an image from wherever it is.

    Of an animation the first frame is read, of a Pillow image the current one. Transparent pixels become black: they
    are no part of the picture, as padding is not. 16-bit values are divided by 257 and keep their precision (Pillow
    itself reads 16-bit colour, unlike 16-bit gray, as 8-bit). Images that are larger than ``max_pixels``, or than
    Pillow allows (it warns above ``PIL.Image.MAX_IMAGE_PIXELS`` and refuses above twice that), are refused before they
    are decoded.

    Args:
        image: Path, http(s), data or file URL, Pillow image of any mode, or array or tensor (h, w), (h, w, C) or
            (C, h, w) with C = 1, 3 or 4: uint8, uint16 (0..65535), bool, other whole numbers 0..255, or floats 0..255.
            Floats that are nowhere above 1 are taken as 0..1.
        timeout: Seconds for a download; 60 unless given.
        max_pixels: The most pixels that a file or Pillow image may have.
        input_data_format: "channels_first", "channels_last" or "none" for an array; found from its shape unless given,
            channels first where both are possible.

    Returns:
        (C, h, w) float32 in 0..255, C = 1 for gray and 3 for colour, upright, on the CPU.

    Raises:
        ImageError: It is not an image, damaged, too large, cannot be reached, or an array holds NaN, infinite or
            negative values or no values at all.
        MissingDependencyError: It is a HEIC image and pillow-heif is not installed.
    """
    pixels = load_pixels(
        image, timeout=timeout, max_pixels=max_pixels, input_data_format=input_data_format, guess_range=True
    )
    return pixels.float()


def load_pixels(
    image: ImageInput,
    *,
    timeout: float | None = None,
    max_pixels: int = MAX_PIXELS,
    input_data_format: Any = None,
    guess_range: bool,
) -> Tensor:
    """Read an image as ``read_image`` does, but keep 8-bit images as uint8.

    Args:
        image: As for ``read_image``.
        timeout: As for ``read_image``.
        max_pixels: As for ``read_image``.
        input_data_format: As for ``read_image``.
        guess_range: Whether floats that are nowhere above 1 are taken as 0..1; False leaves floats as they are.

    Returns:
        (C, h, w), C = 1 or 3, uint8 or float32, upright, on the CPU.
    """
    name = describe(image)
    if isinstance(image, Image.Image):
        array = decode_picture(image, name, max_pixels)
    elif isinstance(image, np.ndarray | Tensor):
        found = as_numpy(image)
        array = channels_first(found, find_layout(found.shape, input_data_format))
    else:
        array = decode_file(_locate(image, timeout), name, max_pixels)
    return to_pixels(array, name, guess_range=guess_range)


def image_size(image: ImageInput, *, timeout: float | None = None, input_data_format: Any = None) -> tuple[int, int]:
    """Return height and width of an image, upright; of a file only the header is read.

    Args:
        image: As for ``read_image``.
        timeout: Seconds for a download; 60 unless given.
        input_data_format: As for ``read_image``.

    Raises:
        ImageError: It is not an image or cannot be reached.
    """
    if isinstance(image, Image.Image):
        return picture_size(image)
    if isinstance(image, np.ndarray | Tensor):
        shape = tuple(image.shape)
        first = 1 if find_layout(shape, input_data_format) == ChannelDimension.FIRST else 0
        return shape[first], shape[first + 1]
    return file_size(_locate(image, timeout), describe(image))


def read_mask(mask: ImageInput, size: tuple[int, int]) -> Tensor:
    """Read a mask that says which pixels of an image may be used: all that are not zero (not black, not transparent).

    Args:
        mask: Path, URL, Pillow image, or array or tensor (h, w), (h, w, C) or (C, h, w) of any numbers or bool.
        size: Height and width of the image that the mask is for.

    Returns:
        (h, w) bool.

    Raises:
        InputError: The mask is not of the image's size; it is never resized silently.
        ImageError: It cannot be read, or holds NaN.
    """
    if isinstance(mask, np.ndarray | Tensor):
        found = as_numpy(mask)
        values = channels_first(found, find_layout(found.shape))
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise ImageError("the mask holds NaN. Use 0 for pixels to leave out and anything else for pixels to use.")
        used = torch.from_numpy((values != 0).any(axis=0))
    else:
        used = (load_pixels(mask, guess_range=False) != 0).any(dim=0)
    if tuple(used.shape) != tuple(size):
        raise InputError(
            f"the mask is of size {tuple(used.shape)} (height, width) and its image of {tuple(size)}. "
            "Give a mask of the image's size."
        )
    return used


def describe(image: Any) -> str:
    """Return what to call an image in a message: its path or address, or its kind."""
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "")) or f"the Pillow image of mode {image.mode}"
    if isinstance(image, np.ndarray | Tensor):
        return "the image array" if isinstance(image, np.ndarray) else "the image tensor"
    if isinstance(image, str | os.PathLike):
        text = str(os.fspath(image))  # pyright: ignore[reportUnknownArgumentType]
        return f"{text[:60]}..." if text[:5].lower() == "data:" and len(text) > 60 else text
    raise ImageError(
        f"an image cannot be a {type(image).__name__}. "
        "Give a path, a URL, a Pillow image, a NumPy array or a torch tensor."
    )


def _locate(image: str | os.PathLike[str], timeout: float | None) -> Path | bytes:
    text = os.fspath(image)
    if isinstance(image, str) and text.lower().startswith(_URL_STARTS):
        return fetch(text, timeout)
    if isinstance(image, str) and text.lower().startswith("file:"):
        return Path(url2pathname(urlsplit(text).path))
    if not text:
        raise ImageError("the path of the image is an empty text.")
    return Path(text).expanduser()
