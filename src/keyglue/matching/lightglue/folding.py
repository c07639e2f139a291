"""Weights of a block, prepared for the fast path: the same function with fewer and larger matrix products.

- Queries, keys and values come from one product. The factor head_dim**-0.5 of the logits is in its weights.
- Attention's output projection is part of the MLP's first linear map: W1 [x | Wo m + bo] = W1x x + (W1m Wo) m + W1m bo.
- Where the cross block's queries and keys have the same weights, as in all published models, one projection serves
  both, and the similarity of two images is the transpose of the other way's.

Shapes: D width of the matcher, P rows of the packed projection.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from keyglue.matching.lightglue.attention import Attention
from keyglue.matching.lightglue.layer import MLP


@dataclasses.dataclass(frozen=True)
class FoldedBlock:
    """One attention block as plain tensors, float32.

    Attributes:
        projection: (P, D) queries, keys and values one below the other; no keys if they are shared.
        projection_bias: (P,).
        first: (2D, 2D) the MLP's first map from [x | attention before its output projection].
        first_bias: (2D,).
        norm: Weight (2D,), bias (2D,) and epsilon of the LayerNorm.
        second: (D, 2D) the MLP's second map.
        second_bias: (D,).
        heads: Heads of the queries.
        key_value_heads: Heads of the keys and values.
        head_dim: Width of a head.
        shared: Whether keys are the queries themselves.
    """

    projection: Tensor
    projection_bias: Tensor
    first: Tensor
    first_bias: Tensor
    norm: tuple[Tensor, Tensor, float]
    second: Tensor
    second_bias: Tensor
    heads: int
    key_value_heads: int
    head_dim: int
    shared: bool


def fold_block(attention: Attention, mlp: MLP, *, cross: bool, halves: bool = False) -> FoldedBlock:
    """Return a block's weights, in float32.

    Args:
        attention: Its projections.
        mlp: Its MLP.
        cross: Whether it is a cross block, whose queries and keys may be shared.
        halves: Order each head's dimensions of queries and keys as first halves of the rotary pairs, then second.
    """
    query, key, value, out = (
        _affine(linear) for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    )
    dim = attention.head_dim
    shared = cross and all(torch.equal(a, b) for a, b in zip(query, key, strict=True))
    if halves:
        query, key = (tuple(_halves_first(part, dim) for part in parts) for parts in (query, key))
    scale = dim**-0.25 if shared else dim**-0.5
    query = (query[0] * scale, query[1] * scale)
    parts = [query, value] if shared else [query, key, value]
    first, first_bias = _affine(mlp.fc1)
    of_x, of_message = first.chunk(2, dim=1)
    second, second_bias = _affine(mlp.fc2)
    norm = mlp.layer_norm
    return FoldedBlock(
        projection=torch.cat([part[0] for part in parts]),
        projection_bias=torch.cat([part[1] for part in parts]),
        first=torch.cat([of_x, of_message @ out[0]], dim=1),
        first_bias=first_bias + of_message @ out[1],
        norm=(norm.weight.detach().float(), norm.bias.detach().float(), norm.eps),
        second=second,
        second_bias=second_bias,
        heads=len(query[0]) // dim,
        key_value_heads=len(value[0]) // dim,
        head_dim=dim,
        shared=shared,
    )


def _affine(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return weight and bias in float32; zeros where there is no bias."""
    weight = linear.weight.detach().float()
    bias = linear.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().float()  # pyright: ignore[reportUnnecessaryComparison]


def _halves_first(rows: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of each head from 0, 1, 2, 3, ... to 0, 2, ..., 1, 3, ..."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
