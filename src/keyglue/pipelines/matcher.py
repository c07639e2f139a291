"""The short way: photographs in, matched points out.

``match`` does everything for two photographs; ``Matcher`` keeps the model, so that images are described once and
matched many times.
"""

from __future__ import annotations

import functools
import math
import numbers
import os
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from keyglue.base.devices import resolve_device, to_device
from keyglue.base.errors import InputError
from keyglue.base.types import Features, Matches
from keyglue.images.coordinates import resize_keypoints
from keyglue.images.processor import LightGlueImageProcessor
from keyglue.images.read import ImageInput
from keyglue.images.resize import resize_mask, to_grayscale
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.probability import match_probability
from keyglue.pipelines.photograph import Photograph, as_photograph
from keyglue.pipelines.result import PairResult
from keyglue.pipelines.search import ViewSearch

ResizeTo = int | tuple[int, int] | dict[str, int]


class Matcher:
    """A loaded model with its preprocessing.

    Args:
        model: Detector and matcher.
        processor: Says how images are resized.
        equalize: Whether images that show little contrast, dark or hazy ones, are equalised first.
    """

    def __init__(
        self, model: LightGlueForKeypointMatching, processor: LightGlueImageProcessor, *, equalize: bool = True
    ) -> None:
        self.model = model
        self.processor = processor
        self.equalize = equalize

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool | str = False,
        max_keypoints: int | None = None,
        resize: ResizeTo | None = None,
        filter_threshold: float | None = None,
        equalize: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load a model.

        Args:
            model: Name of a bundled model (the default), a local folder, or a Hub id.
            device: Where to compute; the best device there is unless told.
            dtype: Floating point type to compute in; unless told, what is quickest on the device: float32 or bfloat16.
            compile: Compile the model with torch.compile: True or one of its modes. The first call takes a minute;
                see docs/performance.md for when it pays.
            max_keypoints: Largest number of keypoints an image; -1 for all; the model's own unless told.
            resize: What images are resized to before detection: an int for the longest edge, (height, width), or a
                processor's ``size``; the model's own unless told.
            filter_threshold: Score that a match must exceed; the model's own unless told.
            equalize: Show the model dark and hazy images with their contrast raised.
            **kwargs: As for the model's ``from_pretrained``: ``revision``, ``cache_dir``, ``depth_confidence``, ...

        Raises:
            CheckpointError: The model is not there or damaged.
            ConfigError: A setting is impossible.
        """
        if filter_threshold is not None:
            kwargs["filter_threshold"] = filter_threshold
        loaded = LightGlueForKeypointMatching.from_pretrained(
            model, device=resolve_device(device), dtype=dtype, compile=compile, **kwargs
        )
        where = {key: kwargs[key] for key in ("revision", "cache_dir", "local_files_only", "token") if key in kwargs}
        if resize is not None:
            where.update(size=_size_rule(resize), do_resize=True)
        processor = LightGlueImageProcessor.from_pretrained(model, **where)
        if max_keypoints is not None:
            detector = loaded.keypoint_detector
            detector.config = detector.config.replace(max_keypoints=max_keypoints)
        return cls(loaded, processor, equalize=equalize)

    @property
    def num_layers(self) -> int:
        """Number of layers of the matcher."""
        return self.model.config.num_hidden_layers

    def extract(self, image: ImageInput, *, mask: ImageInput | None = None) -> Features:
        """Describe one image, to keep its Features and match it many times; arguments and errors as of ``prepare``."""
        photograph = self.prepare(image, mask=mask)
        features = cast("Features", photograph.features)
        size = photograph.size
        return features if features.image_size == size else features.with_original_size(size)

    def prepare(self, image: ImageInput, *, mask: ImageInput | None = None) -> Photograph:
        """Read and describe an image that is to be matched with many others; ``match`` takes it in place of an image.

        Its pixels are not kept: a file is read again if, to match, the image has to be turned or shown in another
        size.

        Args:
            image: Path, address, PIL image, array or tensor.
            mask: Of the image's size, nonzero where keypoints are wanted.

        Raises:
            ImageError: The image cannot be read.
            InputError: The mask does not fit the image.
        """
        read = Photograph.read(image, mask, equalize=self.equalize)
        steps = self.processor.steps()
        pixels = steps.apply(read.load(), "channels_first")
        size = (pixels.shape[1], pixels.shape[2])
        wanted = None if read.mask is None else resize_mask(read.mask, size)
        features = self.model.extract(to_device(pixels, self.model.device), mask=wanted)
        return read.described(features, to_grayscale(pixels))

    def match_features(self, features0: Features, features1: Features, *, seed: int = 0) -> PairResult:
        """Match two images by their Features; coordinates are those of the original images.

        Args:
            features0: Of image 0.
            features1: Of image 1.
            seed: Seed of the robust estimators that the result offers.
        """
        return self.match_many(features0, [features1], seed=seed)[0]

    def match_many(
        self, query: Features, database: Sequence[Features], *, batch: int = 16, seed: int = 0
    ) -> list[PairResult]:
        """Match one image with many by their Features.

        Args:
            query: Of image 0 of every pair.
            database: Of the images that it is matched with.
            batch: Number of pairs that the model gets at once; the results do not depend on it.
            seed: Seed of the robust estimators that the results offer.

        Returns:
            One result for each image of ``database``, in their order.

        Raises:
            InputError: ``batch`` is not positive.
        """
        if batch < 1:
            raise InputError(f"a batch holds at least one pair, got {batch}.")
        results: list[PairResult] = []
        for first in range(0, len(database), batch):
            part = database[first : first + batch]
            start = time.perf_counter()
            with torch.no_grad():
                found = self.model.match_pairs([(query, other) for other in part])
            each = _since(start) / len(part)
            results += [
                self._result(
                    (_original(query), _original(other)),
                    (query.original_size or query.image_size, other.original_size or other.image_size),
                    matches,
                    seed=seed,
                    milliseconds={"match": each},
                )
                for other, matches in zip(part, found, strict=True)
            ]
        return results

    def _result(
        self,
        keypoints: tuple[NDArray[np.floating], NDArray[np.floating]],
        sizes: tuple[tuple[int, int], tuple[int, int]],
        found: Matches,
        **more: Any,
    ) -> PairResult:
        indices = found.indices
        return PairResult(
            keypoints0=keypoints[0].astype(np.float32),
            keypoints1=keypoints[1].astype(np.float32),
            matches=indices.cpu().numpy(),
            scores=_array(found.matching_scores0[indices[:, 0]]),
            size0=sizes[0],
            size1=sizes[1],
            prune0=found.prune0.cpu().numpy(),
            prune1=found.prune1.cpu().numpy(),
            stop_layer=found.stop_layer,
            num_layers=self.num_layers,
            match_probability=match_probability(found, self.model.config.match_probability),
            **more,
        )

    def match(
        self,
        image0: ImageInput | Photograph,
        image1: ImageInput | Photograph,
        *,
        mask: ImageInput | tuple[ImageInput | None, ImageInput | None] | None = None,
        rotate: float | str = "auto",
        zoom: float | str = "auto",
        refine: bool = True,
        seed: int = 0,
    ) -> PairResult:
        """Match two photographs.

        Args:
            image0: Path, address, PIL image, array or tensor, or what ``prepare`` made of one.
            image1: The same.
            mask: Nonzero where keypoints are wanted: one for both images, or one each (None for no mask); an image that
                was prepared has its own.
            rotate: Degrees to turn image 1 counter-clockwise before matching, or "auto" to find out where the images do
                not match as they are. Coordinates are those of the image as given.
            zoom: How many times larger things are in image 0 than in image 1, as the model sees whole images: the one
                that shows them larger is shrunk by as much. "auto" finds out where the images do not match as they are.
            refine: Move matched points of image 1 to where the images themselves agree, by up to 3 pixels as the model
                sees them, and drop matches around which they look nothing alike.
            seed: Seed of the robust estimators that the result offers.

        Raises:
            ImageError: An image cannot be read.
            InputError: A mask or features do not fit, or ``rotate`` or ``zoom`` is something else.
        """
        start = time.perf_counter()
        masks = mask if isinstance(mask, tuple) else (mask, mask)
        photograph0 = as_photograph(image0, masks[0], equalize=self.equalize)
        photograph1 = as_photograph(image1, masks[1], equalize=self.equalize)
        read = _since(start)
        steps = self.processor.steps()
        search = ViewSearch(
            self.model,
            self._prepare,
            steps.seen_size,
            degrees=None if rotate == "auto" else _degrees(rotate),
            zoom=None if zoom == "auto" else _zoom(zoom),
            refine=refine,
        )
        found = search.run(photograph0, photograph1)
        return self._result(
            (found.look0.keypoints, found.look1.keypoints),
            (photograph0.size, photograph1.size),
            found.matches,
            rotation=found.degrees,
            zoom=found.zoom,
            seed=seed,
            milliseconds={"read": read, **found.milliseconds},
            images=(photograph0.source, photograph1.source),
        )

    def _prepare(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Return pixels (C, h, w) from 0 to 255 as the model takes them, resized to a height and width."""
        wanted = {"height": size[0], "width": size[1]}
        return self.processor.steps(size=wanted, do_resize=True).apply(pixels, "channels_first")


