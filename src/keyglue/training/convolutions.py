"""SuperPoint's 3 x 3 convolutions in training through the compiled kernels of keyglue-native, where they are installed.

On a CPU without fast bfloat16 nearly all time of training goes into these convolutions. By Winograd's minimal filtering
(Lavin and Gray, arXiv 1509.09308) they take a quarter of the products: forward, and in the gradients of input and
weights. The plain twin is the network's own ``forward``.

Shapes: B images, C channels in, C' channels out, h w pixels.
"""

from __future__ import annotations

import importlib
from typing import Any, cast

import torch
from torch import Tensor, nn

from keyglue.base import native
from keyglue.keypoints.superpoint import ConvBlock, SuperPointForKeypointDetection
from keyglue.keypoints.superpoint_native import PANEL, panels, winograd_transform, winograd_weight


def kernels_for(model: SuperPointForKeypointDetection, images: Tensor) -> Any | None:
    """Return the kernels that the network's convolutions can be trained with on these images (B, 1, h, w), or None."""
    if images.device.type != "cpu" or images.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return None
    kernels = native.kernels(torch.float32)
    if kernels is None or not importlib.import_module("keyglue_native").trains(kernels):
        return None
    config = model.config
    channels = (*config.encoder_hidden_sizes, config.decoder_hidden_size)
    return kernels if all(size % PANEL == 0 for size in channels) else None


def head_inputs(model: SuperPointForKeypointDetection, images: Tensor, kernels: Any) -> tuple[Tensor, Tensor]:
    """Return what the last layers of the keypoints' and the descriptors' head see, each (B, C, h/8, w/8).

    Args:
        model: The network.
        images: (B, 1, h, w).
        kernels: From ``kernels_for``.
    """
    blocks = [cast("ConvBlock", block) for block in model.encoder.conv_blocks]
    x = blocks[0].conv_a(images).relu_()
    for block in blocks:
        if block is not blocks[0]:
            x = convolve(x, block.conv_a, kernels)
        x = convolve(x, block.conv_b, kernels, pool=block.pool)
    heads = (model.keypoint_decoder.conv_score_a, model.descriptor_decoder.conv_descriptor_a)
    return convolve(x, heads[0], kernels), convolve(x, heads[1], kernels)


def convolve(x: Tensor, conv: nn.Conv2d, kernels: Any, *, pool: bool = False) -> Tensor:
    """Return relu(conv(x)), or its 2 x 2 maxima if ``pool``, with gradients.

    Args:
        x: (B, C, h, w) float32, 16 divides C.
        conv: A 3 x 3 convolution that keeps the size, 16 divides its channels.
        kernels: From ``kernels_for``.
        pool: Whether to return the maxima.
    """
    return cast("Tensor", _Convolution.apply(x, conv.weight, conv.bias, kernels, pool))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernels: Any, pool: bool) -> Tensor:
        x = _rows(x)
        out = x.new_empty(*x.shape[:3], len(weight))
        batch, height, width, channels = out.shape
        pooled = x.new_empty(batch, height // 2, width // 2, channels) if pool else None
        importlib.import_module("keyglue_native").convolve(
            kernels, x, _transformed(weight), bias.detach().contiguous(), torch.get_num_threads(), out, pooled
        )
        ctx.save_for_backward(x, weight, out)
        ctx.kernels, ctx.pool = kernels, pool
        return (out if pooled is None else pooled).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        module = importlib.import_module("keyglue_native")
        x, weight, out = ctx.saved_tensors
        before, bias = torch.empty_like(out), out.new_empty(out.shape[3])
        module.gate(ctx.kernels, out, _rows(gradients[0]), ctx.pool, before, bias)
        sums = x.new_zeros(36, x.shape[3], out.shape[3])
        module.weight_gradient(ctx.kernels, x, before, sums)
        # The transform of the weights is linear: the way back is its transpose.
        back = winograd_transform(torch.float32).T @ sums.flatten(1)
        to_weight = back.view(3, 3, *sums.shape[1:]).permute(3, 2, 0, 1)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = torch.empty_like(x)
            turned = weight.detach().flip(2, 3).transpose(0, 1)
            module.convolve(ctx.kernels, before, _transformed(turned), None, torch.get_num_threads(), to_x, None)
            to_x = to_x.permute(0, 3, 1, 2)
        return to_x, to_weight, bias, None, None


def _rows(maps: Tensor) -> Tensor:
    """Return maps (B, C, h, w) as (B, h, w, C), channels last in memory."""
    return maps.detach().permute(0, 2, 3, 1).contiguous()


def _transformed(weight: Tensor) -> Tensor:
    """Return the transformed weights of (C', C, 3, 3) in panels, (36, C' / 16, C, 16)."""
    return panels(winograd_weight(weight.detach(), torch.float32).flatten(0, 1))
