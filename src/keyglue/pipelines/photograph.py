"""Photographs to be matched: an image, what is wanted of it, and how the model saw it, where that is known.

Shapes: C channels, h w pixels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.base.types import Features
from keyglue.images.contrast import with_contrast
from keyglue.images.read import ImageInput, describe, load_pixels, read_mask

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Photograph:
    """A photograph to match with others; ``Matcher.prepare`` makes one that is read and described already.

    Attributes:
        source: The image as it was given.
        size: Its height and width, upright.
        load: Returns its pixels (C, h, w) from 0 to 255, as they are shown to the model.
        mask: (h, w) booleans, true where keypoints are wanted; None for everywhere.
        features: Of the whole photograph, in pixels as the model sees it; None where they are not known yet.
        brightness: (1, h, w) from 0 to 1, what the model then saw; None where the features are all that is known.
        equalize: Whether it is equalised where it shows little contrast.
    """

    source: ImageInput
    size: Size
    load: Callable[[], Tensor]
    mask: Tensor | None = None
    features: Features | None = None
    brightness: Tensor | None = None
    equalize: bool = True

    @classmethod
    def read(cls, image: ImageInput, mask: ImageInput | None = None, *, equalize: bool = True) -> Photograph:
        """Read an image and its mask; see ``Matcher.prepare`` for what is accepted."""
        pixels = _pixels(image, equalize)
        size = (pixels.shape[1], pixels.shape[2])
        wanted = None if mask is None else read_mask(mask, size)
        return cls(source=image, size=size, load=lambda: pixels, mask=wanted, equalize=equalize)

    @classmethod
    def of(cls, pixels: Tensor, mask: Tensor | None = None, features: Features | None = None) -> Photograph:
        """Return the photograph that has these pixels."""
        size = (pixels.shape[1], pixels.shape[2])
        return cls(source=pixels, size=size, load=lambda: pixels, mask=mask, features=features)

    def cut(self, part: tuple[int, int, int, int]) -> tuple[Tensor, Tensor | None]:
        """Return pixels and mask between a left, top, right and bottom edge."""
        left, top, right, bottom = part
        mask = None if self.mask is None else self.mask[top:bottom, left:right]
        return self.load()[:, top:bottom, left:right], mask

    def described(self, features: Features, brightness: Tensor) -> Photograph:
        """Return the photograph with how the model saw it, and without its pixels: they are read again when needed."""
        again = functools.partial(_read_again, self.source, self.size, self.equalize)
        return dataclasses.replace(self, load=again, features=features, brightness=brightness)


def as_photograph(
    image: ImageInput | Photograph, mask: ImageInput | None = None, *, equalize: bool = True
) -> Photograph:
    """Return an image as a photograph, read unless it is one already.

    Raises:
        ImageError: It cannot be read.
        InputError: The mask does not fit, or was given for what has one already.
    """
    if not isinstance(image, Photograph):
        return Photograph.read(image, mask, equalize=equalize)
    if mask is not None:
        raise InputError("an image that was prepared has its mask already. Give the mask to Matcher.prepare.")
    return image


def _pixels(image: ImageInput, equalize: bool) -> Tensor:
    pixels = load_pixels(image, guess_range=True)
    return with_contrast(pixels) if equalize else pixels


def _read_again(image: ImageInput, size: Size, equalize: bool) -> Tensor:
    pixels = _pixels(image, equalize)
    if (pixels.shape[1], pixels.shape[2]) != size:
        raise InputError(
            f"{describe(image)} had height and width {size} when it was prepared, and now it has "
            f"{tuple(pixels.shape[1:])}. Prepare it again."
        )
    return pixels
