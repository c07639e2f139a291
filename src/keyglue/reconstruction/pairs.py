"""Which pairs of images to match, and in which order.

Pairs are (P, 2) indices into the list of the images' names, the smaller first.
"""

from __future__ import annotations

import re
import shlex
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keyglue.base.errors import InputError
from keyglue.base.files import atomic_path

Pairs = NDArray[np.int64]

_QUOTED = re.compile(r"""["'#\\]|[^\S \t]""")  # or with other space than blanks and tabs
_EARTH_RADIUS, _EARTH_FLATTENING = 6378137.0, 1 / 298.257223563


def exhaustive_pairs(count: int) -> Pairs:
    """Return all pairs of ``count`` images."""
    return np.stack(np.triu_indices(count, k=1), axis=1).astype(np.int64)


def sequential_pairs(names: Sequence[str], overlap: int = 10, loops: NDArray[np.int64] | None = None) -> Pairs:
    """Return each image with those that follow it, in the order of the numbers in their names.

    Args:
        names: The images.
        overlap: Number of following images.
        loops: (n, k) similar images of each from ``nearest_images``: where a sequence comes back to a place.

    Raises:
        InputError: ``overlap`` is not positive.
    """
    if overlap < 1:
        raise InputError(f"overlap must be at least one image, got {overlap}.")
    order = np.array(sorted(range(len(names)), key=lambda index: _natural(names[index])), dtype=np.int64)
    steps = [np.stack([order[:-step], order[step:]], axis=1) for step in range(1, min(overlap, len(order) - 1) + 1)]
    found = np.concatenate([np.zeros((0, 2), dtype=np.int64), *steps])
    return unique_pairs(found if loops is None else np.concatenate([found, neighbour_pairs(loops)]))


def neighbour_pairs(neighbours: NDArray[np.int64]) -> Pairs:
    """Return the pairs of each image with its neighbours (n, k); -1 stands for none."""
    first = np.repeat(np.arange(len(neighbours)), neighbours.shape[1])
    found = np.stack([first, neighbours.reshape(-1)], axis=1)
    return unique_pairs(found[found[:, 1] >= 0])


def nearby_pairs(
    positions: NDArray[np.float64],
    count: int = 20,
    *,
    max_distance: float = np.inf,
    directions: NDArray[np.float64] | None = None,
    max_angle: float = 60.0,
) -> Pairs:
    """Return each image with the nearest others.

    Args:
        positions: (n, 3) of the cameras, in any unit; NaN where unknown.
        count: Largest number of neighbours of an image.
        max_distance: Largest distance, in the unit of the positions.
        directions: (n, 3) unit vectors along which the cameras look.
        max_angle: Largest angle between two cameras' directions in degrees.
    """
    total = len(positions)
    known = np.isfinite(positions).all(axis=1)
    neighbours = np.full((total, max(0, min(count, total - 1))), -1, dtype=np.int64)
    for index in np.flatnonzero(known):
        distance = np.linalg.norm(positions - positions[index], axis=1)
        distance[index] = np.inf
        allowed = known & (distance <= max_distance)
        if directions is not None:
            allowed &= directions @ directions[index] >= np.cos(np.radians(max_angle))
        distance[~allowed] = np.inf
        nearest = np.argsort(distance, kind="stable")[: neighbours.shape[1]]
        neighbours[index, : len(nearest)] = np.where(np.isfinite(distance[nearest]), nearest, -1)
    return neighbour_pairs(neighbours)


def gps_to_metres(places: Sequence[tuple[float, float, float] | None]) -> NDArray[np.float64]:
    """Return earth-centred positions (n, 3) in metres (WGS 84) of latitudes, longitudes, altitudes; NaN for None."""
    filled = np.array([(np.nan,) * 3 if place is None else place for place in places], dtype=np.float64).reshape(-1, 3)
    latitude, longitude = np.radians(filled[:, 0]), np.radians(filled[:, 1])
    eccentricity = _EARTH_FLATTENING * (2 - _EARTH_FLATTENING)
    radius = _EARTH_RADIUS / np.sqrt(1 - eccentricity * np.sin(latitude) ** 2)
    outward = (radius + filled[:, 2]) * np.cos(latitude)
    z = (radius * (1 - eccentricity) + filled[:, 2]) * np.sin(latitude)
    return np.stack([outward * np.cos(longitude), outward * np.sin(longitude), z], axis=1)


