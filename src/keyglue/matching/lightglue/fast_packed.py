"""The fast path in half precision, and on CUDA: all pairs in one pass of large products around a float32 residual.

The tokens stay float32. Each matrix product takes them, and gives its result, in the type of computation; softmax and
LayerNorm add up in float32 inside their kernels.

Shapes: T tokens, D width of the matcher, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.base.compilation import call_by_rows
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
        mode: Mode of torch.compile for what is done token by token; None to run it as it stands here.
    """

    def __init__(self, block: FoldedBlock, activation: str, dtype: torch.dtype, mode: str | None = None) -> None:
        self.block = block
        self.activation = activation
        self.mode = mode
        self.projection = (block.projection.to(dtype), block.projection_bias.to(dtype))
        self.first = (block.first.to(dtype), block.first_bias.to(dtype))
        self.norm = (block.norm[0].to(dtype), block.norm[1].to(dtype), block.norm[2])
        self.second = (block.second.to(dtype), block.second_bias.to(dtype))

    def run(self, tokens: Tokens, *, cross: bool) -> None:
        """Run the block on ``tokens.x`` in place."""
        block, x = self.block, tokens.x
        turning = 0 if cross else block.heads + block.key_value_heads
        heads = self._by_rows(_project, (x, *tokens.rotation), (*self.projection, block.head_dim, turning))
        query, value = heads[:, : block.heads], heads[:, -block.key_value_heads :]
        key = query if block.shared else heads[:, block.heads : -block.key_value_heads]
        attend = attend_image_by_image if x.device.type == "cpu" else attend_packed
        message = attend(query, key, value, tokens.packing, cross=cross).flatten(1)
        x.add_(self._by_rows(_mlp, (x, message), (self.first, self.norm, self.second, self.activation)))

    def _by_rows(self, function: Callable[..., Tensor], rows: tuple[Tensor, ...], weights: tuple[Any, ...]) -> Tensor:
        """Call a function of tensors (T, ...) whose rows do not depend on each other, compiled if that is wanted."""
        if self.mode is None:
            return function(*rows, *weights)
        # Neither what goes in nor what is kept comes out of compiled code, which may write there again: CUDA graphs do.
        return call_by_rows(function, self.mode, rows, weights)


def _project(
    x: Tensor, cosine: Tensor, sine: Tensor, weight: Tensor, bias: Tensor, head_dim: int, turning: int
) -> Tensor:
    """Return the projections (T, H, d) of the tokens (T, D), those of the first ``turning`` heads rotated."""
    heads = F.linear(x.to(weight.dtype), weight, bias).unflatten(1, (-1, head_dim))
    return torch.cat([_turn(heads[:, :turning], cosine, sine), heads[:, turning:]], dim=1) if turning else heads


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + d/2}) of each head of x (T, H, d), computing in float32."""
    cosine, sine = cosine[:, None], sine[:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(x.dtype)


def _mlp(
    x: Tensor,
    message: Tensor,
    first: tuple[Tensor, Tensor],
    norm: tuple[Tensor, Tensor, float],
    second: tuple[Tensor, Tensor],
    activation: str,
) -> Tensor:
    """Return what the MLP adds to the tokens (T, D), from [x | message]."""
    hidden = F.linear(torch.cat([x.to(message.dtype), message], dim=1), *first)
    hidden = ACTIVATIONS[activation](F.layer_norm(hidden, hidden.shape[1:], *norm))
    return F.linear(hidden, *second)
