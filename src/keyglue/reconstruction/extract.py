"""A folder of images to a store of features: decoded ahead by threads, described by the model, written as they come."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from keyglue.base.errors import ImageError, InputError
from keyglue.base.types import Features
from keyglue.images.contrast import with_contrast
from keyglue.images.read import load_pixels, read_mask
from keyglue.images.resize import resize_image, resize_mask
from keyglue.pipelines.matcher import Matcher
from keyglue.reconstruction.ahead import ready_ahead
from keyglue.reconstruction.executor import Executor, SerialExecutor
from keyglue.reconstruction.record import ImageRecord
from keyglue.reconstruction.store import FeatureStore
from keyglue.reconstruction.tiling import describe_tiled

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".heic", ".heif", ".pgm", ".ppm")
Progress = Callable[[str, int, int], None]
# Entries of a configuration that change nothing about the features.
_NOT_SETTINGS = ("transformers_version", "attn_implementation", "dtype", "architectures")
_COLOUR_TOLERANCE = 10  # of 255, because JPEG changes colours a little
_COLOUR_MARGIN = 4  # pixels, because the edge of a coloured area is no corner of the scene


@dataclasses.dataclass(frozen=True)
class StageReport:
    """What a stage did.

    Attributes:
        done: Number of images or pairs worked on.
        kept: Number that was there already.
        failed: What was left out, with the reason.
        seconds: Time it took.
    """

    done: int
    kept: int
    failed: dict[str, str]
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masks:
    """Which pixels of the images may hold keypoints.

    Attributes:
        folder: Holds the mask of DIR/photo.jpg as DIR/photo.jpg.png, DIR/photo.png or DIR/photo.jpg, of the upright
            image's size, black where no keypoints are wanted; an image without one is used whole.
        colour: Pixels of this colour (red, green, blue) are left out.
    """

    folder: Path | None = None
    colour: tuple[int, int, int] | None = None

    def file(self, name: str) -> Path | None:
        """Return the mask of an image, None where there is none."""
        if self.folder is None:
            return None
        stem = name[: -len(Path(name).suffix)] if Path(name).suffix else name
        candidates = (self.folder / f"{name}.png", self.folder / f"{stem}.png", self.folder / name)
        return next((path for path in candidates if path.is_file()), None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values that tell one way of masking from another."""
        return {"folder": self.folder is not None, "colour": None if self.colour is None else list(self.colour)}


@dataclasses.dataclass(frozen=True)
class _Prepared:
    record: ImageRecord
    pixels: Tensor
    mask: Tensor | None


@dataclasses.dataclass(frozen=True)
class Described:
    """An image that has been described, or the reason why not."""

    name: str
    features: Features | None = None
    record: ImageRecord | None = None
    error: str = ""


