"""Gathering the answers of pairs that finish at different layers with different points left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from keyglue.base.types import Matches
from keyglue.matching.lightglue.ragged import Packing, Tokens


class Results:
    """Answers for all tokens of the original packing, filled in as pairs finish.

    Args:
        packing: The packing that the computation begins with, all pairs.
        device: Device of the computation.
    """

    def __init__(self, packing: Packing, device: torch.device) -> None:
        self._packing = packing
        count = packing.offsets[-1]
        pair_count = len(packing.lengths) // 2
        self._matches = torch.full((count,), -1, dtype=torch.long, device=device)
        self._scores = torch.zeros(count, device=device)
        self._layers_of_token = torch.zeros(count, dtype=torch.long, device=device)
        self._tokens_per_layer: list[list[int]] = [[] for _ in range(pair_count)]
        self.original_points = [sum(packing.lengths[2 * p : 2 * p + 2]) for p in range(pair_count)]

    def ran_layer(self, tokens: Tokens) -> None:
        """Count one more layer for the tokens and pairs that are still there."""
        self._layers_of_token[tokens.origin] += 1
        for position, pair in enumerate(tokens.pairs):
            self._tokens_per_layer[pair].append(sum(tokens.packing.lengths[2 * position : 2 * position + 2]))

    def finish(
        self,
        tokens: Tokens,
        positions: Sequence[int],
        match: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]],
    ) -> None:
        """Work out the matches of the pairs at ``positions`` from their tokens as they are now, with ``match``."""
        slices = tokens.packing.slices
        offsets = self._packing.offsets
        for position in positions:
            own, other = slices[2 * position], slices[2 * position + 1]
            found = match(tokens.x[own], tokens.x[other])
            origin0, origin1 = tokens.origin[own], tokens.origin[other]
            first = 2 * tokens.pairs[position]
            self._write(origin0, found[0], found[2], origin1 - offsets[first + 1])
            self._write(origin1, found[1], found[3], origin0 - offsets[first])

    def _write(self, origin: Tensor, matches: Tensor, scores: Tensor, index_in_other: Tensor) -> None:
        self._matches[origin] = torch.where(matches >= 0, index_in_other[matches.clamp(min=0)], -1)
        self._scores[origin] = scores

    def matches(self) -> list[Matches]:
        """Return the answer of every pair, in the order of the input."""
        slices = self._packing.slices
        found: list[Matches] = []
        for pair, counts in enumerate(self._tokens_per_layer):
            own, other = slices[2 * pair], slices[2 * pair + 1]
            found.append(
                Matches(
                    matches0=self._matches[own],
                    matches1=self._matches[other],
                    matching_scores0=self._scores[own],
                    matching_scores1=self._scores[other],
                    prune0=self._layers_of_token[own],
                    prune1=self._layers_of_token[other],
                    stop_layer=len(counts),
                    tokens_per_layer=tuple(counts),
                )
            )
        return found