def match(
    image0: ImageInput,
    image1: ImageInput,
    *,
    model: str | os.PathLike[str] | Matcher | None = None,
    max_keypoints: int | None = None,
    resize: ResizeTo | None = None,
    filter_threshold: float | None = None,
    equalize: bool = True,
    mask: ImageInput | tuple[ImageInput | None, ImageInput | None] | None = None,
    rotate: float | str = "auto",
    zoom: float | str = "auto",
    refine: bool = True,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    compile: bool | str = False,
    seed: int = 0,
) -> PairResult:
    """Find which points of two photographs are the same point of the world.

    The model is kept between calls with the same settings. The same images and seed give the same bits on the
    same machine.

    Args:
        image0: Path, address, PIL image, array or tensor.
        image1: The same.
        model: Name of a bundled model (the default), a local folder, a Hub id, or a Matcher, whose settings then hold.
        max_keypoints: As for ``Matcher.from_pretrained``.
        resize: As for ``Matcher.from_pretrained``; the aspect ratio is kept unless (height, width) is given.
        filter_threshold: As for ``Matcher.from_pretrained``.
        equalize: As for ``Matcher.from_pretrained``.
        mask: As for ``Matcher.match``.
        rotate: As for ``Matcher.match``.
        zoom: As for ``Matcher.match``.
        refine: As for ``Matcher.match``.
        device: As for ``Matcher.from_pretrained``.
        dtype: As for ``Matcher.from_pretrained``.
        compile: As for ``Matcher.from_pretrained``.
        seed: As for ``Matcher.match``.

    Returns:
        Matched points in pixels of the original images, best first; geometry and pictures on demand.

    Raises:
        KeyglueError: An image, the model or a setting is not as described; the text says which.
    """
    if isinstance(model, Matcher):
        given: dict[str, Any] = {"max_keypoints": max_keypoints, "resize": resize, "device": device, "dtype": dtype}
        given.update(filter_threshold=filter_threshold, equalize=None if equalize else False, compile=compile or None)
        if any(value is not None for value in given.values()):
            names = ", ".join(name for name, value in given.items() if value is not None)
            raise InputError(f"{names}: a Matcher brings its own settings; give them to Matcher.from_pretrained.")
        matcher = model
    else:
        size = None if resize is None else tuple(sorted(_size_rule(resize).items()))
        where = str(resolve_device(device))
        matcher = _loaded(model, max_keypoints, size, filter_threshold, equalize, where, dtype, compile)
    return matcher.match(image0, image1, mask=mask, rotate=rotate, zoom=zoom, refine=refine, seed=seed)


