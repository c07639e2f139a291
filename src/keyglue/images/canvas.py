"""Muted images side by side, with smooth lines, dots and a legend on top: what all pictures are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.images.coordinates import resize_keypoints
from keyglue.images.read import ImageInput, read_image

Colour: TypeAlias = tuple[int, int, int]
Points: TypeAlias = Tensor | NDArray[Any] | Sequence[Sequence[float]]

BACKGROUND: Colour = (18, 20, 24)
TEXT: Colour = (226, 229, 233)
INLIER: Colour = (64, 220, 130)
OUTLIER: Colour = (244, 84, 72)
PLAIN: Colour = (64, 200, 220)
# From violet over blue and green to yellow, evenly brighter; no colour is dark enough to sink into a muted photograph.
_RAMP = np.array([(122, 68, 190), (72, 118, 205), (34, 168, 170), (92, 208, 96), (250, 230, 55)], dtype=np.float64)
_SMOOTHING = 3  # lines are drawn this many times larger and then averaged down
_MIN_HEIGHT, _MAX_HEIGHT, _MAX_WIDTH = 320, 1200, 4096
_GAP = 8


def ramp(values: Any) -> list[Colour]:
    """Return a colour for each value in 0..1, from violet (0) to yellow (1); brightness grows with the value."""
    positions = np.clip(np.asarray(values, dtype=np.float64).reshape(-1), 0, 1)
    stops = np.linspace(0, 1, len(_RAMP))
    channels = [np.rint(np.interp(positions, stops, _RAMP[:, channel])).astype(int) for channel in range(3)]
    return [(int(red), int(green), int(blue)) for red, green, blue in zip(*channels, strict=True)]


def to_points(points: Points, name: str) -> NDArray[np.float64]:
    """Return points as an (N, 2) array.

    Raises:
        InputError: They are of another shape or not finite.
    """
    array = np.asarray(points.detach().cpu().float() if isinstance(points, Tensor) else points, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise InputError(f"{name} must be points of shape (N, 2), got {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinite values.")
    return array


def to_values(values: Any, count: int, name: str) -> NDArray[np.float64]:
    """Return one number a point as an (N,) array.

    Raises:
        InputError: There is not one for each point.
    """
    array = np.asarray(values.detach().cpu().float() if isinstance(values, Tensor) else values, dtype=np.float64)
    if array.shape != (count,):
        raise InputError(f"{name} must hold one value for each of the {count} points, got shape {array.shape}.")
    return array


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where an image went: its own size, the size it is shown in, and its left edge."""

    size: tuple[int, int]
    shown: tuple[int, int]
    left: int


