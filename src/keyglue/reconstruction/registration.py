"""Patches of one photograph laid over another, to a small part of a pixel.

Inverse compositional Gauss-Newton (Baker and Matthews, IJCV 2004) over an affine warp, brightness and contrast free.

Shapes: n patches, s samples of a patch. Frame: COLMAP's, in pixels of the picture as its file stores it.
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
from torch.nn import functional as F

from keyglue.images.coordinates import EXIF_UPRIGHT
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
            self._kept[image] = _smooth(picture), picture.shape[::-1] / full
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
    reach = torch.arange(-radius, radius + 1, dtype=torch.float32)
    offsets = torch.stack(torch.meshgrid(reach, reach, indexing="xy"), dim=-1).flatten(0, 1)  # (s, 2)
    weight = torch.exp(-3 * (offsets / (radius + 1)).square().sum(dim=1))
    template = torch.zeros(len(patches.start), 3, len(offsets))  # brightness and its slopes along x and y
    scales = np.ones_like(patches.start)
    for image, rows in _by_image(patches.reference_image):
        picture, scale = pictures.take(image)
        centres = torch.from_numpy(patches.reference_position[rows] * scale).float()
        samples = centres[:, None] + offsets
        half = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
        slopes = [_sample(picture, samples + step) - _sample(picture, samples - step) for step in half]
        template[rows] = torch.stack([_sample(picture, samples), *slopes], dim=1)
        scales[rows] = scale
    position, similarity = patches.start.copy(), torch.full((len(patches.start),), -1.0)
    for image, rows in _by_image(patches.image):
        picture, scale = pictures.take(image)
        start = torch.from_numpy(patches.start[rows] * scale).float()
        warp = torch.from_numpy(patches.warp[rows] * scale[:, None] / scales[rows][:, None]).float()
        shift, alike, change = _align(picture, template[rows], start, warp, offsets, weight, iterations)
        sound = (change <= _LARGEST_WARP) & shift.isfinite().all(dim=1)
        similarity[rows] = torch.where(sound, alike, -1.0)
        position[rows] += torch.where(sound[:, None], shift, 0).double().numpy() / scale
    return position, similarity.double().numpy()


def _align(
    picture: Tensor, template: Tensor, start: Tensor, warp: Tensor, offsets: Tensor, weight: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Register patches to one picture.

    Args:
        picture: (h, w).
        template: (n, 3, s) brightness of the reference patch and its slopes.
        start: (n, 2) where the patches are expected.
        warp: (n, 2, 2) expected warp of the offsets.
        offsets: (s, 2) places of the samples.
        weight: (s,) weights of the samples.
        iterations: Number of steps.

    Returns:
        Shift (n, 2) in pixels, similarity (n,), and largest change (n,) of the warp.
    """
    radius = offsets.max()
    wanted, deviation = _standardised(template[:, 0], weight)
    slopes = template[:, 1:].transpose(1, 2) / deviation[..., None]  # (n, s, 2)
    scaled = offsets / radius
    columns = [slopes, slopes[..., :1] * scaled, slopes[..., 1:] * scaled]
    steepest = torch.cat(columns, dim=-1)  # (n, s, 6): shift, then rows of the linear part
    weighted = steepest * weight[:, None]
    hessian = weighted.transpose(1, 2) @ steepest
    ridge = 1e-3 * hessian.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-9)
    inverse = torch.linalg.pinv(hessian + ridge[:, None, None] * torch.eye(6), hermitian=True)
    shift = torch.zeros(len(start), 2)
    linear = torch.eye(2).repeat(len(start), 1, 1)
    for _ in range(iterations):
        found, _ = _standardised(_sample(picture, _places(start, warp, linear, shift, offsets)), weight)
        step = (inverse @ (weighted.transpose(1, 2) @ (found - wanted)[..., None]))[..., 0]
        step = step.nan_to_num().clamp(-2, 2)
        change = step[:, 2:].unflatten(1, (2, 2)).clamp(-0.3, 0.3) / radius
        # The step warps the reference patch; its inverse is put before the warp so far.
        undo = torch.linalg.inv(torch.eye(2) + change)
        linear = linear @ undo
        shift = shift - (linear @ step[:, :2, None])[..., 0]
    found, _ = _standardised(_sample(picture, _places(start, warp, linear, shift, offsets)), weight)
    similarity = (found * wanted * weight).sum(dim=1) / weight.sum()
    return (warp @ shift[..., None])[..., 0], similarity, (linear - torch.eye(2)).abs().amax(dim=(1, 2))


def _places(start: Tensor, warp: Tensor, linear: Tensor, shift: Tensor, offsets: Tensor) -> Tensor:
    """Return (n, s, 2) where the samples of each patch lie in the picture."""
    moved = offsets @ linear.transpose(1, 2) + shift[:, None]
    return start[:, None] + moved @ warp.transpose(1, 2)


def _standardised(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (n, s) values of mean zero and deviation one, and their deviation (n, 1)."""
    total = weight.sum()
    centred = values - (values * weight).sum(dim=1, keepdim=True) / total
    deviation = ((centred.square() * weight).sum(dim=1, keepdim=True) / total).sqrt().clamp(min=1e-3)
    return centred / deviation, deviation


def _sample(picture: Tensor, places: Tensor) -> Tensor:
    """Return (n, s) brightness at places (n, s, 2) in COLMAP's frame; outside, that of the edge."""
    height, width = picture.shape
    grid = places / torch.tensor([width, height]) * 2 - 1
    return F.grid_sample(picture[None, None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[
        0, 0
    ]


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


def _smooth(picture: Tensor) -> Tensor:
    """Return a picture filtered by a Gaussian of 0.8 pixels, so that it may be interpolated and its slopes are calm."""
    kernel = torch.exp(-torch.arange(-2, 3).float().square() / (2 * 0.8**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(picture[None, None], (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, 5)), kernel.view(1, 1, 5, 1))[0, 0].contiguous()
