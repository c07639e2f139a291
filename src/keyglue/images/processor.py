"""LightGlue's image processor: pairs of images to pixel values, the model's output to matches in the images' pixels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.images.base_processor import BaseImageProcessor
from keyglue.images.draw import draw_matches
from keyglue.images.postprocess import get_field, original_keypoints
from keyglue.images.read import ImageInput, image_size


class LightGlueImageProcessor(BaseImageProcessor):
    """Prepares image pairs for LightGlue and turns its output into matches.

    Args:
        do_resize: Whether to resize images to ``size``.
        size: {"height", "width"} squeezes images to that size, 480 x 640 unless given; {"longest_edge"} and
            {"shortest_edge"} keep the aspect ratio.
        resample: Filter to resize with, as Pillow's enum, name or number.
        do_rescale: Whether to multiply pixel values by ``rescale_factor``.
        rescale_factor: The factor.
        do_grayscale: Whether to make images gray, 0.2989 R + 0.5870 G + 0.1140 B in all three channels.
        **kwargs: Settings of other libraries, kept for writing back.
    """

    def _groups(self, images: Any) -> list[tuple[ImageInput, ...]]:
        return [*as_pairs(images)]

    def post_process_keypoint_matching(
        self, outputs: Any, target_sizes: Any, threshold: float = 0.0
    ) -> list[dict[str, Tensor]]:
        """Turn the model's output into matches in pixels of the original images.

        Args:
            outputs: What the model returned, keyglue's or transformers', object or mapping.
            target_sizes: (B, 2, 2) height and width of each original image, upright: a tensor, or a list of pairs of
                tuples.
            threshold: Keep matches whose score is above it.

        Returns:
            One dictionary a pair, in the order of image 0's keypoints: ``keypoints0`` and ``keypoints1`` (S, 2)
            float32, x and y, sub-pixel, the centre of the top-left pixel at (0, 0); ``matching_scores`` (S,);
            ``matches`` (S, 2) int64, indices of the keypoints in the output.

        Raises:
            InputError: The outputs lack a field, or there is not one target size for each image.
        """
        keypoints = original_keypoints(outputs, target_sizes, self.steps())
        matches: Tensor = get_field(outputs, "matches")[:, 0].long()
        scores: Tensor = get_field(outputs, "matching_scores")[:, 0]
        mask: Tensor = get_field(outputs, "mask").bool()
        # A match that points into the padding of image 1 is none.
        partner = matches.clamp(min=0)
        valid = mask[:, 0] & (matches >= 0) & (scores > threshold) & (partner < mask.shape[2])
        if mask.shape[2]:
            valid &= mask[:, 1].gather(1, partner.clamp(max=mask.shape[2] - 1))
        results: list[dict[str, Tensor]] = []
        for pair in range(len(matches)):
            index0 = valid[pair].nonzero().squeeze(1)
            index1 = matches[pair, index0]
            results.append(
                {
                    "keypoints0": keypoints[pair, 0, index0],
                    "keypoints1": keypoints[pair, 1, index1],
                    "matching_scores": scores[pair, index0],
                    "matches": torch.stack([index0, index1], dim=1),
                }
            )
        return results

    def visualize_keypoint_matching(
        self, images: Any, keypoint_matching_output: Sequence[Mapping[str, Tensor]]
    ) -> list[Image.Image]:
        """Draw image pairs side by side with lines between the matches, coloured by score.

        Args:
            images: The images as given to ``preprocess``, of any kind, gray ones included.
            keypoint_matching_output: What ``post_process_keypoint_matching`` returned for them.

        Returns:
            One picture a pair.

        Raises:
            InputError: The images are not pairs, or there is not one output for each pair.
        """
        pairs = as_pairs(images)
        if len(pairs) != len(keypoint_matching_output):
            raise InputError(f"there are {len(pairs)} image pairs and outputs of {len(keypoint_matching_output)}.")
        return [
            draw_matches(*pair, output["keypoints0"], output["keypoints1"], output["matching_scores"])
            for pair, output in zip(pairs, keypoint_matching_output, strict=True)
        ]

    def plot_keypoint_matching(self, images: Any, keypoint_matching_output: Any) -> list[Image.Image]:
        """Draw image pairs with their matches from the raw output of the model (deprecated).

        Use ``post_process_keypoint_matching`` and ``visualize_keypoint_matching``.

        Args:
            images: The images as given to ``preprocess``.
            keypoint_matching_output: What the model returned.

        Returns:
            One picture a pair, as ``visualize_keypoint_matching`` draws it.
        """
        warnings.warn(
            "plot_keypoint_matching is deprecated and will be removed. Use post_process_keypoint_matching and then "
            "visualize_keypoint_matching.",
            FutureWarning,
            stacklevel=2,
        )
        sizes = [[image_size(image) for image in pair] for pair in as_pairs(images)]
        return self.visualize_keypoint_matching(
            images, self.post_process_keypoint_matching(keypoint_matching_output, sizes)
        )


def as_pairs(images: Any) -> list[tuple[ImageInput, ImageInput]]:
    """Return what a user gave as one pair of images or a list of pairs, always as a list of pairs.

    Raises:
        InputError: It is neither.
    """
    wanted = "Pass a pair [image0, image1], or a list of pairs [[image0, image1], ...]"
    if _is_image(images):
        raise InputError(
            f"LightGlue matches pairs of images, but a single {type(images).__name__} was given. {wanted}."
        )
    if not isinstance(images, Sequence):
        raise InputError(f"images cannot be a {type(images).__name__}. {wanted}.")
    items = list(cast("Sequence[Any]", images))
    if not items:
        raise InputError(f"an empty list of images was given. {wanted}.")
    if all(_is_image(item) for item in items):
        if len(items) != 2:
            raise InputError(f"LightGlue matches pairs of images, but a list of {len(items)} was given. {wanted}.")
        return [(items[0], items[1])]
    for number, item in enumerate(items):
        if _is_image(item) or not isinstance(item, Sequence):
            raise InputError(f"item {number} of the list of pairs is a {type(item).__name__}, not a pair. {wanted}.")
        pair = cast("Sequence[Any]", item)
        if len(pair) != 2 or not all(_is_image(image) for image in pair):
            held = ", ".join(type(image).__name__ for image in pair) or "nothing"
            raise InputError(f"item {number} of the list of pairs is not two images but holds {held}. {wanted}.")
    return [(pair[0], pair[1]) for pair in items]


def _is_image(value: Any) -> bool:
    return isinstance(value, str | os.PathLike | Image.Image | np.ndarray | Tensor)
