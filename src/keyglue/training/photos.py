"""Photographs for training, decoded once and kept in memory as gray bytes.

Shapes: B views, H W pixels of the largest photograph of a batch. Frame: pixels of the photograph as it is kept, the
centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from keyglue.base.errors import ImageError, InputError
from keyglue.images.read import load_pixels
from keyglue.images.resize import resize_image, resized_size, to_grayscale
from keyglue.scoring.held_out import is_held_out

LONG_SIDE = 640
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_LEVELS = 3
_SMALLEST = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Photos:
    """Gray photographs in memory, each at full, half and quarter size.

    Attributes:
        names: Name of each photograph, by which it is held out or not.
        pyramids: For each photograph its levels (h, w), (h/2, w/2), (h/4, w/4), uint8, on the device of training.
    """

    names: tuple[str, ...]
    pyramids: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def of_images(cls, names: Sequence[str], images: Sequence[Tensor]) -> Self:
        """Make photographs of gray images (h, w), values 0 to 255."""
        return cls(tuple(names), tuple(pyramid(image) for image in images))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def device(self) -> torch.device:
        """Device that the photographs are on."""
        return self.pyramids[0][0].device

    def to(self, device: torch.device | str) -> Self:
        """Return the photographs on another device; there they take about 0.4 MB each."""
        moved = tuple(tuple(level.to(device) for level in levels) for levels in self.pyramids)
        return dataclasses.replace(self, pyramids=moved)

    def select(self, index: Sequence[int]) -> Self:
        """Return some of the photographs."""
        return type(self)(tuple(self.names[i] for i in index), tuple(self.pyramids[i] for i in index))

    def split(self) -> tuple[Self, Self]:
        """Return the photographs to train on and those held out for validation.

        Which are held out depends on their names only. Of a collection so small that none would be held out, the last
        one is; a single photograph is both trained and validated on.
        """
        held_out = [index for index, name in enumerate(self.names) if is_held_out(name)]
        if not held_out or len(held_out) == len(self):
            held_out = [len(self) - 1]
        rest = [index for index in range(len(self)) if index not in set(held_out)]
        return self.select(rest or held_out), self.select(held_out)

    def sizes(self, index: Sequence[int]) -> Tensor:
        """Return height and width (B, 2) of photographs, float64 on the CPU."""
        return torch.tensor([tuple(self.pyramids[i][0].shape) for i in index], dtype=torch.float64)

    def gather(self, index: Sequence[int], levels: Sequence[int]) -> Tensor:
        """Return photographs at chosen levels of their pyramids as one tensor.

        Args:
            index: B photographs.
            levels: Level of each, 0 for full size.

        Returns:
            (B, 1, H, W) float32 from 0 to 1, padded at the right and bottom by repeating the last row and column.
        """
        chosen = [self.pyramids[i][level] for i, level in zip(index, levels, strict=True)]
        height, width = (max(image.shape[axis] for image in chosen) for axis in (0, 1))
        out = torch.empty(len(chosen), 1, height, width, dtype=torch.uint8, device=self.device)
        for row, image in zip(out[:, 0], chosen, strict=True):
            h, w = image.shape
            row[:h, :w] = image
            row[:h, w:] = image[:, -1:]
            row[h:] = row[h - 1]
        return out.float() / 255


def load_photos(
    data: Sequence[str | os.PathLike[str]], *, long_side: int = LONG_SIDE, limit: int | None = None
) -> Photos:
    """Read the photographs of folders (with all folders below them), tar files and single image files.

    Files of a folder that are no images are passed over; so are damaged images and those with a side under 64 pixels.

    Args:
        data: Folders, tar files and image files.
        long_side: Larger photographs are shrunk to this many pixels.
        limit: Read no more than this many.

    Raises:
        InputError: A path does not exist, or there is no usable photograph.
    """
    found: list[tuple[str, tuple[Tensor, ...]]] = []
    with ThreadPoolExecutor(max(os.cpu_count() or 1, 1)) as pool:
        sources = list(_sources(data))[:limit]
        decoded = pool.map(lambda source: _decode(source[1], long_side), sources)
        for (name, _), pyramid in zip(sources, decoded, strict=True):
            if pyramid is not None:
                found.append((name, pyramid))
    if not found:
        raise InputError(
            f"no usable photograph in {', '.join(map(str, data))}: needed are {', '.join(SUFFIXES)} files, loose or in "
            f".tar files, of at least {_SMALLEST} pixels on each side."
        )
    # Sorted, so that what a step sees does not depend on the order of a folder's listing.
    found.sort(key=lambda entry: entry[0])
    return Photos(tuple(name for name, _ in found), tuple(pyramid for _, pyramid in found))


def _sources(data: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[str, Path | bytes]]:
    """Yield name and file, or content, of every image."""
    for place in map(Path, data):
        if place.is_dir():
            for path in sorted(place.rglob("*")):
                if path.suffix.lower() in SUFFIXES and path.is_file():
                    yield path.name, path
                elif path.suffix.lower() == ".tar" and path.is_file():
                    yield from _members(path)
        elif not place.is_file():
            raise InputError(f"{place} does not exist. Give folders of images, .tar files or image files.")
        elif place.suffix.lower() == ".tar":
            yield from _members(place)
        else:
            yield place.name, place


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None and Path(member.name).suffix.lower() in SUFFIXES:
                    yield Path(member.name).name, stream.read()
    except tarfile.TarError as error:
        raise InputError(f"{path} cannot be read as a tar file: {error}") from error


def _decode(source: Path | bytes, long_side: int) -> tuple[Tensor, ...] | None:
    """Return the levels of one photograph, or None where it can't be used."""
    try:
        gray = read_gray(source if isinstance(source, Path) else Image.open(io.BytesIO(source)), long_side)
    except (ImageError, OSError):
        return None
    return pyramid(gray) if min(gray.shape) >= _SMALLEST else None


def read_gray(image: Path | Image.Image, long_side: int) -> Tensor:
    """Return an image as gray values (h, w), float32 from 0 to 255, shrunk to ``long_side`` where it is larger.

    Raises:
        ImageError: It cannot be read.
    """
    gray = to_grayscale(load_pixels(image, guess_range=False).float())
    size = resized_size((gray.shape[1], gray.shape[2]), {"longest_edge": long_side})
    return resize_image(gray, size)[0]


def pyramid(gray: Tensor) -> tuple[Tensor, ...]:
    """Return a gray image (h, w), values 0 to 255, as uint8 at full, half and quarter size."""
    levels = [gray.float()]
    while len(levels) < _LEVELS:
        levels.append(F.avg_pool2d(levels[-1][None, None], 2)[0, 0])
    return tuple(level.round().clamp(0, 255).to(torch.uint8) for level in levels)
