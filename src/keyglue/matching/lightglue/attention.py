"""Multi-head attention over ragged batches (section 3.2, equations 2 to 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keyglue.matching.lightglue.attention_training import attend, suits_training
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.lightglue.positional import rotate
from keyglue.matching.lightglue.ragged import Packing


class Attention(nn.Module):
    """Attention of each image's points to those of one image: itself (self) or its partner (cross).

    Groups of query heads may share a key and value head (grouped-query attention).
    """

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        width, bias = config.descriptor_dim, config.attention_bias
        key_value_width = config.key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, key_value_width, bias=bias)
        self.v_proj = nn.Linear(width, key_value_width, bias=bias)
        self.o_proj = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        packing: Packing,
        *,
        rotation: tuple[Tensor, Tensor] | None = None,
        cross: bool = False,
        probabilities: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the message (T, D) that each token receives.

        Args:
            x: (T, D) tokens.
            packing: Which token belongs to which image.
            rotation: Positional encoding applied to queries and keys.
            cross: Attend to the other image of the pair instead of the own one.
            probabilities: If given, the probabilities (H, M, N) of each image are appended to it.
        """
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.head_dim)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if packing.uniform is not None and probabilities is None:
            return self.o_proj(self._attend_uniform(query, key, value, packing.uniform, cross))
        # Not slices of each: the gradient of a slice is as large as what it was cut from.
        queries, keys, values = (part.split(packing.lengths) for part in (query, key, value))
        messages: list[Tensor] = []
        for image in range(len(queries)):
            other = image ^ 1 if cross else image
            message, weights = self._attend(queries[image], keys[other], values[other], probabilities is not None)
            messages.append(message)
            if probabilities is not None and weights is not None:
                probabilities.append(weights)
        return self.o_proj(torch.cat(messages))

    def _attend_uniform(self, query: Tensor, key: Tensor, value: Tensor, count: int, cross: bool) -> Tensor:
        """Attend as ``_attend`` in all images at once, each of ``count`` tokens: fewer launches, smaller gradients."""
        q, k, v = (part.unflatten(0, (-1, count)) for part in (query, key, value))
        if cross:
            k, v = (part.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for part in (k, v))
        dropout = self.dropout if self.training else 0.0
        if suits_training(q, k, dropout):
            return attend(q, k, v).flatten(2).flatten(0, 1)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        messages = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1])
        return messages.transpose(1, 2).flatten(2).flatten(0, 1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, explicit: bool) -> tuple[Tensor, Tensor | None]:
        """Attend from (M, H, d) queries to (N, H', d) keys; return (M, D) and, if explicit, (H, M, N)."""
        dropout = self.dropout if self.training else 0.0
        q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))
        if not explicit:
            message = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1])
            return message[0].transpose(0, 1).flatten(1), None
        groups = q.shape[1] // k.shape[1]
        k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
        weights = (q @ k.transpose(-1, -2) * self.head_dim**-0.5).float().softmax(dim=-1).to(q.dtype)
        weights = F.dropout(weights, dropout)
        return (weights @ v)[0].transpose(0, 1).flatten(1), weights[0]