@functools.lru_cache(maxsize=2)
def _loaded(
    model: str | os.PathLike[str] | None,
    max_keypoints: int | None,
    size: tuple[tuple[str, int], ...] | None,
    filter_threshold: float | None,
    equalize: bool,
    device: str,
    dtype: str | torch.dtype | None,
    compile: bool | str,
) -> Matcher:
    return Matcher.from_pretrained(
        model,
        max_keypoints=max_keypoints,
        resize=None if size is None else dict(size),
        filter_threshold=filter_threshold,
        equalize=equalize,
        device=device,
        dtype=dtype,
        compile=compile,
    )


def _size_rule(resize: ResizeTo) -> dict[str, int]:
    if isinstance(resize, dict):
        return resize
    if isinstance(resize, int) and not isinstance(resize, bool):
        return {"longest_edge": resize}
    if isinstance(resize, tuple) and len(resize) == 2:
        return {"height": resize[0], "width": resize[1]}
    raise InputError(f"resize must be an int (longest edge), (height, width) or a size dictionary, got {resize!r}.")


def _degrees(turn: float | str) -> float:
    value = float(turn) if isinstance(turn, numbers.Real) else math.nan
    if not math.isfinite(value):
        raise InputError(f"rotate must be a number of degrees, or 'auto', got {turn!r}.")
    return value % 360


def _zoom(factor: float | str) -> float:
    value = float(factor) if isinstance(factor, numbers.Real) else math.nan
    if not 1 / 16 <= value <= 16:  # of a NaN neither is true
        raise InputError(f"zoom must be a number from 1/16 to 16, or 'auto', got {factor!r}.")
    return value


def _original(features: Features) -> NDArray[np.float32]:
    points = features.keypoints
    if features.original_size is not None:
        points = resize_keypoints(points, features.image_size, features.original_size)
    return _array(points)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().cpu().to(torch.float32).numpy()


def _since(start: float) -> float:
    return 1000 * (time.perf_counter() - start)
