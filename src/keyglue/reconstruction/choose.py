"""Which pairs of images are matched: the choices that people have, from a store of features to a text file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyglue.base.errors import InputError
from keyglue.reconstruction.colmap import read_model
from keyglue.reconstruction.extract import Progress
from keyglue.reconstruction.pairs import (
    Pairs,
    exhaustive_pairs,
    gps_to_metres,
    nearby_pairs,
    neighbour_pairs,
    read_pairs,
    schedule,
    sequential_pairs,
    write_pairs,
)
from keyglue.reconstruction.retrieval import (
    best_connected,
    descriptor_capacity,
    image_vectors,
    nearest_images,
    pair_overlaps,
    vector_similarities,
)
from keyglue.reconstruction.store import FeatureStore

PAIR_CHOICES = ("auto", "exhaustive", "sequential", "retrieval", "gps")
# Up to so many images all pairs are matched unless told otherwise: 1,770 pairs.
_FEW_IMAGES = 60
_LOOPS = 5  # similar images that each image of a sequence is matched with, beside those that follow it
_CANDIDATES = 20  # images that each is compared with at the least


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Which pairs are matched.

    Attributes:
        choice: "exhaustive", "sequential" (with loops found by retrieval), "retrieval", "gps"; or "auto":
            exhaustive for up to 60 images, retrieval for more.
        neighbours: Number of other images for each, by retrieval or GPS.
        overlap: Number of following images for each of a sequence.
        max_distance: Largest distance by GPS in metres.
        compare: Whether retrieval compares its candidates by their strongest descriptors too, which takes about a
            millisecond a pair.
    """

    choice: str = "auto"
    neighbours: int = 20
    overlap: int = 10
    max_distance: float = float("inf")
    compare: bool = True

    def __post_init__(self) -> None:
        if self.choice not in PAIR_CHOICES:
            raise InputError(f"pairs must be one of {', '.join(PAIR_CHOICES)}, got {self.choice!r}.")
        if min(self.neighbours, self.overlap) < 1:
            raise InputError("neighbours and overlap must be at least one image.")


def choose_pairs(
    features: Path, names: Sequence[str], options: PairOptions, output: Path, progress: Progress | None = None
) -> Pairs:
    """Choose the pairs to match and write them to a text file, or read it where it is still right.

    Args:
        features: Store of the images' features.
        names: The images.
        options: Which pairs.
        output: The text file.
        progress: As for ``reconstruct``.

    Raises:
        InputError: There are no places in the images' EXIF data to choose by.
    """
    with FeatureStore(features) as store:
        key = digest(names, [store.digest(name) for name in names], dataclasses.asdict(options))
        if _first_line(output) == f"# keyglue {key}\n":
            return read_pairs(output, names)
        pairs = _chosen(store, names, options, progress)
    write_pairs(output, pairs, names, f"keyglue {key}")
    return pairs


def pairs_by_poses(model: Path, names: Sequence[str], neighbours: int, output: Path) -> Pairs:
    """Choose for each image those whose cameras are nearest and look in a like direction, and write them.

    Args:
        model: Folder of a COLMAP model.
        names: The images; those without a pose get no pairs.
        neighbours: Number of other images for each.
        output: The text file.

    Raises:
        InputError: There is no model, or no image has a pose in it.
    """
    index = {name: number for number, name in enumerate(names)}
    positions, directions = np.full((len(names), 3), np.nan), np.full((len(names), 3), np.nan)
    for image in read_model(model).images.values():
        if image.has_pose and image.name in index:
            pose = image.cam_from_world().matrix()
            positions[index[image.name]] = -pose[:, :3].T @ pose[:, 3]
            directions[index[image.name]] = pose[2, :3]
    if not np.isfinite(positions).any():
        raise InputError(f"no image has a pose in {model}: are the names the same?")
    pairs = nearby_pairs(positions, neighbours, directions=directions)
    write_pairs(output, pairs, names)
    return pairs


def _chosen(store: FeatureStore, names: Sequence[str], options: PairOptions, progress: Progress | None) -> Pairs:
    choice = options.choice
    if choice == "auto":
        choice = "exhaustive" if len(names) <= _FEW_IMAGES else "retrieval"
    if choice == "exhaustive":
        return exhaustive_pairs(len(names))
    if choice == "gps":
        places = [store.record(name).gps for name in names]
        if sum(place is not None for place in places) < 2:
            raise InputError("fewer than two images have a place in their EXIF data: choose pairs in another way.")
        return nearby_pairs(gps_to_metres(places), options.neighbours, max_distance=options.max_distance)
    if choice == "sequential":
        following = sequential_pairs(names, options.overlap)
        most = 2 * options.overlap + _LOOPS
        similar = similar_images(store, names, most, compare=options.compare, progress=progress)
        return sequential_pairs(names, options.overlap, _without(similar, following, _LOOPS))
    found = similar_images(store, names, options.neighbours, compare=options.compare, progress=progress)
    return neighbour_pairs(found)


def _without(neighbours: NDArray[np.int64], pairs: Pairs, count: int) -> NDArray[np.int64]:
    """Return the first ``count`` neighbours of each image (n, k) with which it forms no pair, and -1 for the others."""
    images = np.arange(len(neighbours))[:, None]
    keys = np.minimum(images, neighbours) * len(neighbours) + np.maximum(images, neighbours)
    new = ~np.isin(keys, pairs[:, 0] * len(neighbours) + pairs[:, 1]) & (neighbours >= 0)
    return np.where(new & (np.cumsum(new, axis=1) <= count), neighbours, -1)


def similar_images(
    store: FeatureStore,
    names: Sequence[str],
    count: int,
    *,
    compare: bool = True,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """Return for each image the ``count`` that most likely show the same place, best first, (n, count).

    Args:
        store: Features of the images.
        names: The images.
        count: Number of neighbours.
        compare: Whether to compare candidates by their strongest descriptors, too.
        progress: As for ``reconstruct``.

    Returns:
        -1 stands for none.
    """
    vectors = image_vectors(store, names, progress=progress)
    pairs = neighbour_pairs(nearest_images(vectors, max(count, _CANDIDATES)))
    weights = vector_similarities(vectors, pairs)
    if compare:
        pairs = schedule(pairs, len(names), descriptor_capacity(store, names))
        # Where the comparison sees nothing, the vectors decide.
        weights = 0.001 * vector_similarities(vectors, pairs)
        weights += pair_overlaps(store, names, pairs, progress=progress)
    return best_connected(pairs, weights, len(names), count)


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as stream:
            return stream.readline()
    except (OSError, UnicodeDecodeError):
        return ""


def digest(*values: Any) -> str:
    """Return a digest of JSON values."""
    return hashlib.blake2b(json.dumps(values, default=str).encode(), digest_size=12).hexdigest()
