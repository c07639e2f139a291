"""What every detector offers: an image goes in, Features come out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.base.pretrained import PreTrainedModel
from keyglue.base.types import Features
from keyglue.images.resize import to_grayscale


class KeypointDetector(PreTrainedModel):
    """A model that finds keypoints in images and describes them."""

    @abstractmethod
    def extract(self, image: Tensor, *, mask: Tensor | None = None) -> Features:
        """Find and describe the keypoints of one image.

        Args:
            image: (C, h, w) with C = 1 or 3, values from 0 to 1.
            mask: (h, w) boolean, true where keypoints are wanted.

        Returns:
            Features in pixels of ``image``.
        """

    def extract_batch(self, pixel_values: Tensor, image_sizes: Sequence[tuple[int, int]]) -> list[Features]:
        """Find and describe the keypoints of images that are padded to one size at the right and bottom.

        Args:
            pixel_values: (B, C, h, w) with C = 1 or 3, values from 0 to 1.
            image_sizes: Height and width of the content of each image; what lies outside is never looked at.
        """
        return [
            self.extract(image[:, :height, :width])
            for image, (height, width) in zip(pixel_values, image_sizes, strict=True)
        ]


def one_channel(pixel_values: Tensor) -> Tensor:
    """Return (B, 1, h, w) brightness of (B, C, h, w) images; three equal channels are taken as they are.

    Raises:
        InputError: The shape is another one, or a value is NaN or infinite.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] not in (1, 3):
        raise InputError(f"images must have shape (B, C, h, w) with C = 1 or 3, got {tuple(pixel_values.shape)}.")
    if not pixel_values.is_floating_point():
        raise InputError(f"images must hold floating point values from 0 to 1, got {pixel_values.dtype}.")
    # Where the sum is finite, which is quicker to see, all values are.
    if not torch.isfinite(pixel_values.sum()) and not torch.isfinite(pixel_values).all():
        raise InputError("images hold NaN or infinite values; mask or repair them first.")
    return to_grayscale(pixel_values)


def content_sizes(
    pixel_values: Tensor, image_sizes: Tensor | None = None, pixel_mask: Tensor | None = None
) -> list[tuple[int, int]]:
    """Return height and width of the content of each padded image.

    Args:
        pixel_values: (B, C, h, w).
        image_sizes: (B, 2) height and width, or None.
        pixel_mask: (B, h, w), nonzero on the content, which must be a rectangle at the top left; or None.

    Raises:
        InputError: A size is empty or larger than the image, or the mask is not a rectangle at the top left.
    """
    count, _, height, width = pixel_values.shape
    if image_sizes is not None:
        if image_sizes.shape != (count, 2):
            raise InputError(
                f"image_sizes must hold (height, width) of {count} images, got {tuple(image_sizes.shape)}."
            )
        sizes = [(int(h), int(w)) for h, w in image_sizes.tolist()]
    elif pixel_mask is not None:
        if pixel_mask.shape != (count, height, width):
            raise InputError(f"pixel_mask must have shape {(count, height, width)}, got {tuple(pixel_mask.shape)}.")
        sizes = []
        for mask in pixel_mask.bool():
            rows, columns = int(mask[:, :1].sum()), int(mask[:1].sum())
            if int(mask.sum()) != rows * columns or not bool(mask[:rows, :columns].all()):
                raise InputError(
                    "pixel_mask must be a rectangle at the top left of each image: padding is right and bottom."
                )
            sizes.append((rows, columns))
    else:
        sizes = [(height, width)] * count
    for size in sizes:
        if not (1 <= size[0] <= height and 1 <= size[1] <= width):
            raise InputError(f"an image size of {size} does not fit the images of {(height, width)}.")
    return sizes