def unique_pairs(pairs: Pairs) -> Pairs:
    """Return the pairs sorted, each once, smaller index first, no image with itself."""
    ordered = np.sort(pairs.reshape(-1, 2), axis=1)
    return np.unique(ordered[ordered[:, 0] != ordered[:, 1]], axis=0)


def read_pairs(path: Path, names: Sequence[str]) -> Pairs:
    """Read pairs from a text file of two names a line, as hloc and COLMAP have them.

    Args:
        path: The file; ``#`` starts a comment, a name with spaces stands in quotes.
        names: The images.

    Raises:
        InputError: The file can't be read, a line does not hold two names, or a name is not among the images.
    """
    index = {name: number for number, name in enumerate(names)}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of pairs: {error}") from error
    found: list[tuple[int, int]] = []
    for number, line in enumerate(lines, start=1):
        try:
            # The shell's way of splitting takes fifty times as long.
            words = shlex.split(line, comments=True) if _QUOTED.search(line) else line.split()
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}.") from error
        if words and (len(words) != 2 or any(word not in index for word in words)):
            raise InputError(f"{path}, line {number}: expected two names of images, got {line.strip()!r}.")
        if words:
            found.append((index[words[0]], index[words[1]]))
    return unique_pairs(np.array(found, dtype=np.int64).reshape(-1, 2))


def write_pairs(path: Path, pairs: Pairs, names: Sequence[str], comment: str = "") -> None:
    """Write pairs for ``read_pairs``, below a comment if there is one; names with spaces are put in quotes."""
    quoted = [shlex.quote(name) if re.search(r"[\s\"'#\\]", name) else name for name in names]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(f"# {comment}\n" if comment else "")
        stream.writelines(f"{quoted[first]} {quoted[second]}\n" for first, second in pairs.tolist())


def indices_of(pairs: Iterable[tuple[str, str]], names: Sequence[str]) -> Pairs:
    """Return pairs of names as indices; pairs with a name that is not among the images are passed over."""
    index = {name: number for number, name in enumerate(names)}
    found = [(index[first], index[second]) for first, second in pairs if first in index and second in index]
    return unique_pairs(np.array(found, dtype=np.int64).reshape(-1, 2))


def schedule(pairs: Pairs, count: int, capacity: int) -> Pairs:
    """Return the pairs in an order in which each image's pairs lie close together.

    Images are numbered by a walk over the graph of pairs from neighbour to neighbour, and cut into blocks that fit into
    memory. While a block is there, the others pass by it one at a time; so an image is read once for each block
    that it has a pair with, when those used last are kept.

    Args:
        pairs: (P, 2) pairs.
        count: Number of images.
        capacity: Number of images that fit into memory.
    """
    if not len(pairs):
        return pairs
    rank = _walk(pairs, count)
    places = np.sort(rank[pairs], axis=1)
    block = max(1, capacity - 2)
    return pairs[np.lexsort((places[:, 0], places[:, 1], places[:, 0] // block))]


def _walk(pairs: Pairs, count: int) -> NDArray[np.int64]:
    """Return each image's place (n,) in a breadth-first walk over the graph of pairs."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    starts = np.searchsorted(both[:, 0], np.arange(count + 1))
    rank = np.full(count, -1, dtype=np.int64)
    place = 0
    for seed in range(count):
        if rank[seed] >= 0:
            continue
        rank[seed] = place
        place += 1
        waiting = deque([seed])
        while waiting:
            image = waiting.popleft()
            for neighbour in both[starts[image] : starts[image + 1], 1].tolist():
                if rank[neighbour] < 0:
                    rank[neighbour] = place
                    place += 1
                    waiting.append(neighbour)
    return rank


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts img9 before img10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
