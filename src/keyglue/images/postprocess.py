"""From a model's output back to pixels of the original images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.images.base_processor import Steps
from keyglue.images.coordinates import relative_to_pixels, resize_keypoints


def original_keypoints(outputs: Any, target_sizes: Any, steps: Steps) -> Tensor:
    """Return the keypoints of a model's output in pixels of the original images.

    Args:
        outputs: Object or mapping with ``keypoints`` (..., K, 2), relative to the image that the model saw, and
            ``image_sizes`` (..., 2), that image's height and width. Without them (outputs of other implementations) the
            size comes from what ``steps`` make of the original size.
        target_sizes: (..., 2) height and width of the original images, a tensor or nested lists.
        steps: What was done to the images before the model saw them.

    Returns:
        (..., K, 2) float32, sub-pixel.

    Raises:
        InputError: The outputs hold no keypoints, or the target sizes are not one for each image.
    """
    relative: Tensor = get_field(outputs, "keypoints").float()
    targets = read_sizes(target_sizes, (*relative.shape[:-2], 2))
    seen = get_field(outputs, "image_sizes", required=False)
    if seen is None:
        rows = [steps.seen_size(row) for row in targets.reshape(-1, 2).tolist()]
        seen = torch.tensor(rows, dtype=torch.int64).reshape(targets.shape)
    return resize_keypoints(relative_to_pixels(relative, seen), seen, targets)


def read_sizes(target_sizes: Any, shape: tuple[int, ...]) -> Tensor:
    """Return sizes given as a tensor, an array or nested sequences of either as a tensor of the wanted shape.

    Raises:
        InputError: They are of another shape, or one is less than a pixel.
    """
    wanted = f"target_sizes must hold (height, width) of each image of the batch, shape {shape}"
    try:
        sizes = torch.tensor(_to_lists(target_sizes))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{wanted}; got {target_sizes!r}.") from error
    if tuple(sizes.shape) != shape:
        raise InputError(f"{wanted}; got shape {tuple(sizes.shape)}.")
    if not bool((sizes >= 1).all()):
        raise InputError(f"{wanted}, each at least one pixel; got {sizes.tolist()}.")
    return sizes


def get_field(outputs: Any, name: str, *, required: bool = True) -> Any:
    """Return a field of a model's output, which may be an object or a mapping.

    Raises:
        InputError: It is required and not there.
    """
    if isinstance(outputs, Mapping):
        value = cast("Mapping[str, Any]", outputs).get(name)
    else:
        value = getattr(outputs, name, None)
    if value is None and required:
        raise InputError(
            f"the outputs hold no {name!r}. Pass what the model returned, not the tuple that return_dict=False gives."
        )
    return value


def _to_lists(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return cast("Any", value).tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_to_lists(item) for item in cast("Sequence[Any]", value)]
    return value
