"""Attention in training on CPUs with bfloat16: torch's forward pass, and gradients in matrix products.

torch's own gradient on a CPU forms its products in blocks; a processor with matrix units for bfloat16 needs half of
that time for whole products. The probabilities are computed anew: they are as large as all that the forward pass would
otherwise keep.

Shapes: I images, H heads, M queries, N keys, d values a head.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

# Heads whose probabilities are in the making at a time: few enough to stay in the cache.
_TOGETHER = 8


def suits_gradient(query: Tensor, key: Tensor, dropout: float) -> bool:
    """Tell whether ``attend`` may take the place of torch's attention and is quicker."""
    return (
        torch.is_grad_enabled()
        and query.requires_grad
        and query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.shape[:2] == key.shape[:2]
        and dropout == 0
        and not torch.compiler.is_compiling()  # pyright: ignore[reportPrivateImportUsage]
    )


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(Q K^T / sqrt(d)) V, (I, H, M, d).

    Args:
        query: (I, H, M, d).
        key: (I, H, N, d).
        value: (I, H, N, d).
    """
    return cast("Tensor", _Attention.apply(query, key, value))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
        ctx.save_for_backward(query, key, value)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = ctx.saved_tensors
        shape, scale = query.shape, 1 / math.sqrt(query.shape[-1])
        # Each head of each image by itself, contiguous, as products want them.
        to_out, q, k, v = (part.flatten(0, 1) for part in (gradients[0], query * scale, key, value))
        to_query, to_key, to_value = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for start in range(0, len(q), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            probability = torch.bmm(q[part], k[part].mT).softmax(dim=-1)
            torch.bmm(probability.mT, to_out[part], out=to_value[part])
            to_probability = torch.bmm(to_out[part], v[part].mT)
            to_logits = torch.ops.aten._softmax_backward_data(to_probability, probability, -1, q.dtype)
            torch.bmm(to_logits, k[part], out=to_query[part])
            torch.bmm(to_logits.mT, q[part], out=to_key[part])
        return (to_query * scale).view(shape), to_key.view(key.shape), to_value.view(value.shape)