@dataclasses.dataclass(frozen=True)
class DescribeImages:
    """The work of a stage: names of images in, features out, with images decoded ahead.

    Attributes:
        folder: The images' folder.
        matcher: Describes them.
        masks: Where keypoints are wanted.
        max_tile: Longest side of what the model sees at once.
        threads: Number of threads that decode.
        turns: Degrees by which images are turned counter-clockwise for the model; others are not.
    """

    folder: Path
    matcher: Matcher
    masks: Masks
    max_tile: int
    threads: int
    turns: Mapping[str, int]

    def on(self, device: str) -> Self:
        """Return the same work on another device."""
        self.matcher.model.to(device)
        return self

    def __call__(self, items: Iterable[str]) -> Iterator[Described]:
        """Yield each image's features, or why there are none."""
        for name, future in ready_ahead(self._prepare, self.folder, items, self.threads):
            yield self._finish(name, future)

    def _prepare(self, name: str) -> _Prepared:
        path, mask_file = self.folder / name, self.masks.file(name)
        record = dataclasses.replace(ImageRecord.of(path, mask_file), turn=self.turns.get(name, 0))
        pixels = load_pixels(path, guess_range=False)
        size = (pixels.shape[1], pixels.shape[2])
        mask = None if mask_file is None else read_mask(mask_file, size)
        if self.masks.colour is not None:
            coloured = _not_of_colour(pixels, self.masks.colour)
            mask = coloured if mask is None else mask & coloured
        if self.matcher.equalize:
            pixels = with_contrast(pixels)
        steps = self.matcher.processor.steps()
        seen = steps.seen_size(size)
        if mask is not None:
            mask = torch.rot90(resize_mask(mask, seen), record.turn // 90, (-2, -1))
        pixels = torch.rot90(resize_image(pixels, seen, steps.resample), record.turn // 90, (-2, -1))
        return _Prepared(record, pixels, mask)

    def _finish(self, name: str, future: Future[_Prepared]) -> Described:
        try:
            ready = future.result()
            features = describe_tiled(self.matcher, ready.pixels, ready.mask, self.max_tile)
        except (ImageError, InputError, OSError) as error:
            return Described(name, error=str(error))
        return Described(name, features.to("cpu"), ready.record)


def find_images(folder: Path) -> list[str]:
    """Return the names of the images in a folder and below, relative to it and with "/", sorted.

    Raises:
        InputError: The folder is not there or holds no images.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give the folder of the photographs.")
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not found:
        raise InputError(f"{folder} holds no images ({', '.join(SUFFIXES)}).")
    return found


def extract_images(
    folder: Path,
    names: Sequence[str],
    store: Path,
    matcher: Matcher,
    *,
    masks: Masks | None = None,
    max_tile: int = 1280,
    threads: int = 2,
    turns: Mapping[str, int] | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> StageReport:
    """Describe images into a store; images that are there already and have not changed are left alone.

    Args:
        folder: The images' folder.
        names: Names of the images relative to it.
        store: HDF5 file to write or to continue.
        matcher: Describes the images.
        masks: Which pixels may hold keypoints.
        max_tile: Larger images are described in tiles of this many pixels on a side.
        threads: Number of threads that decode images ahead.
        turns: Degrees by which images are turned counter-clockwise for the model, from ``find_turns``.
        executor: Where to compute; in this process unless told.
        progress: Called with "extract", the number of images done and that of all.

    Returns:
        Numbers of images; a broken image is left out and named.

    Raises:
        StoreError: The store is damaged, in use, or was made by another model or with other settings.
    """
    start, masks, turns = time.perf_counter(), masks or Masks(), turns or {}
    failed: dict[str, str] = {}
    with FeatureStore(store, feature_header(matcher, masks)) as features:
        pending = [name for name in names if not _is_current(features, folder, name, masks, turns.get(name, 0))]
        kept = len(names) - len(pending)
        if progress is not None:
            progress("extract", kept, len(names))
        work = DescribeImages(folder, matcher, masks, max_tile, threads, turns)
        for count, found in enumerate((executor or SerialExecutor()).run(work, pending), start=kept + 1):
            if found.features is None or found.record is None:
                failed[found.name] = found.error
                features.remove(found.name)
            else:
                features.save(found.name, found.features, found.record)
            if progress is not None:
                progress("extract", count, len(names))
    return StageReport(len(pending) - len(failed), kept, failed, time.perf_counter() - start)


def feature_header(matcher: Matcher, masks: Masks) -> dict[str, Any]:
    """Return what a store of features says of how they were made; two that differ never share a file."""
    detector = matcher.model.keypoint_detector
    settings = {key: value for key, value in detector.config.to_dict().items() if key not in _NOT_SETTINGS}
    return {
        "kind": "features",
        "model": str(matcher.model.name_or_path),
        "weights": weights_digest(detector),
        "detector": settings,
        "image": matcher.processor.to_dict(),
        "equalize": matcher.equalize,
        "dtype": str(matcher.model.dtype),
        "masks": masks.to_dict(),
    }


def weights_digest(module: nn.Module, but: str | None = None) -> str:
    """Return a digest of a model's weights, without those whose names begin with ``but``."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if but is not None and name.startswith(but):
            continue
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _is_current(features: FeatureStore, folder: Path, name: str, masks: Masks, turn: int) -> bool:
    if name not in features:
        return False
    record = features.record(name)
    return record.turn == turn and record.still_holds(folder / name, masks.file(name))


def _not_of_colour(pixels: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """Return (h, w), true where an image (C, h, w) is not of a colour, nor next to it."""
    wanted = torch.tensor(colour, dtype=torch.int16)[: pixels.shape[0], None, None]
    of_colour = ((pixels.to(torch.int16) - wanted).abs() <= _COLOUR_TOLERANCE).all(dim=0)
    reach = 2 * _COLOUR_MARGIN + 1
    return F.max_pool2d(of_colour[None].float(), reach, stride=1, padding=_COLOUR_MARGIN)[0] == 0
