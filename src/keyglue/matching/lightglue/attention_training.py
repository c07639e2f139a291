"""Attention in training on CPUs with bfloat16, with a gradient that is several times quicker than torch's.

torch's own gradient on a CPU forms its products in small blocks. Where keyglue-native is installed and the processor
has AMX, its kernel takes that place (a sixth of the time); elsewhere whole products of some heads at a time (half).
Both compute the probabilities anew: they are as large as all that the forward pass would otherwise keep.

Shapes: I images, H heads, M queries, N keys, d values a head.
"""

from __future__ import annotations

import importlib
import math
from typing import Any, cast

import torch
from torch import Tensor

from keyglue.base import native

# Heads whose probabilities are in the making at a time: few enough to stay in the cache.
_TOGETHER = 8
# The kernel takes heads of multiples of this size.
_PANEL = 32


def suits_training(query: Tensor, key: Tensor, dropout: float) -> bool:
    """Tell whether ``attend`` may take the place of torch's attention and is quicker."""
    return (
        torch.is_grad_enabled()
        and query.requires_grad
        and query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.shape[2] == key.shape[2]
        and min(query.numel(), key.numel()) > 0
        and dropout == 0
        and not torch.compiler.is_compiling()  # pyright: ignore[reportPrivateImportUsage]
    )


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(Q K^T / sqrt(d)) V, (I, M, H, d).

    Args:
        query: (I, M, H, d).
        key: (I, N, H, d).
        value: (I, N, H, d).
    """
    return cast("Tensor", _Attention.apply(query, key, value))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (part.detach().contiguous() for part in (query, key, value))
        ctx.kernels = native.kernels(query.dtype) if query.shape[3] % _PANEL == 0 else None
        scale = 1 / math.sqrt(query.shape[3])
        if ctx.kernels is None:
            heads = (part.transpose(1, 2) for part in (query, key, value))
            out = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads)[0].transpose(1, 2)
            ctx.save_for_backward(query, key, value)
            return out
        out = torch.empty_like(query)
        logsumexp = torch.empty(len(query), query.shape[2], query.shape[1])
        importlib.import_module("keyglue_native").attention_forward(
            ctx.kernels, query, key, value, scale, out, logsumexp, torch.get_num_threads()
        )
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *more = ctx.saved_tensors
        if ctx.kernels is None:
            return _gradient(query, key, value, gradients[0])
        out, logsumexp = more
        # A tensor that was returned is a node of the graph, which kernels are not given.
        given = (query, key, value, out.detach(), gradients[0].contiguous())
        found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        scale = 1 / math.sqrt(query.shape[3])
        importlib.import_module("keyglue_native").attention_gradient(
            ctx.kernels, *given, logsumexp, scale, *found, torch.get_num_threads()
        )
        return found


def _gradient(query: Tensor, key: Tensor, value: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values from that of the result."""
    scale = 1 / math.sqrt(query.shape[3])
    # Each head of each image by itself, contiguous, as products want them.
    to_out, q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in (gradient, query * scale, key, value))
    found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for start in range(0, len(q), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        probability = torch.bmm(q[part], k[part].mT).softmax(dim=-1)
        to_probability = torch.bmm(to_out[part], v[part].mT)
        to_logits = torch.ops.aten._softmax_backward_data(to_probability, probability, -1, q.dtype)
        torch.bmm(to_logits, k[part], out=found[0][part])
        torch.bmm(to_logits.mT, q[part], out=found[1][part])
        torch.bmm(probability.mT, to_out[part], out=found[2][part])
    to_query, to_key, to_value = (part.unflatten(0, (len(query), -1)).transpose(1, 2) for part in found)
    return to_query * scale, to_key, to_value
