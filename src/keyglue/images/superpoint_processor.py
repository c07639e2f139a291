"""SuperPoint's image processor: single images to pixel values, the model's output to keypoints in their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.images.base_processor import BaseImageProcessor
from keyglue.images.postprocess import get_field, original_keypoints
from keyglue.images.read import ImageInput


class SuperPointImageProcessor(BaseImageProcessor):
    """Prepares single images for a detector and turns its output into keypoints.

    Args:
        do_resize: Whether to resize images to ``size``.
        size: {"height", "width"} squeezes images to that size, 480 x 640 unless given; {"longest_edge"} and
            {"shortest_edge"} keep the aspect ratio.
        resample: Filter to resize with, as Pillow's enum, name or number.
        do_rescale: Whether to multiply pixel values by ``rescale_factor``.
        rescale_factor: The factor.
        do_grayscale: Whether to make images gray; SuperPoint's own convention is to leave that to the model.
        **kwargs: Settings of other libraries, kept for writing back.
    """

    def __init__(
        self,
        do_resize: bool = True,
        size: Mapping[str, int] | None = None,
        resample: Any = 2,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_grayscale: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(do_resize, size, resample, do_rescale, rescale_factor, do_grayscale, **kwargs)

    def _groups(self, images: Any) -> list[tuple[ImageInput, ...]]:
        given = list(cast("Sequence[Any]", images)) if isinstance(images, list | tuple) else [images]
        if not given:
            raise InputError("an empty list of images was given. Pass an image or a list of images.")
        return [(image,) for image in given]

    def post_process_keypoint_detection(self, outputs: Any, target_sizes: Any) -> list[dict[str, Tensor]]:
        """Turn the detector's output into keypoints in pixels of the original images.

        Args:
            outputs: What the detector returned, keyglue's or transformers', object or mapping.
            target_sizes: (B, 2) height and width of each original image, upright: a tensor, or a list of tuples.

        Returns:
            One dictionary an image: ``keypoints`` (N, 2) float32, x and y, sub-pixel; ``scores`` (N,); ``descriptors``
            (N, D).

        Raises:
            InputError: The outputs lack a field, or there is not one target size for each image.
        """
        keypoints = original_keypoints(outputs, target_sizes, self.steps())
        mask: Tensor = get_field(outputs, "mask").bool()
        fields = {"keypoints": keypoints, "scores": get_field(outputs, "scores")}
        fields["descriptors"] = get_field(outputs, "descriptors")
        indices = [torch.nonzero(row).squeeze(1) for row in mask]
        return [{name: value[i, index] for name, value in fields.items()} for i, index in enumerate(indices)]
