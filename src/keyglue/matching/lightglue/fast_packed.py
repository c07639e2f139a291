"""The fast path in half precision, and on CUDA: all pairs in one pass of large products around a float32 residual.

The tokens stay float32. Each matrix product takes them, and gives its result, in the type of computation; softmax and
LayerNorm add up in float32 inside their kernels.

Shapes: T tokens, D width of the matcher, H heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.matching.lightglue.attention_packed import attend_image_by_image, attend_packed
from keyglue.matching.lightglue.configuration import ACTIVATIONS
from keyglue.matching.lightglue.folding import FoldedBlock
from keyglue.matching.lightglue.ragged import Tokens


class PackedBlock:
    """One folded block in the type of computation. Rotary pairs are ordered as first halves, then second halves.

    Args:
        block: Folded weights.
        activation: Name of the MLP's activation.
        dtype: Type of computation.
    """

    def __init__(self, block: FoldedBlock, activation: str, dtype: torch.dtype) -> None:
        self.block = block
        self.dtype = dtype
        self.activation = ACTIVATIONS[activation]
        self.projection = (block.projection.to(dtype), block.projection_bias.to(dtype))
        self.first = (block.first.to(dtype), block.first_bias.to(dtype))
        self.norm = (block.norm[0].to(dtype), block.norm[1].to(dtype), block.norm[2])
        self.second = (block.second.to(dtype), block.second_bias.to(dtype))

    def run(self, tokens: Tokens, *, cross: bool) -> None:
        """Run the block on ``tokens.x`` in place."""
        block, x = self.block, tokens.x
        joined = torch.empty(len(x), 2 * x.shape[1], dtype=self.dtype, device=x.device)
        own, of_message = joined.chunk(2, dim=1)
        own.copy_(x)
        heads = F.linear(own, *self.projection).unflatten(1, (-1, block.head_dim))
        value = heads[:, -block.key_value_heads :]
        turning = heads[:, : -block.key_value_heads]
        if not cross:
            turning = _turn(turning, tokens.rotation)
        query = turning[:, : block.heads]
        key = query if block.shared else turning[:, block.heads :]
        attend = attend_packed if x.is_cuda else attend_image_by_image
        of_message.copy_(attend(query, key, value, tokens.packing, cross=cross).flatten(1))
        hidden = F.linear(joined, *self.first)
        hidden = self.activation(F.layer_norm(hidden, hidden.shape[1:], *self.norm))
        x.add_(F.linear(hidden, *self.second))


def _turn(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (x_i, x_{i + d/2}) of each head of x (T, H, d), computing in float32."""
    cosine, sine = (part[:, None] for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(x.dtype)
