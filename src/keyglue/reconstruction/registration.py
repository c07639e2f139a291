"""Patches of many photographs laid over each other: see images/registration.py.

Shapes: n patches. Frame: COLMAP's, in pixels of the picture as its file stores it.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyglue.images import registration
from keyglue.images.coordinates import EXIF_UPRIGHT, from_colmap
from keyglue.images.read import read_image
from keyglue.images.resize import resize_image, to_grayscale

LONGEST = 2000  # pixels on the longer side; larger pictures are made smaller
_CHUNK = 16_384  # patches that are held at once
_KEPT = 128 << 20  # bytes of pictures that are kept
_LARGEST_WARP = 0.5  # change of the affine warp beyond which a registration has gone astray


@dataclasses.dataclass(frozen=True, eq=False)
class Patches:
    """Patches to register: where each lies in its reference picture, and where it is expected in another.

    Attributes:
        reference_image: (n,) number of the reference picture.
        reference_position: (n, 2) place in it.
        image: (n,) number of the other picture.
        start: (n, 2) where the patch is expected there.
        warp: (n, 2, 2) from offsets in the reference picture to offsets in the other.
    """

    reference_image: NDArray[np.int64]
    reference_position: NDArray[np.float64]
    image: NDArray[np.int64]
    start: NDArray[np.float64]
    warp: NDArray[np.float64]

    def take(self, rows: NDArray[np.int64]) -> Patches:
        """Return some of them."""
        return Patches(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


class Pictures:
    """Gray pictures as their files store them, a little smoothed, the last used ones kept.

    Args:
        folder: Folder of the images.
        orientations: EXIF orientation of each image.
        names: Name of each image by its number.
    """

    def __init__(self, folder: Path, orientations: Mapping[str, int], names: Mapping[int, str]) -> None:
        self._folder, self._orientations, self._names = folder, orientations, names
        self._kept: OrderedDict[int, tuple[Tensor, NDArray[np.float64]]] = OrderedDict()

    def take(self, image: int) -> tuple[Tensor, NDArray[np.float64]]:
        """Return a picture (h, w), and by how much its width and height (2,) are those of the file.

        Raises:
            ImageError: It cannot be read.
        """
        if image not in self._kept:
            name = self._names[image]
            picture = _stored(to_grayscale(read_image(self._folder / name)), self._orientations[name])
            full = np.array(picture.shape[::-1])
            if max(full) > LONGEST:
                width, height = np.maximum(1, np.rint(full * LONGEST / max(full))).astype(int).tolist()
                picture = resize_image(picture[None], (height, width))[0]
            self._kept[image] = registration.smooth(picture), picture.shape[::-1] / full
        self._kept.move_to_end(image)
        while len(self._kept) > 1 and sum(picture.nbytes for picture, _ in self._kept.values()) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[image]


def register(
    patches: Patches, pictures: Pictures, radius: int, iterations: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find where patches lie in their other pictures.

    Args:
        patches: The patches.
        pictures: The pictures.
        radius: Half width of a patch in pixels of the pictures.
        iterations: Number of steps.

    Returns:
        Positions (n, 2), and how alike the patches are there (n,): the normalised cross-correlation, -1 where the
        registration went astray.

    Raises:
        ImageError: A picture cannot be read.
    """
    position, similarity = patches.start.copy(), np.full(len(patches.start), -1.0)
    # Patches of one reference picture together, so that few pictures are needed at a time.
    order = np.lexsort((patches.image, patches.reference_image))
    for start in range(0, len(order), _CHUNK):
        rows = order[start : start + _CHUNK]
        position[rows], similarity[rows] = _register(patches.take(rows), pictures, radius, iterations)
    return position, similarity


def _register(
    patches: Patches, pictures: Pictures, radius: int, iterations: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    window = registration.Window.gaussian(radius)
    templates = torch.zeros(len(patches.start), 3, len(window.offsets))
    scales = np.ones_like(patches.start)
    for image, rows in _by_image(patches.reference_image):
        picture, scale = pictures.take(image)
        centres = torch.from_numpy(from_colmap(patches.reference_position[rows] * scale)).float()
        templates[rows] = registration.take_patches(picture, centres, window)
        scales[rows] = scale
    position, similarity = patches.start.copy(), np.full(len(patches.start), -1.0)
    for image, rows in _by_image(patches.image):
        picture, scale = pictures.take(image)
        start = torch.from_numpy(from_colmap(patches.start[rows] * scale)).float()
        warp = torch.from_numpy(patches.warp[rows] * scale[:, None] / scales[rows][:, None]).float()
        found = registration.register(picture, templates[rows], start, warp, window, iterations, affine=True)
        sound = (found.change <= _LARGEST_WARP).numpy()
        similarity[rows] = np.where(sound, found.similarity.double().numpy(), -1.0)
        position[rows] += np.where(sound[:, None], found.shift.double().numpy(), 0.0) / scale
    return position, similarity


def _by_image(images: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Return each image with the rows that belong to it."""
    order = np.argsort(images, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(images[order]) != 0]) if len(order) else []
    return [(int(images[rows[0]]), rows) for rows in np.split(order, starts[1:])] if len(order) else []


def _stored(upright: Tensor, orientation: int) -> Tensor:
    """Return an upright gray image (1, h, w) as its file stores it, (h, w)."""
    swap, flip_y, flip_x = EXIF_UPRIGHT.get(orientation, (False, False, False))
    gray = upright[0].flip([axis for axis, wanted in ((0, flip_y), (1, flip_x)) if wanted])
    return gray.T if swap else gray
