"""Pairs with an exactly known homography, made of single photographs: two random views of each."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn.functional import grid_sample

from keyglue.base.errors import InputError
from keyglue.images.arrays import to_pixels
from keyglue.images.decode import decode_file, file_size
from keyglue.images.read import MAX_PIXELS
from keyglue.images.resize import to_grayscale
from keyglue.multiview.arrays import Array
from keyglue.multiview.homography import dlt_homography, warp_points
from keyglue.scoring.held_out import HELD_OUT_COUNT, held_out_names
from keyglue.scoring.pairs import HomographyTruth, PairSet, Picture, ScoredPair, Size

_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".webp")
_LEAST_OVERLAP = 0.3


@dataclasses.dataclass(frozen=True)
class PhotographFile:
    """A file in a folder or in a tar archive.

    Attributes:
        name: File name.
        path: The file, or the archive.
        offset: Where the file starts in the archive.
        length: Its length; -1 for a file in a folder.
    """

    name: str
    path: Path
    offset: int = 0
    length: int = -1

    def content(self) -> bytes:
        """Return the bytes of the file."""
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.length)


def find_photographs(folder: Path) -> list[PhotographFile]:
    """List the photographs of a folder, of the tar archives in it, or of one archive, by name.

    Raises:
        InputError: There are none, or two have the same name.
    """
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    found: list[PhotographFile] = []
    for file in files:
        if file.suffix.lower() == ".tar":
            with tarfile.open(file) as archive:
                members = [member for member in archive if member.isfile()]
            found += [PhotographFile(Path(m.name).name, file, m.offset_data, m.size) for m in members]
        else:
            found.append(PhotographFile(file.name, file))
    found = sorted(
        (photograph for photograph in found if Path(photograph.name).suffix.lower() in _SUFFIXES),
        key=lambda photograph: photograph.name,
    )
    if not found:
        raise InputError(f"{folder} holds no photographs ({', '.join(_SUFFIXES)}) and no tar archive with any.")
    for first, second in itertools.pairwise(found):
        if first.name == second.name:
            raise InputError(f"{folder} holds two photographs called {first.name}; rename one of them.")
    return found


def warps(folder: Path, *, seed: int = 0, difficulty: float = 0.7) -> PairSet:
    """Make one pair of random views of each photograph.

    Of a folder of more than 200 photographs only those are taken that training leaves out, at most 200; of a smaller
    one all. The views depend on the photograph's name and the seed alone.

    Args:
        folder: Photographs, tar archives of them, or one archive.
        seed: Another one gives other views.
        difficulty: From 0, the photograph itself twice, to 1; see ``random_view``.

    Raises:
        InputError: There are no photographs, or ``difficulty`` is outside its range.
    """
    if not 0 <= difficulty <= 1:
        raise InputError(f"difficulty must lie between 0 and 1, got {difficulty}.")
    found = {photograph.name: photograph for photograph in find_photographs(folder)}
    chosen = sorted(found) if len(found) <= HELD_OUT_COUNT else held_out_names(found)
    pairs = [_pair(found[name], seed, difficulty) for name in chosen]
    rule = (
        f"Two random views of each of {len(pairs)} photographs (of {len(found)}); seed {seed}, difficulty {difficulty}."
    )
    return PairSet(name="warps", pairs=pairs, rule=rule)


def random_view(generator: np.random.Generator, size: Size, difficulty: float) -> Array:
    """Draw the homography (3, 3) from a photograph to a view of it that has the photograph's size and no empty corners.

    Each corner of the photograph's outline is pulled inwards by up to ``difficulty / 2`` of the width and of the
    height, the outline is turned by up to 45 degrees times ``difficulty``, shrunk where it then is too large, and
    shifted to anywhere inside the photograph. What lies in it is the view.

    Args:
        generator: Source of the random numbers.
        size: Height and width.
        difficulty: From 0 to 1.
    """
    height, width = size
    outline = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    extent = np.array([width, height], dtype=np.float64)
    while True:
        pulled = outline + generator.uniform(0, difficulty / 2, (4, 2)) * (1 - 2 * outline)
        edges = np.roll(pulled, -1, axis=0) - pulled
        following = np.roll(edges, -1, axis=0)
        if (edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]).min() > 0.05:  # convex, no corner near 180
            break
    angle = np.radians(generator.uniform(-45, 45) * difficulty)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    quad = pulled * extent @ turn
    quad *= min(1.0, (extent / np.ptp(quad, axis=0)).min())
    room = np.maximum(extent - np.ptp(quad, axis=0), 0)
    quad += generator.uniform(0, 1, 2) * room - quad.min(axis=0)
    # Outlines run along the outer edges of the pixels, half a pixel from their centres.
    H = dlt_homography(quad - 0.5, outline * extent - 0.5)
    if H is None:
        raise InputError(f"a photograph of size {size} is too small for views of it.")
    return H


def _pair(photograph: PhotographFile, seed: int, difficulty: float) -> ScoredPair:
    size = file_size(photograph.content(), photograph.name)
    digest = hashlib.sha1(photograph.name.encode(), usedforsecurity=False).digest()
    generator = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
    while True:
        views = [random_view(generator, size, difficulty) for _ in range(2)]
        H = np.asarray(views[1] @ np.linalg.inv(views[0]), dtype=np.float64)
        if min(_overlap(H, size), _overlap(np.asarray(np.linalg.inv(H), dtype=np.float64), size)) >= _LEAST_OVERLAP:
            break
    pictures = [
        Picture(
            name=f"{photograph.name}#{index}",
            read=functools.partial(_read_view, photograph, view, int(generator.integers(2**63)), difficulty),
        )
        for index, view in enumerate(views)
    ]
    return ScoredPair(
        name=photograph.name, image0=pictures[0], image1=pictures[1], truth=HomographyTruth(H=H / H[2, 2])
    )


def _overlap(H: Array, size: Size) -> float:
    """Return the share of an image that a homography maps into another image of the same size."""
    height, width = size
    x, y = np.meshgrid(np.linspace(0, width - 1, 16), np.linspace(0, height - 1, 16))
    mapped = warp_points(H, np.stack([x.ravel(), y.ravel()], axis=1))
    return float(((mapped >= -0.5) & (mapped < (width - 0.5, height - 0.5))).all(axis=1).mean())


def _read_view(photograph: PhotographFile, view: Array, seed: int, difficulty: float) -> Tensor:
    """Return a view as (1, h, w) from 0 to 255, with a change of light and the camera's blur and noise."""
    array = decode_file(photograph.content(), photograph.name, MAX_PIXELS)
    gray = to_grayscale(to_pixels(array, photograph.name, guess_range=False).float())
    return _photometric(_warp(gray, view), np.random.default_rng(seed), difficulty)


