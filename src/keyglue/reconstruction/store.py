"""Features of images and matches of pairs on disk, in the groups and datasets that hloc reads and writes.

    features  NAME/keypoints (N, 2), NAME/descriptors (D, N), NAME/scores (N,), NAME/image_size (width, height)
    matches   NAME0/NAME1/matches0 (M,), NAME0/NAME1/matching_scores0 (M,), with "-" for "/" in the names

Keypoints are pixels of the upright image at its full size, the centre of the top-left pixel at (0, 0), as hloc has it.
What hloc does not know is in an attribute "keyglue" of each group (JSON) and in the dataset inliers0 of a pair.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyglue.base.errors import InputError, StoreError
from keyglue.base.types import Features
from keyglue.images.coordinates import resize_keypoints, turn_keypoints, turned_size, unturn_keypoints
from keyglue.reconstruction.container import Container
from keyglue.reconstruction.record import ImageRecord

_BYTES_PER_GROUP = 2000  # what HDF5 needs beside the data, about


class FeatureStore(Container):
    """Features of many images in one HDF5 file."""

    def names(self) -> list[str]:
        """Return the names of the images, sorted."""
        return sorted(self.group_names("keypoints"))

    def __contains__(self, name: str) -> bool:
        return f"{name}/keypoints" in self.file

    def save(self, name: str, features: Features, record: ImageRecord) -> None:
        """Write the features of an image, in place of earlier ones.

        Args:
            name: Name of the image relative to its folder, with "/".
            features: Its features, in pixels of what the model saw: the upright image, turned as the record says.
            record: What is known of its file.
        """
        arrays = _feature_arrays(features, record)
        note = {
            **record.to_dict(),
            "seen": list(turned_size(features.image_size, -record.turn)),
            "detector": features.detector,
            "features": _digest(arrays),
        }
        with self.entry(name, sum(array.nbytes for array in arrays.values()) + _BYTES_PER_GROUP) as group:
            self.fill(group, arrays, note)

    def load(self, name: str) -> Features:
        """Read the features of an image, in pixels of what the model saw.

        Raises:
            InputError: There are none of that name.
            StoreError: They are damaged.
        """
        group = self.group(name)
        with self.reading(name):
            arrays = {key: np.asarray(group[key]) for key in group}
            self.count_bytes(sum(array.nbytes for array in arrays.values()))
            note = self.note_of(group, name)
            if "features" in note and note["features"] != _digest(arrays):
                raise StoreError(f"{self.path} is damaged at {name}: its content has changed. Delete the file.")
            width, height = (int(value) for value in arrays["image_size"])
            seen, turn = note.get("seen", (height, width)), note.get("turn", 0)
            keypoints = torch.from_numpy(arrays["keypoints"].astype(np.float32))
            upright = resize_keypoints(keypoints, (height, width), seen)
            return Features(
                keypoints=turn_keypoints(upright, turn, seen) if turn else upright,
                descriptors=torch.from_numpy(arrays["descriptors"].T.astype(np.float32)),
                image_size=turned_size(seen, turn),
                keypoint_scores=_tensor(arrays.get("scores")),
                scales=_tensor(arrays.get("scales")),
                orientations=_tensor(arrays.get("orientations")),
                original_size=turned_size((height, width), turn),
                detector=note.get("detector", ""),
            )

    def keypoints(self, name: str) -> NDArray[np.float32]:
        """Return the (N, 2) keypoints of an image in pixels of the upright image at its full size."""
        group = self.group(name)
        with self.reading(name):
            return np.asarray(group["keypoints"], dtype=np.float32)

    def descriptors(self, name: str, most: int) -> NDArray[np.float16]:
        """Return (n, D) descriptors of the ``most`` strongest keypoints of an image, strongest first."""
        group = self.group(name)
        with self.reading(name):
            order = slice(None)
            if "scores" in group:
                order = np.argsort(-np.asarray(group["scores"], dtype=np.float32), kind="stable")[:most]
            found = np.asarray(group["descriptors"])
            self.count_bytes(found.nbytes)
            return found[:, order][:, :most].T.astype(np.float16)

    def memory(self, name: str) -> int:
        """Return about how many bytes an image's features take in memory."""
        group = self.group(name)
        with self.reading(name):
            length, count = group["descriptors"].shape
            return int(count) * (4 * int(length) + 24)

    def record(self, name: str) -> ImageRecord:
        """Return what is known of an image's file; of a store of other code that is its size."""
        group = self.group(name)
        with self.reading(name):
            note = self.note_of(group, name)
            if "size" in note:
                return ImageRecord.from_dict(note)
            width, height = (int(value) for value in np.asarray(group["image_size"]))
            return ImageRecord(size=(height, width))

    def digest(self, name: str) -> str:
        """Return a digest of an image's features, by which matches know what they were made from."""
        group = self.group(name)
        with self.reading(name):
            found = self.note_of(group, name).get("features")
            return found or _digest({key: np.asarray(group[key]) for key in group})


@dataclasses.dataclass(frozen=True, eq=False)
class PairMatches:
    """Matches of a pair of images as a store holds them.

    Attributes:
        matches: (S, 2) indices into the keypoints of both images, in the order of image 0.
        scores: (S,) matching scores.
        inliers: (S,) true where a match agrees with the geometry; None where that was not estimated.
        geometry: What is known of the geometry, as ``keyglue.reconstruction.verify`` wrote it.
    """

    matches: NDArray[np.int64]
    scores: NDArray[np.float32]
    inliers: NDArray[np.bool_] | None = None
    geometry: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.matches)


