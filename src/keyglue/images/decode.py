"""Pillow images of every mode, and files that Pillow reads, to upright arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from keyglue.base.errors import ImageError, KeyglueError, MissingDependencyError
from keyglue.images.coordinates import EXIF_UPRIGHT

_ORIENTATION_TAG = 0x0112
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def decode_file(file: Path | bytes, name: str, max_pixels: int) -> NDArray[Any]:
    """Read an image file (its first frame) into an upright array.

    Args:
        file: Path or content.
        name: What to call the image in an error.
        max_pixels: Refuse larger images before they are decoded.

    Returns:
        (C, h, w), C = 1 gray, 2 gray and opacity, 3 colour, 4 colour and opacity.

    Raises:
        ImageError: It is not an image, damaged, or too large.
        MissingDependencyError: It is a HEIC image and pillow_heif is not installed.
    """
    with _named_errors(name), _open(file, name, max_pixels) as image:
        return decode_picture(image, name, max_pixels)


def file_size(file: Path | bytes, name: str) -> tuple[int, int]:
    """Return height and width of an image file, upright, from its header.

    Raises:
        ImageError: It is not an image.
        MissingDependencyError: It is a HEIC image and pillow_heif is not installed.
    """
    with _named_errors(name), _open(file, name, None) as image:
        return picture_size(image)


def picture_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width of a Pillow image, upright, without decoding it where that is possible."""
    if image.format == "TIFF" and _orientation(image) > 4:
        image.load()  # Pillow turns TIFF files itself on loading, and what it says of their size before varies
    swapped = EXIF_UPRIGHT.get(_orientation(image), (False,))[0]
    return (image.width, image.height) if swapped else (image.height, image.width)


def decode_picture(image: Image.Image, name: str, max_pixels: int) -> NDArray[Any]:
    """Turn a Pillow image of any mode (its current frame) into an upright array.

    Args:
        image: The image.
        name: What to call the image in an error.
        max_pixels: Refuse larger images before they are decoded.

    Returns:
        (C, h, w) as ``decode_file`` gives it.

    Raises:
        ImageError: It is damaged or too large.
    """
    with _named_errors(name):
        _check_size(image.size, name, max_pixels)
        array = _mode_to_array(image, name)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        # Asked only now that the image is loaded, because Pillow turns TIFF files itself on loading.
        swap, flip_y, flip_x = EXIF_UPRIGHT.get(_orientation(image), (False, False, False))
        if swap:
            array = array.swapaxes(1, 2)
        return array[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _mode_to_array(image: Image.Image, name: str) -> NDArray[Any]:
    if image.width == 0 or image.height == 0:
        raise ImageError(f"{name} is empty: its size is {image.width} x {image.height}.")
    if image.mode.startswith("I;16") or image.mode == "F":
        return np.asarray(image)
    if image.mode == "I":
        # 16-bit files come as 32-bit integers from several of Pillow's readers.
        array = np.asarray(image)
        return array.astype(np.uint16) if array.min() >= 0 and 255 < array.max() <= 65535 else array
    wanted = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        wanted += "A"
    return np.asarray(image if image.mode == wanted else image.convert(wanted))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data is no reason to refuse a good picture
        return 1


def _open(file: Path | bytes, name: str, max_pixels: int | None) -> Image.Image:
    head = file[:16] if isinstance(file, bytes) else _read_head(file)
    if not head:
        raise ImageError(f"{name} is empty (0 bytes).")
    try:
        image = Image.open(BytesIO(file) if isinstance(file, bytes) else file)
    except UnidentifiedImageError:
        if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS:
            raise
        return _open_heif(file, name, max_pixels)
    if image.format == "EPS":  # decoding it would run another program, Ghostscript, on the file
        image.close()
        raise ImageError(f"{name} is a PostScript drawing. Convert it to PNG or JPEG first.")
    return image


def _read_head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(16)


def _open_heif(file: Path | bytes, name: str, max_pixels: int | None) -> Image.Image:
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError("pillow-heif", "heif", f"reading {name}, a HEIC image,") from error
    container: Any = pillow_heif.open_heif(file)
    if max_pixels is not None:
        _check_size(container.size, name, max_pixels)
    return container.to_pillow()


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels, more than the {max_pixels} that are allowed. "
            "Pass a larger max_pixels if you trust it."
        )


@contextlib.contextmanager
def _named_errors(name: str) -> Generator[None, None, None]:
    """Turn whatever Pillow raises into an ImageError that names the image."""
    try:
        yield
    except KeyglueError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder. Give the path of one image.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} is refused as a possible decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that Pillow can read.") from error
    except Exception as error:  # the decoders raise SyntaxError, struct.error, EOFError, zlib.error and more
        raise ImageError(f"{name} cannot be decoded, it may be truncated or damaged: {error}") from error
