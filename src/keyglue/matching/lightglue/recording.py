"""Taking down hidden states and attentions in the original order and number of points.

Pruned points and finished pairs leave the computation; what is recorded for them is zero, so that every entry has one
shape and a row always means the same point. There is one entry for every step that any pair still ran.
"""

from __future__ import annotations

from torch import Tensor

from keyglue.matching.lightglue.ragged import Packing, Tokens


class Recorder:
    """Collects what ``output_hidden_states`` and ``output_attentions`` ask for.

    Args:
        start: Packing that the computation begins with, all pairs.
        states: Whether to keep hidden states; a layer adds its input, then the output of the self block with its MLP's
            input and output, then the same three of the cross block.
        attentions: Whether to keep attention probabilities; a layer adds those of self, then of cross attention.
    """

    def __init__(self, start: Packing, *, states: bool, attentions: bool) -> None:
        self._start = start
        self._most = max(start.lengths, default=0)
        self._states: list[Tensor] | None = [] if states else None
        self._attentions: list[Tensor] | None = [] if attentions else None
        self.probabilities: list[Tensor] | None = [] if attentions else None

    def block(self, tokens: Tokens, x: Tensor, joined: Tensor, update: Tensor, out: Tensor, *, cross: bool) -> None:
        """Take down one block: its input ``x``, the MLP's input and output, and the block's output."""
        if self._states is not None:
            steps = (out, joined, update) if cross else (x, out, joined, update)
            self._states.extend(self._spread(tokens, step) for step in steps)
        if self._attentions is not None and self.probabilities is not None:
            self._attentions.append(self._spread_pairs(tokens, self.probabilities, cross=cross))
            self.probabilities.clear()

    @property
    def wanted(self) -> bool:
        """Whether there is anything to take down."""
        return self._states is not None or self._attentions is not None

    def hidden_states(self, *, per_image: bool) -> tuple[Tensor, ...] | None:
        """Return (B, 2, C, K) tensors as documented, or transformers' (2B, K, C); None where not asked for."""
        if self._states is None:
            return None
        return tuple(s if per_image else s.transpose(1, 2).unflatten(0, (-1, 2)) for s in self._states)

    def attentions(self, *, per_image: bool) -> tuple[Tensor, ...] | None:
        """Return (B, 2, H, K, K) tensors as documented, or transformers' (2B, H, K, K); None where not asked for."""
        if self._attentions is None:
            return None
        return tuple(a if per_image else a.unflatten(0, (-1, 2)) for a in self._attentions)

    def _rows(self, tokens: Tokens) -> list[tuple[int, Tensor]]:
        """Return for each present image its original index and its tokens' original positions in that image."""
        offsets = self._start.offsets
        rows: list[tuple[int, Tensor]] = []
        for position, part in enumerate(tokens.packing.slices):
            image = 2 * tokens.pairs[position // 2] + position % 2
            rows.append((image, tokens.origin[part] - offsets[image]))
        return rows

    def _spread(self, tokens: Tokens, values: Tensor) -> Tensor:
        out = values.new_zeros(len(self._start.lengths), self._most, values.shape[-1])
        for (image, rows), part in zip(self._rows(tokens), tokens.packing.slices, strict=True):
            out[image, rows] = values[part].detach()
        return out

    def _spread_pairs(self, tokens: Tokens, weights: list[Tensor], *, cross: bool) -> Tensor:
        rows = self._rows(tokens)
        heads = weights[0].shape[0]
        out = weights[0].new_zeros(len(self._start.lengths), heads, self._most, self._most)
        for position, (image, own) in enumerate(rows):
            other = rows[position ^ 1][1] if cross else own
            out[image, :, own[:, None], other[None, :]] = weights[position].detach()
        return out