class MatchStore(Container):
    """Matches of many pairs in one HDF5 file."""

    def pairs(self, names: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
        """Yield the pairs, names as the images have them.

        Args:
            names: The images; a store of other code has "-" for "/", and only they say which.
        """
        known = {name.replace("/", "-"): name for name in names}
        for name, group in self.groups("matches0"):
            first, second = self.note_of(group, name).get("names") or name.split("/")
            yield known.get(first, first), known.get(second, second)

    def stamp(self, name0: str, name1: str) -> tuple[str, str] | None:
        """Return the digests of the features that a pair's matches were made from, None where there are none."""
        key = pair_key(name0, name1)
        with self.reading(key):
            group = self.file.get(key)
            if group is None:
                return None
            digests = self.note_of(group, key).get("features", ["", ""])
            return digests[0], digests[1]

    def save(
        self, name0: str, name1: str, found: PairMatches, keypoints: tuple[int, int], digests: tuple[str, str]
    ) -> None:
        """Write the matches of a pair, in place of earlier ones.

        Args:
            name0: Name of image 0.
            name1: Name of image 1.
            found: The matches.
            keypoints: Number of keypoints of both images.
            digests: Of the features of both images.
        """
        count = keypoints[0]
        index = np.full(count, -1, dtype=np.int16 if keypoints[1] < 1 << 15 else np.int32)
        scores = np.zeros(count, dtype=np.float16)
        first = found.matches[:, 0]
        index[first], scores[first] = found.matches[:, 1], found.scores
        note = {"names": [name0, name1], "features": list(digests), "geometry": found.geometry}
        arrays: dict[str, NDArray[Any]] = {"matches0": index, "matching_scores0": scores}
        if found.inliers is not None:
            arrays["inliers0"] = np.zeros(count, dtype=bool)
            arrays["inliers0"][first] = found.inliers
        with self.entry(pair_key(name0, name1), 5 * count + _BYTES_PER_GROUP) as group:
            self.fill(group, arrays, note)

    def load(self, name0: str, name1: str) -> PairMatches:
        """Read the matches of a pair, whichever of the two images was first when they were written.

        Raises:
            InputError: There are none.
            StoreError: They are damaged.
        """
        key, swapped = pair_key(name0, name1), False
        if key not in self.file and pair_key(name1, name0) in self.file:
            key, swapped = pair_key(name1, name0), True
        group = self.group(key)
        with self.reading(key):
            index = np.asarray(group["matches0"]).astype(np.int64)
            scores = np.asarray(group["matching_scores0"]).astype(np.float32)
            first = np.flatnonzero(index >= 0)
            inliers = np.asarray(group["inliers0"])[first] if "inliers0" in group else None
            matches = np.stack([first, index[first]], axis=1)
            if swapped:
                # The geometry belongs to the order in which the pair was written.
                return PairMatches(matches[:, ::-1], scores[first], inliers)
            return PairMatches(matches, scores[first], inliers, self.note_of(group, key).get("geometry"))


def pair_key(name0: str, name1: str) -> str:
    """Return the name of a pair's group, as hloc makes it."""
    return f"{name0.replace('/', '-')}/{name1.replace('/', '-')}"


def check_names(names: list[str]) -> None:
    """Refuse names of images of which two would be one in a pair's name.

    Raises:
        InputError: There are such names.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.replace("/", "-"), name)
        if other != name:
            raise InputError(f"the images {other} and {name} cannot be told apart in a store of matches: rename one.")


def _feature_arrays(features: Features, record: ImageRecord) -> dict[str, NDArray[Any]]:
    """Return the datasets of an image; descriptors are halved in precision, keypoints keep their sub-pixel part."""
    size = record.size
    seen = features.keypoints.detach().cpu().float()
    keypoints = upright_keypoints(seen, features.image_size, record)
    arrays = {
        "keypoints": keypoints.numpy(),
        "descriptors": features.descriptors.detach().cpu().half().T.contiguous().numpy(),
        "image_size": np.array([size[1], size[0]]),
    }
    more = {"scores": features.keypoint_scores, "scales": features.scales, "orientations": features.orientations}
    arrays.update({key: value.detach().cpu().float().numpy() for key, value in more.items() if value is not None})
    return arrays


def upright_keypoints(keypoints: Tensor, seen: tuple[int, int], record: ImageRecord) -> Tensor:
    """Map keypoints (N, 2) of what the model saw of an image to the upright image at its full size.

    Args:
        keypoints: In pixels of what the model saw.
        seen: Its height and width.
        record: What is known of the image.
    """
    full = resize_keypoints(keypoints, seen, turned_size(record.size, record.turn))
    return unturn_keypoints(full, record.turn, record.size) if record.turn else full


def _tensor(array: NDArray[Any] | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array.astype(np.float32))


def _digest(arrays: dict[str, NDArray[Any]]) -> str:
    found = hashlib.blake2b(digest_size=12)
    for key, array in sorted(arrays.items()):
        found.update(key.encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
