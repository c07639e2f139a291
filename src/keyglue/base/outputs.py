"""What the models return: output objects that read as attributes, as a mapping and as a tuple.

Shapes: B pairs (or images), K keypoints (the most of any image of the batch), D descriptor, L layers, H heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from keyglue.base.errors import InputError


@dataclasses.dataclass(kw_only=True)
class ModelOutput:
    """Base of model outputs: ``out.matches``, ``out["matches"]`` and ``out[0]`` all work; absent fields are skipped.

    Fields named in ``_additions`` are keyglue's own; they are attributes only, so that tuples and keys stay those of
    the documented API.
    """

    _additions: ClassVar[frozenset[str]] = frozenset()

    def _items(self) -> list[tuple[str, Any]]:
        names = [field.name for field in dataclasses.fields(self) if field.name not in self._additions]
        return [(name, getattr(self, name)) for name in names if getattr(self, name) is not None]

    def keys(self) -> list[str]:
        """Return the names of the fields that are present."""
        return [name for name, _ in self._items()]

    def values(self) -> list[Any]:
        """Return the values of the fields that are present."""
        return [value for _, value in self._items()]

    def items(self) -> list[tuple[str, Any]]:
        """Return (name, value) of the fields that are present."""
        return self._items()

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are present, in their documented order."""
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return dict(self._items())[key]
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._items())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field, or ``default`` where it is absent."""
        return dict(self._items()).get(key, default)


@dataclasses.dataclass(kw_only=True)
class SuperPointKeypointDescriptionOutput(ModelOutput):
    """Keypoints, scores and descriptors of a batch of images.

    Attributes:
        loss: Always absent in inference.
        keypoints: (B, K, 2) x and y relative to the image that the model saw: pixel index / (width, height).
        scores: (B, K) detection scores.
        descriptors: (B, K, D) unit-length descriptors.
        mask: (B, K) int32, 1 where there is a keypoint and 0 in the padding.
        hidden_states: Output of each encoder stage, (B, C, h, w).
        image_sizes: (B, 2) height and width of the image content that the model saw (addition).
    """

    _additions: ClassVar[frozenset[str]] = frozenset({"image_sizes"})

    loss: Tensor | None = None
    keypoints: Tensor | None = None
    scores: Tensor | None = None
    descriptors: Tensor | None = None
    mask: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    image_sizes: Tensor | None = None


@dataclasses.dataclass(kw_only=True)
class LightGlueKeypointMatchingOutput(ModelOutput):
    """Matches of a batch of image pairs.

    Attributes:
        loss: () training loss, where labels were given.
        matches: (B, 2, K) int64, index of the matching keypoint in the other image, -1 for none.
        matching_scores: (B, 2, K) score of each keypoint's mutual best match, 0 where there is none.
        keypoints: (B, 2, K, 2) x and y relative to the image that the model saw: pixel index / (width, height).
        prune: (B, 2, K) number of layers that each keypoint was processed in, 0 in the padding.
        mask: (B, 2, K) int32, 1 where there is a keypoint and 0 in the padding.
        hidden_states: One tensor (B, 2, C, K) a step; seven steps a layer.
        attentions: One tensor (B, 2, H, K, K) a step; self then cross attention of every layer.
        image_sizes: (B, 2, 2) height and width of the image content that the model saw (addition).
        stop_layers: (B,) number of layers that each pair ran through (addition).
        tokens_per_layer: Keypoints processed in each layer, all pairs together (addition).
    """

    _additions: ClassVar[frozenset[str]] = frozenset({"image_sizes", "stop_layers", "tokens_per_layer"})

    loss: Tensor | None = None
    matches: Tensor | None = None
    matching_scores: Tensor | None = None
    keypoints: Tensor | None = None
    prune: Tensor | None = None
    mask: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_sizes: Tensor | None = None
    stop_layers: Tensor | None = None
    tokens_per_layer: tuple[int, ...] | None = None

    def _of_image(self, image: int) -> Tensor:
        if self.keypoints is None:
            raise InputError("this output holds no keypoints.")
        return self.keypoints[:, image]

    @property
    def keypoints0(self) -> Tensor:
        """(B, K, 2) view of the first images' relative keypoints."""
        return self._of_image(0)

    @property
    def keypoints1(self) -> Tensor:
        """(B, K, 2) view of the second images' relative keypoints."""
        return self._of_image(1)


def pad_stack(rows: list[Tensor], length: int, value: float = 0) -> Tensor:
    """Stack tensors of different first dimension into one, padded with ``value`` to ``length``."""
    shape = (len(rows), length, *rows[0].shape[1:])
    out = torch.full(shape, value, dtype=rows[0].dtype, device=rows[0].device)
    for index, row in enumerate(rows):
        out[index, : row.shape[0]] = row
    return out
