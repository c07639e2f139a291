"""What is scored: pairs of pictures with the truth about them.

Frame of all coordinates: x right, y down, the centre of the top-left pixel at (0, 0). Sizes are (height, width).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from typing_extensions import Self

from keyglue.base.errors import InputError
from keyglue.images.coordinates import resize_keypoints
from keyglue.images.read import read_image
from keyglue.multiview.arrays import Array, as_array
from keyglue.multiview.cameras import Camera

Size = tuple[int, int]

LONG_SIDE_1024 = {"longest_edge": 1024}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One image of a set.

    Attributes:
        name: Tells it from the other images of its set; it is described once, however many pairs it is in.
        read: Returns it as (C, h, w) from 0 to 255, upright.
    """

    name: str
    read: Callable[[], Tensor]

    @classmethod
    def of_file(cls, path: Path, folder: Path) -> Self:
        """Make a picture of an image file, named after its path in the set's folder.

        Raises:
            InputError: There is no such file.
        """
        if not path.is_file():
            raise InputError(f"{path} is part of the set, but there is no such file.")
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()
        return cls(name=name, read=functools.partial(read_image, path))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HomographyTruth:
    """The homography between the images of a pair.

    Attributes:
        H: (3, 3), [x1, y1, 1] ~ H [x0, y0, 1], in pixels.

    Raises:
        InputError: It is not a finite, invertible (3, 3) matrix.
    """

    H: Array

    def __post_init__(self) -> None:
        matrix = as_array(self.H, (3, 3), "a true homography")
        if np.linalg.matrix_rank(matrix) < 3:
            raise InputError("a true homography must be invertible.")
        object.__setattr__(self, "H", matrix)

    def resized(self, sizes0: tuple[Size, Size], sizes1: tuple[Size, Size]) -> HomographyTruth:
        """Return the truth for resized images.

        Args:
            sizes0: Size of image 0 before and after.
            sizes1: Size of image 1 before and after.
        """
        return HomographyTruth(H=_resizing(*sizes1) @ self.H @ np.linalg.inv(_resizing(*sizes0)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PoseTruth:
    """The pose of camera 1 relative to camera 0, X1 = R X0 + t, and both cameras.

    Attributes:
        R: (3, 3) rotation.
        t: (3,) translation; its length plays no part.
        camera0: Camera of image 0, with its size.
        camera1: Camera of image 1, with its size.
    """

    R: Array
    t: Array
    camera0: Camera
    camera1: Camera

    def resized(self, sizes0: tuple[Size, Size], sizes1: tuple[Size, Size]) -> PoseTruth:
        """Return the truth for resized images; arguments as for ``HomographyTruth.resized``.

        Raises:
            InputError: A camera is for an image of another size.
        """
        for camera, (before, _) in ((self.camera0, sizes0), (self.camera1, sizes1)):
            if camera.size != before:
                raise InputError(f"a camera for an image of size {camera.size} came with an image of size {before}.")
        return dataclasses.replace(self, camera0=self.camera0.scaled(sizes0[1]), camera1=self.camera1.scaled(sizes1[1]))


Truth = HomographyTruth | PoseTruth


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScoredPair:
    """Two pictures and the truth about them.

    Attributes:
        name: Tells the pair from the others of its set.
        image0: First picture.
        image1: Second picture.
        truth: In pixels of the pictures as they are read.
        group: Part of the set that the pair is also summed up with, a scene for example; empty for none.
    """

    name: str
    image0: Picture
    image1: Picture
    truth: Truth
    group: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PairSet:
    """Pairs that are scored together.

    Attributes:
        name: Name of the set.
        pairs: At least one; all with homographies or all with poses.
        rule: Which pairs these are, in words, for the report.
        reference: Size rule of the frame in whose pixels every error is measured, whatever size the methods see.

    Raises:
        InputError: There are no pairs, two have one name, or their truths are of different kinds.
    """

    name: str
    pairs: Sequence[ScoredPair]
    rule: str
    reference: dict[str, int] = dataclasses.field(default_factory=lambda: dict(LONG_SIDE_1024))

    def __post_init__(self) -> None:
        if not self.pairs:
            raise InputError(f"the set {self.name!r} has no pairs.")
        names = [pair.name for pair in self.pairs]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise InputError(f"the set {self.name!r} has several pairs called {min(twice)!r}.")
        if len({type(pair.truth) for pair in self.pairs}) > 1:
            raise InputError(f"the set {self.name!r} mixes homographies and poses; score them as two sets.")

    @property
    def kind(self) -> str:
        """What the truth is: "homography" or "pose"."""
        return "pose" if isinstance(self.pairs[0].truth, PoseTruth) else "homography"

    def limited(self, count: int) -> Self:
        """Return at most ``count`` of the pairs, spread evenly over the set."""
        if count < 1:
            raise InputError(f"at least one pair must be scored, got a limit of {count}.")
        if count >= len(self.pairs):
            return self
        chosen = [self.pairs[index * len(self.pairs) // count] for index in range(count)]
        return dataclasses.replace(self, pairs=chosen, rule=f"{count} of {len(self.pairs)} pairs only. {self.rule}")


def read_matrix(path: Path) -> Any:
    """Read a matrix from a text file of numbers.

    Raises:
        InputError: The file is missing or holds something else.
    """
    try:
        return np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a matrix: {error}") from error


def _resizing(before: Size, after: Size) -> Array:
    """Return the (3, 3) map of pixels of an image to those of the same image resized."""
    origin, unit = resize_keypoints(np.array([[0.0, 0.0], [1.0, 1.0]]), before, after)
    scale = unit - origin
    return np.array([[scale[0], 0, origin[0]], [0, scale[1], origin[1]], [0, 0, 1]])
