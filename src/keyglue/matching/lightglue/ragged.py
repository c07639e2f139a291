"""Keypoints of many images of different number, packed one behind the other without padding.

Shapes: T tokens (keypoints) of all images together; P pairs; image 2p is the first and 2p + 1 the second of pair p.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Sequence

import torch
from torch import Tensor


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
    def uniform(self) -> int | None:
        """The number of tokens of every image where all have the same, else None."""
        return self.lengths[0] if self.lengths and len(set(self.lengths)) == 1 else None

    @property
    def partner(self) -> Packing:
        """The packing with the two images of each pair exchanged."""
        return Packing(tuple(self.lengths[index ^ 1] for index in range(len(self.lengths))))

    def image_of_token(self, device: torch.device) -> Tensor:
        """(T,) index of the image that each token belongs to."""
        lengths = torch.tensor(self.lengths, device=device)
        images = torch.arange(len(self.lengths), device=device)
        return torch.repeat_interleave(images, lengths, output_size=sum(self.lengths))

    def count(self, flags: Tensor) -> list[list[int]]:
        """Return for each row of ``flags`` (F, T) how many tokens of each image are flagged: one transfer for all."""
        counts = torch.zeros(len(flags), len(self.lengths), dtype=torch.long, device=flags.device)
        return counts.index_add_(1, self.image_of_token(flags.device), flags.long()).tolist()


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

    def hopeless(self) -> list[int]:
        """Return the positions of the pairs in which an image has no tokens (left): they can have no match."""
        lengths = self.packing.lengths
        return [p for p in range(len(self.pairs)) if not (lengths[2 * p] and lengths[2 * p + 1])]

    def keep(self, mask: Tensor, lengths: Sequence[int]) -> Tokens:
        """Return only the tokens where ``mask`` (T,) is true, ``lengths`` of each image; the pairs stay."""
        if tuple(lengths) == self.packing.lengths:
            return self
        # As many as are kept, in their order; asking which are true would make a GPU wait.
        index = torch.argsort(mask, descending=True, stable=True)[: sum(lengths)]
        return self._subset(index, Packing(tuple(lengths)), self.pairs)

    def without(self, finished: Collection[int]) -> Tokens:
        """Return only the pairs whose position among the present ones is not in ``finished``."""
        if not finished:
            return self
        stay = [position for position in range(len(self.pairs)) if position not in finished]
        images = [2 * position + side for position in stay for side in (0, 1)]
        slices = self.packing.slices
        empty = [torch.zeros(0, dtype=torch.long)]
        index = torch.cat([torch.arange(slices[i].start, slices[i].stop) for i in images] or empty).to(self.x.device)
        packing = Packing(tuple(self.packing.lengths[i] for i in images))
        return self._subset(index, packing, tuple(self.pairs[position] for position in stay))

    def _subset(self, index: Tensor, packing: Packing, pairs: tuple[int, ...]) -> Tokens:
        rotation = (self.rotation[0][index], self.rotation[1][index])
        return Tokens(self.x[index], rotation, self.origin[index], packing, pairs)
