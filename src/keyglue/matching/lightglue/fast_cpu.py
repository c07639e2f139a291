"""The fast path in float32 on a CPU: folded weights, work in pieces that stay in the cache, buffers used again.

The tokens are updated in place, so that a layer needs little more memory than its projections. Pairs run one after
the other: on a CPU a batch gains nothing, and a pair's data is smaller than a batch's.

Shapes: T tokens, D width of the matcher, P width of the packed projection, H heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.matching.lightglue.attention_blocks import Workspace, attend, attend_both_ways, parts
from keyglue.matching.lightglue.configuration import ACTIVATIONS
from keyglue.matching.lightglue.folding import FoldedBlock
from keyglue.matching.lightglue.ragged import Tokens

# Tokens that a thread takes through a linear map or MLP at once: with the weights, what is between stays in the cache.
_ROWS = 128


class CpuBlock:
    """One folded block with its matrices transposed, as the in-place products want them.

    Args:
        block: Folded weights.
        activation: Name of the MLP's activation.
    """

    def __init__(self, block: FoldedBlock, activation: str) -> None:
        of_x, of_message = block.first.chunk(2, dim=1)
        self.block = block
        self.activation = activation
        self.projection, self.of_x, self.of_message, self.second = (
            matrix.t().contiguous() for matrix in (block.projection, of_x, of_message, block.second)
        )

    def run(self, tokens: Tokens, work: Workspace, *, cross: bool) -> None:
        """Run the block on ``tokens.x`` in place."""
        block, x = self.block, tokens.x
        query, key, value = self._project(x, None if cross else tokens.rotation, work)
        message = work.get("message", *x.shape)
        out = message.unflatten(1, (-1, block.head_dim))
        slices = tokens.packing.slices
        for first in range(0, len(slices), 2):
            a, b = slices[first], slices[first + 1]
            if block.shared and attend_both_ways(query[a], query[b], value[a], value[b], out[a], out[b], work):
                continue
            for own, other in ((a, b), (b, a)) if cross else ((a, a), (b, b)):
                _attend_safely(query[own], key[other], value[other], out[own], work)
        self._mlp(x, message, work)

    def _project(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, work: Workspace
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (T, H, d), keys and values (T, H', d), each head contiguous; queries and keys are rotated."""
        block, width = self.block, self.projection.shape[1]
        heads = work.get("heads", width // block.head_dim, len(x), block.head_dim)
        turning = 0 if rotation is None else block.heads + block.key_value_heads
        turns = None if rotation is None else torch.complex(*rotation)
        for rows in parts(len(x), _ROWS * torch.get_num_threads()):
            part = x[rows]
            packed = work.get("projections", len(part), width)
            torch.addmm(block.projection_bias, part, self.projection, out=packed)
            split = packed.unflatten(1, (-1, block.head_dim)).transpose(0, 1)
            if turns is not None:
                torch.mul(_pairs(split[:turning]), turns[rows], out=_pairs(heads[:turning, rows]))
            heads[turning:, rows] = split[turning:]
        heads = heads.transpose(0, 1)
        query, value = heads[:, : block.heads], heads[:, -block.key_value_heads :]
        return query, query if block.shared else heads[:, block.heads : -block.key_value_heads], value

    def _mlp(self, x: Tensor, message: Tensor, work: Workspace) -> None:
        """Add MLP([x | message]) to x."""
        weight, bias, epsilon = self.block.norm
        for rows in parts(len(x), _ROWS * torch.get_num_threads()):
            part = x[rows]
            hidden = work.get("hidden", len(part), len(weight))
            torch.addmm(self.block.first_bias, part, self.of_x, out=hidden)
            hidden.addmm_(message[rows], self.of_message)
            hidden = F.layer_norm(hidden, weight.shape, weight, bias, epsilon)
            part.add_(self.block.second_bias).addmm_(self._activate(hidden), self.second)

    def _activate(self, hidden: Tensor) -> Tensor:
        if self.activation == "gelu":
            return torch.ops.aten.gelu_(hidden)
        return ACTIVATIONS[self.activation](hidden)


def _pairs(x: Tensor) -> Tensor:
    """Return pairs of neighbouring dimensions (..., d) as complex numbers (..., d / 2), which rotate by a product."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _attend_safely(query: Tensor, key: Tensor, value: Tensor, out: Tensor, work: Workspace) -> None:
    """Write softmax(query key^T) value to ``out``, whatever the size of the logits."""
    if not attend(query, key, value, out, work):
        q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))
        message = F.scaled_dot_product_attention(q, k, v, scale=1.0, enable_gqa=q.shape[1] != k.shape[1])
        out.copy_(message[0].transpose(0, 1))
