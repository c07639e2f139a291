"""What crosses the borders of the package's folders: Features of one image, Matches of two.

Shapes: M and N points in image 0 and 1, S matches, D descriptor. Frame: pixels of the image that the detector saw, x
right, y down, the centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor
from typing_extensions import Self

from keyglue.base.checkpoints import read_safetensors
from keyglue.base.devices import to_device
from keyglue.base.errors import CheckpointError, InputError
from keyglue.base.files import atomic_write

_FORMAT = "keyglue.features.1"
_TENSORS = ("keypoints", "descriptors", "keypoint_scores", "scales", "orientations")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Keypoints of one image with their descriptors: describe an image once, match it many times.

    Attributes:
        keypoints: (N, 2) x, y in pixels of the image that the detector saw.
        descriptors: (N, D) descriptors.
        image_size: Height and width of the image that the detector saw.
        keypoint_scores: (N,) detection scores, if the detector gives any.
        scales: (N,) keypoint diameters in pixels, if the detector gives any (SIFT).
        orientations: (N,) angles in radians, if the detector gives any (SIFT).
        original_size: Height and width of the image before resizing; None where it was not resized.
        detector: Name of the detector, for the record.

    Raises:
        InputError: Shapes or lengths do not fit, or a value is not finite.
    """

    keypoints: Tensor
    descriptors: Tensor
    image_size: tuple[int, int]
    keypoint_scores: Tensor | None = None
    scales: Tensor | None = None
    orientations: Tensor | None = None
    original_size: tuple[int, int] | None = None
    detector: str = ""

    def __post_init__(self) -> None:
        if self.keypoints.ndim != 2 or self.keypoints.shape[1] != 2:
            raise InputError(f"keypoints must have shape (N, 2), got {tuple(self.keypoints.shape)}.")
        count = len(self)
        if self.descriptors.ndim != 2 or len(self.descriptors) != count:
            raise InputError(
                f"descriptors must have shape (N, D) with N = {count} keypoints, got {tuple(self.descriptors.shape)}."
            )
        for name in ("keypoint_scores", "scales", "orientations"):
            value = getattr(self, name)
            if value is not None and value.shape != (count,):
                raise InputError(f"{name} must have shape ({count},), got {tuple(value.shape)}.")
        object.__setattr__(self, "image_size", _checked_size("image_size", self.image_size))
        if self.original_size is not None:
            object.__setattr__(self, "original_size", _checked_size("original_size", self.original_size))
        tensors = self._tensors()
        finite = torch.stack([torch.isfinite(value).all() for value in tensors.values()])
        if not finite.all():  # asked once, because a GPU's answer has to be waited for
            names = [name for name, is_finite in zip(tensors, finite.tolist(), strict=True) if not is_finite]
            raise InputError(f"{names[0]} holds NaN or infinite values.")

    def __len__(self) -> int:
        return self.keypoints.shape[0]

    @property
    def device(self) -> torch.device:
        """Device that the tensors are on."""
        return self.keypoints.device

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}

    def to(self, device: torch.device | str) -> Self:
        """Return the features on another device."""
        target = torch.device(device)
        return self._changed({name: to_device(value, target) for name, value in self._tensors().items()})

    def with_original_size(self, size: tuple[int, int]) -> Self:
        """Return the features with a note of the image's height and width before it was resized."""
        return self._changed({"original_size": _checked_size("original_size", size)})

    def select(self, index: Tensor) -> Self:
        """Return the features of some keypoints: ``index`` is (S,) integers or an (N,) boolean mask."""
        return self._changed({name: value[index] for name, value in self._tensors().items()})

    def _changed(self, values: dict[str, Any]) -> Self:
        """Return a copy with other values that need no check."""
        copied = copy.copy(self)
        for name, value in values.items():
            object.__setattr__(copied, name, value)
        return copied

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the features to one safetensors file, atomically."""
        header = {"format": _FORMAT, "image_size": self.image_size, "original_size": self.original_size}
        tensors = {name: value.detach().cpu().contiguous() for name, value in self._tensors().items()}
        atomic_write(path, save(tensors, {"keyglue": json.dumps({**header, "detector": self.detector})}))

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """Read features that ``save`` wrote.

        Raises:
            CheckpointError: The file is missing, damaged, or holds something else.
        """
        try:
            tensors, metadata = read_safetensors(Path(path), str(device))
            header: dict[str, Any] = json.loads(metadata.get("keyglue", "{}"))
            if header.pop("format", None) != _FORMAT:
                raise CheckpointError(f"{path} was not written by Features.save (expected format {_FORMAT!r}).")
            values: dict[str, Any] = {**header, **tensors}
            return cls(**values)
        except CheckpointError:
            raise
        except (OSError, SafetensorError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read as saved features: {error}") from error


def _checked_size(name: str, size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"{name} must be (height, width) of at least one pixel, got {size!r}.")
    return int(size[0]), int(size[1])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """Which keypoint of image 0 is which keypoint of image 1.

    Attributes:
        matches0: (M,) int64, index into image 1 for each keypoint of image 0, -1 for none.
        matches1: (N,) the same the other way round.
        matching_scores0: (M,) score of each keypoint's mutual best match, 0 for none; matches below the filter
            threshold keep their score here.
        matching_scores1: (N,) the same for image 1.
        prune0: (M,) number of layers that each keypoint was processed in.
        prune1: (N,) the same for image 1.
        stop_layer: Number of layers that the pair ran through.
        tokens_per_layer: Keypoints of both images processed in each of these layers.
    """

    matches0: Tensor
    matches1: Tensor
    matching_scores0: Tensor
    matching_scores1: Tensor
    prune0: Tensor
    prune1: Tensor
    stop_layer: int = 0
    tokens_per_layer: tuple[int, ...] = ()

    @property
    def indices(self) -> Tensor:
        """(S, 2) int64 indices of matching keypoints in image 0 and 1, best first; ties keep the order of image 0."""
        index0 = (self.matches0 >= 0).nonzero().squeeze(1)
        order = torch.argsort(self.matching_scores0[index0], descending=True, stable=True)
        index0 = index0[order]
        return torch.stack([index0, self.matches0[index0]], dim=1)

    @property
    def scores(self) -> Tensor:
        """(S,) scores of ``indices``."""
        return self.matching_scores0[self.indices[:, 0]]

    def without(self, indices: Tensor) -> Matches:
        """Return the matches but for some (S, 2) of ``indices``, whose scores stay."""
        matches0, matches1 = self.matches0.clone(), self.matches1.clone()
        matches0[indices[:, 0]] = -1
        matches1[indices[:, 1]] = -1
        return dataclasses.replace(self, matches0=matches0, matches1=matches1)

    def __len__(self) -> int:
        return int((self.matches0 >= 0).sum())
