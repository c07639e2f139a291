"""``pipeline("keypoint-matching")``: image pairs in, lists of matches out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias, TypedDict, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from keyglue.base.config import PretrainedConfig
from keyglue.base.errors import InputError
from keyglue.base.hub import Source
from keyglue.base.types import Features
from keyglue.images.processor import LightGlueImageProcessor
from keyglue.images.read import ImageInput, read_image
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.pipelines.auto import AutoImageProcessor, AutoModelForKeypointMatching
from keyglue.pipelines.matcher import Matcher

TASK = "keypoint-matching"
ImagePair: TypeAlias = Sequence[ImageInput]


class Keypoint(TypedDict):
    """A point in pixels of the original image."""

    x: float
    y: float


class Match(TypedDict):
    """One match of a pair."""

    keypoint_image_0: Keypoint
    keypoint_image_1: Keypoint
    score: float


class KeypointMatchingPipeline:
    """Matches pairs of images; an image that stands in several pairs of one call is described once.

    Args:
        model: Detector and matcher.
        image_processor: Says how images are resized.
    """

    task = TASK

    def __init__(self, model: LightGlueForKeypointMatching, image_processor: LightGlueImageProcessor) -> None:
        self.model = model
        self.image_processor = image_processor
        self._matcher = Matcher(model, image_processor)

    @property
    def device(self) -> torch.device:
        """Device that the model is on."""
        return self.model.device

    def __call__(
        self, inputs: ImagePair | Sequence[ImagePair], threshold: float = 0.0, timeout: float | None = None
    ) -> list[Match] | list[list[Match]]:
        """Match one pair or a list of pairs.

        Args:
            inputs: A pair of images (paths, addresses, PIL images, arrays, tensors), or a list of pairs.
            threshold: Score that a match must exceed, besides the model's own filter threshold.
            timeout: Seconds to wait for an image from the web.

        Returns:
            For ``[a, b]`` a list of matches, best first; for a list of pairs, even of one, a list of such lists.
            Coordinates are pixels of the original images.

        Raises:
            InputError: ``inputs`` is neither a pair nor a list of pairs, or ``threshold`` is no number from 0 to 1.
            ImageError: An image cannot be read.
        """
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold must lie between 0 and 1, got {threshold!r}.")
        pairs, single = _as_pairs(inputs)
        described: dict[object, Features] = {}
        found = [self._match(pair, threshold, timeout, described) for pair in pairs]
        return found[0] if single else found

    def _match(
        self, pair: ImagePair, threshold: float, timeout: float | None, described: dict[object, Features]
    ) -> list[Match]:
        features: list[Features] = []
        for image in pair:
            key = os.fspath(image) if isinstance(image, str | os.PathLike) else id(image)
            if key not in described:
                pixels = read_image(image, timeout=timeout)
                described[key] = self._matcher.extract(pixels)
            features.append(described[key])
        result = self._matcher.match_features(features[0], features[1])
        return [
            {
                "keypoint_image_0": {"x": float(x0), "y": float(y0)},
                "keypoint_image_1": {"x": float(x1), "y": float(y1)},
                "score": float(score),
            }
            for (x0, y0), (x1, y1), score in zip(result.points0, result.points1, result.scores, strict=True)
            if score > threshold
        ]


def pipeline(
    task: str | None = None,
    model: str | os.PathLike[str] | LightGlueForKeypointMatching | None = None,
    config: str | PretrainedConfig | None = None,
    image_processor: str | LightGlueImageProcessor | None = None,
    *,
    device: int | str | torch.device | None = "cpu",
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    compile: bool | str = False,
    trust_remote_code: bool | None = None,
    model_kwargs: dict[str, Any] | None = None,
    **where: Any,
) -> KeypointMatchingPipeline:
    """Make a pipeline that matches image pairs.

    Args:
        task: "keypoint-matching", the only task there is.
        model: A loaded model, or the name of a bundled model (the default), a local folder, or a Hub id.
        config: Configuration to use instead of the checkpoint's, or the name of the model that brings it.
        image_processor: A loaded processor, or the name of the model that brings it.
        device: Where to compute; -1 is the CPU.
        dtype: Floating point type to compute in.
        torch_dtype: Older name of ``dtype``.
        compile: Compile the model with torch.compile; True or one of its modes, as for the model's
            ``from_pretrained``.
        trust_remote_code: Accepted; code that a checkpoint names is never run.
        model_kwargs: Further arguments of the model's ``from_pretrained``.
        **where: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        InputError: The task or an argument is unknown.
    """
    del trust_remote_code
    for ignored in ("use_fast", "framework", "batch_size"):
        where.pop(ignored, None)
    if task not in (None, TASK):
        raise InputError(f"unknown task {task!r}; keyglue has {TASK!r}.")
    unknown = [key for key in where if key not in Source.where(where)]
    if unknown:
        raise InputError(f"pipeline has no argument {', '.join(unknown)}.")
    name = None if isinstance(model, LightGlueForKeypointMatching) else model
    if isinstance(model, LightGlueForKeypointMatching):
        loaded = model
    else:
        settings = (
            LightGlueForKeypointMatching.config_class.from_pretrained(config, **where)
            if isinstance(config, str)
            else config
        )
        loaded = AutoModelForKeypointMatching.from_pretrained(
            model,
            config=settings,
            device=_device(device),
            dtype=dtype or torch_dtype,
            compile=compile,
            **where,
            **(model_kwargs or {}),
        )
    if isinstance(image_processor, LightGlueImageProcessor):
        processor = image_processor
    else:
        processor = AutoImageProcessor.from_pretrained(image_processor or name, **where)
    return KeypointMatchingPipeline(loaded, cast("LightGlueImageProcessor", processor))


def _device(device: int | str | torch.device | None) -> str | torch.device:
    if device is None or device == -1:
        return "cpu"
    return f"cuda:{device}" if isinstance(device, int) else device


def _is_image(value: object) -> bool:
    return isinstance(value, str | os.PathLike | Image.Image | np.ndarray | Tensor)


def _is_pair(values: Sequence[Any]) -> bool:
    return len(values) == 2 and all(_is_image(image) for image in values)


def _as_pairs(inputs: Any) -> tuple[list[ImagePair], bool]:
    """Return the pairs and whether a single pair was given by itself."""
    if isinstance(inputs, list | tuple) and inputs:
        found = cast("Sequence[Any]", inputs)
        if _is_pair(found):
            return [found], True
        if all(isinstance(pair, list | tuple) and _is_pair(pair) for pair in found):
            return list(found), False
    given = f"a {type(inputs).__name__}" + (f" of {len(inputs)}" if isinstance(inputs, list | tuple) else "")
    raise InputError(f"give a pair [image, image] or a list of pairs [[image, image], ...]; got {given}.")
