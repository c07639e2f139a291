"""Keypoints of many images of different number, packed one behind the other without padding.

Shapes: T tokens (keypoints) of all images together; P pairs; image 2p is the first and 2p + 1 the second of pair p.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection

import torch
from torch import Tensor

from keyglue.base.devices import to_device


@dataclasses.dataclass(frozen=True)
class Packing:
    """Which token belongs to which image.

    Attributes:
        lengths: Number of tokens of each image, two images a pair.
    """

    lengths: tuple[int, ...]

    @property
    def offsets(self) -> list[int]:
        """Index of each image's first token, and the number of all tokens at the end."""
        out = [0]
        for length in self.lengths:
            out.append(out[-1] + length)
        return out

    @property
    def slices(self) -> list[slice]:
        """Tokens of each image."""
        offsets = self.offsets
        return [slice(start, stop) for start, stop in itertools.pairwise(offsets)]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First token of each pair, and the one behind its last."""
        offsets = self.offsets
        return [(offsets[i], offsets[i + 2]) for i in range(0, len(self.lengths), 2)]

    @property
    def uniform(self) -> int | None:
        """The number of tokens of every image where all have the same, else None."""
        return self.lengths[0] if self.lengths and len(set(self.lengths)) == 1 else None

    @property
    def partner(self) -> Packing:
        """The packing with the two images of each pair exchanged."""
        return Packing(tuple(self.lengths[index ^ 1] for index in range(len(self.lengths))))


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The state that runs through the layers.

    Attributes:
        x: (T, D) descriptors.
        rotation: Cosine and sine of the positional encoding, (T, head_dim / 2) each.
        origin: (T,) position of each token in the packing that the computation began with.
        packing: Which token belongs to which image.
        pairs: Original index of each pair that is still here.
    """

    x: Tensor
    rotation: tuple[Tensor, Tensor]
    origin: Tensor
    packing: Packing
    pairs: tuple[int, ...]

    def updated(self, x: Tensor) -> Tokens:
        """Return the same tokens with new descriptors."""
        return dataclasses.replace(self, x=x)

    def rest(self, finished: Collection[int] = (), stays: Tensor | None = None) -> Tokens:
        """Return the tokens that go on; a pair in which an image has none (left) can have no match and goes too.

        Args:
            finished: Positions of the pairs that are done.
            stays: (T,) booleans on the CPU, so that nothing has to be asked of a GPU; None where all tokens stay.
        """
        slices = self.packing.slices
        places: list[Tensor] = []
        pairs: list[int] = []
        for position, pair in enumerate(self.pairs):
            both = [_places(slices[2 * position + side], stays) for side in (0, 1)]
            if position not in finished and all(len(of_image) for of_image in both):
                places += both
                pairs.append(pair)
        lengths = tuple(len(of_image) for of_image in places)
        if lengths == self.packing.lengths:
            return self
        index = to_device(torch.cat(places), self.x.device) if places else self.origin[:0]
        x, cosine, sine, origin = (part.index_select(0, index) for part in (self.x, *self.rotation, self.origin))
        return Tokens(x, (cosine, sine), origin, Packing(lengths), tuple(pairs))


def _places(tokens: slice, stays: Tensor | None) -> Tensor:
    """Return the indices of an image's tokens that stay."""
    if stays is None:
        return torch.arange(tokens.start, tokens.stop)
    return stays[tokens].nonzero().squeeze(1) + tokens.start