def _warp(image: Tensor, view: Array) -> Tensor:
    """Return the view (1, h, w) of an image (1, h, w) by a homography from image to view, interpolated linearly."""
    height, width = image.shape[1:]
    x, y = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    source = warp_points(np.linalg.inv(view), np.stack([x.ravel(), y.ravel()], axis=1))
    relative = source * 2 / np.maximum([width - 1, height - 1], 1) - 1
    grid = torch.from_numpy(relative).float().reshape(1, height, width, 2)
    return grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0]


def _photometric(image: Tensor, generator: np.random.Generator, difficulty: float) -> Tensor:
    """Change gamma, contrast and brightness, blur, and add noise; difficulty 0 changes nothing."""
    gamma = np.exp(generator.uniform(-0.6, 0.6) * difficulty)
    contrast = 1 + generator.uniform(-0.4, 0.3) * difficulty
    brightness = 255 * generator.uniform(-0.25, 0.15) * difficulty
    radius = generator.uniform(0, 1.5) * difficulty
    noise = generator.uniform(0, 10) * difficulty
    values = (image.numpy()[0].astype(np.float64) / 255) ** gamma * 255
    values = ((values - 127.5) * contrast + 127.5 + brightness).clip(0, 255)
    soft = Image.fromarray(values.round().astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    noisy = np.asarray(soft) + generator.normal(0, noise, values.shape) if noise else np.asarray(soft)
    return torch.from_numpy(noisy.round().clip(0, 255).astype(np.float32))[None]
