"""SuperPoint's dense part as one function for torch.compile: a batch of images to their maps, without strips.

It is for CUDA. On a CPU the strips of superpoint_fast.py are quicker than what torch.compile makes of this: both call
the same convolutions, and here each layer's output goes through memory.

Shapes: B images, C channels, h and w pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keyglue.base.compilation import compiled, let_vary

if TYPE_CHECKING:
    from keyglue.keypoints.superpoint import ConvBlock, SuperPointForKeypointDetection

Weights = tuple[Tensor, Tensor]


class CompiledMaps:
    """SuperPoint's encoder and detector head, compiled at the first call.

    Args:
        model: The detector; its weights are copied.
        dtype: Floating point type of the convolutions.
        mode: Mode of torch.compile.
    """

    def __init__(self, model: SuperPointForKeypointDetection, dtype: torch.dtype, mode: str) -> None:
        blocks = [cast("ConvBlock", block) for block in model.encoder.conv_blocks]
        # As on the path that is not compiled, the first and the last map are float32.
        types = [torch.float32, *[dtype] * (2 * len(blocks) - 1)]
        convolutions = [conv for block in blocks for conv in (block.conv_a, block.conv_b)]
        self._encoder = tuple(_weights(conv, kind) for conv, kind in zip(convolutions, types, strict=True))
        head = model.keypoint_decoder
        self._head = (_weights(head.conv_score_a, dtype), _weights(head.conv_score_b, torch.float32))
        self._cell = model.config.cell
        self._mode = mode

    def __call__(self, gray: Tensor) -> tuple[Tensor, Tensor]:
        """Return what ``FastSuperPoint.maps`` does of images (B, 1, h, w)."""
        let_vary([gray], (0, 2, 3))
        scores, encoded = compiled(dense_maps, self._mode)(gray, self._encoder, self._head, self._cell)
        # CUDA graphs write to the same memory again.
        return scores.clone(), encoded.clone()


def _weights(conv: nn.Conv2d, dtype: torch.dtype) -> Weights:
    weight = conv.weight.detach().to(dtype=dtype, memory_format=torch.channels_last, copy=True)
    return weight, cast("Tensor", conv.bias).detach().to(dtype=dtype, copy=True)


def dense_maps(
    gray: Tensor, encoder: tuple[Weights, ...], head: tuple[Weights, Weights], cell: int
) -> tuple[Tensor, Tensor]:
    """Return the probability of keypoints (B, h, w) in float32, and the encoder's output (B, C, h // 8, w // 8).

    Args:
        gray: (B, 1, h, w) from 0 to 1.
        encoder: Weight and bias of its convolutions, two a stage.
        head: Of the detector head's two.
        cell: Pixels of a cell along each axis.
    """
    x = gray.float().contiguous(memory_format=torch.channels_last)
    for index, (weight, bias) in enumerate(encoder):
        x = F.relu(F.conv2d(x.to(weight.dtype), weight, bias, padding=1))
        if index % 2 and index < len(encoder) - 1:
            x = F.max_pool2d(x, 2)
    hidden = F.relu(F.conv2d(x, *head[0], padding=1))
    logits = F.conv2d(hidden.float(), *head[1])
    return F.pixel_shuffle(logits.softmax(dim=1)[:, :-1], cell)[:, 0], x