class Canvas:
    """One or more images at the same height in a row, muted, to draw on; coordinates are those of each image.

    Args:
        images: What to show.
        title: Text of a line above the images, if any.
    """

    def __init__(self, images: Sequence[ImageInput], title: str | None = None) -> None:
        pictures = [_to_picture(image) for image in images]
        shown = _shown_sizes([(picture.height, picture.width) for picture in pictures])
        height = shown[0][0]
        self.unit = max(1.0, height / 480)
        strip = round(26 * self.unit)
        self._font = ImageFont.load_default(round(14 * self.unit))
        self._top = strip if title else 0
        content = sum(size[1] for size in shown) + _GAP * (len(shown) - 1)
        width = max(content, round(360 * len(shown) * self.unit))  # room for the line below narrow images
        sheet = Image.new("RGB", (width, self._top + height + strip), BACKGROUND)
        self._places: list[_Place] = []
        left = (width - content) // 2
        for picture, size in zip(pictures, shown, strict=True):
            sheet.paste(_mute(picture.resize((size[1], size[0]), Image.Resampling.LANCZOS)), (left, self._top))
            self._places.append(_Place((picture.height, picture.width), size, left))
            left += size[1] + _GAP
        # Enlarging by repetition and averaging down again leaves the photographs as they are and smooths the lines.
        self._sheet = sheet.resize((sheet.width * _SMOOTHING, sheet.height * _SMOOTHING), Image.Resampling.NEAREST)
        self._pen = ImageDraw.Draw(self._sheet, "RGBA")
        self._labels: list[tuple[float, float, str, str]] = []
        self._foot = self._top + height + strip / 2
        self._cursor = width - 10 * self.unit
        if title:
            self._labels.append((10 * self.unit, strip / 2, title, "lm"))

    def place(self, image: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map (N, 2) points of an image to the canvas."""
        place = self._places[image]
        return resize_keypoints(points, place.size, place.shown) + np.array([place.left, self._top])

    def line(self, start: NDArray[np.float64], end: NDArray[np.float64], colour: Colour, opacity: float) -> None:
        """Draw a thin line between two points of the canvas."""
        ends = [round(value) for value in (*self._fine(start), *self._fine(end))]
        width = max(_SMOOTHING, round(1.15 * self.unit * _SMOOTHING))
        self._pen.line(ends, fill=(*colour, round(255 * opacity)), width=width)

    def dot(self, point: NDArray[np.float64], radius: float, colour: Colour, opacity: float, rim: float = 0.0) -> None:
        """Draw a dot, with a dark rim of an opacity, at a point of the canvas; the radius is for images 480 high."""
        x, y = self._fine(point)
        for reach, paint, strength in ((radius + 0.9, BACKGROUND, rim), (radius, colour, opacity)):
            if strength > 0:
                r = reach * self.unit * _SMOOTHING
                box = (round(x - r), round(y - r), round(x + r), round(y + r))  # Pillow would cut, not round
                self._pen.ellipse(box, fill=(*paint, round(255 * strength)))

    def caption(self, text: str) -> None:
        """Write a text at the left of the line below the images."""
        self._labels.append((10 * self.unit, self._foot, text, "lm"))

    def legend_text(self, text: str) -> None:
        """Write a text at the right of the line below the images, left of what is there already."""
        self._labels.append((self._cursor, self._foot, text, "rm"))
        self._cursor -= self._font.getlength(text) + 7 * self.unit

    def legend_dot(self, colour: Colour) -> None:
        """Draw a dot at the right of the line below the images, left of what is there already."""
        self.dot(np.array([self._cursor - 4 * self.unit, self._foot - 0.5]), 4, colour, 1.0)
        self._cursor -= 16 * self.unit

    def legend_ramp(self) -> None:
        """Draw the colour ramp at the right of the line below the images, left of what is there already."""
        length = round(90 * self.unit)
        half = 4 * self.unit
        left = self._cursor - length
        for step, colour in enumerate(ramp(np.linspace(0, 1, length))):
            x0, y0 = self._fine(np.array([left + step, self._foot - half]))
            x1, y1 = self._fine(np.array([left + step + 1, self._foot + half]))
            self._pen.rectangle((x0, y0, x1, y1), fill=(*colour, 255))
        self._cursor = left - 7 * self.unit

    def finish(self) -> Image.Image:
        """Return the picture."""
        picture = self._sheet.reduce(_SMOOTHING)
        pen = ImageDraw.Draw(picture)
        for x, y, text, anchor in self._labels:
            pen.text((x, y), text, fill=TEXT, font=self._font, anchor=anchor)
        return picture

    def _fine(self, point: NDArray[np.float64]) -> tuple[float, float]:
        fine = resize_keypoints(point[None], (1, 1), (_SMOOTHING, _SMOOTHING))[0]
        return float(fine[0]), float(fine[1])


def _to_picture(image: ImageInput) -> Image.Image:
    pixels = read_image(image).round().byte().expand(3, -1, -1)
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def _shown_sizes(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return sizes of one common height: that of the tallest image, within bounds that keep the picture handy."""
    height = min(max(_MIN_HEIGHT, *(size[0] for size in sizes)), _MAX_HEIGHT)
    width = sum(size[1] * height / size[0] for size in sizes)
    height = max(1, int(height * min(1.0, _MAX_WIDTH / width)))
    return [(height, max(1, round(size[1] * height / size[0]))) for size in sizes]


def _mute(picture: Image.Image) -> Image.Image:
    """Return a picture with most of its colour and some of its light taken away, so that what is drawn stands out."""
    gray = picture.convert("L").convert("RGB")
    return Image.blend(Image.new("RGB", picture.size, BACKGROUND), Image.blend(gray, picture, 0.3), 0.72)
