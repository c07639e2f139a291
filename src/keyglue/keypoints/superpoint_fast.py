"""SuperPoint's fast path: the reference path's answers from the same weights, sooner.

- Convolutions have their weights laid out once and the ReLU in the same pass (convolution.py).
- On a CPU each stage that ends in a pooling runs in horizontal strips, so that what is between its layers stays in the
  cache. Two rows above and below a strip are computed twice or are zeros beyond the image; answers do not depend on
  where the strips are.
- Descriptors are computed in the cells around the keypoints only.
- In bfloat16 the first convolution (one channel), the detector's last map and all normalisations stay float32.

Shapes: B images, C channels, h and w pixels of the image or cells of a map, N keypoints, D descriptor.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keyglue.base.fast_path import is_hooked, suits_fast_path
from keyglue.keypoints.convolution import PackedConvolution
from keyglue.keypoints.sampling import bilinear_corners
from keyglue.keypoints.superpoint_compiled import CompiledMaps

if TYPE_CHECKING:
    from keyglue.keypoints.superpoint import ConvBlock, SuperPointForKeypointDetection

# Of one thread's part of what is between the two convolutions of a stage; measured, see docs/performance.md.
_STRIP_BYTES = 8 * 2**20
# Rows of zeros above and below a stage's output, one for each of the next stage's two convolutions.
_HALO = 2


def can_run_fast(model: nn.Module, image: Tensor, parts: Collection[type[nn.Module]]) -> bool:
    """Tell whether nothing is asked of a model that only the reference path does.

    That is training, gradients, autocast, tracing and compiling, hooks, and parts that somebody has replaced.

    Args:
        model: The detector.
        image: What it is given.
        parts: The classes that its parts have unless somebody has replaced them.
    """
    weights = list(model.parameters())
    return (
        suits_fast_path(model, image.device, image.dtype)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (image, *weights)))
        and all(type(tensor) in (Tensor, nn.Parameter) for tensor in (image, *weights))
        and all(type(part) in parts and not is_hooked(part) for part in model.modules() if part is not model)
    )


class FastSuperPoint:
    """SuperPoint's layers, prepared for inference on the device where the weights are.

    Args:
        model: The detector; its weights are copied.
        dtype: Floating point type of the convolutions.
    """

    def __init__(self, model: SuperPointForKeypointDetection, dtype: torch.dtype) -> None:
        blocks = [cast("ConvBlock", block) for block in model.encoder.conv_blocks]
        # One channel is no work for matrix units, and bfloat16 would cut the pixels to 8 bits.
        types = [torch.float32, *[dtype] * (2 * len(blocks) - 1)]
        convolutions = [conv for block in blocks for conv in (block.conv_a, block.conv_b)]
        packed = [PackedConvolution(conv, kind) for conv, kind in zip(convolutions, types, strict=True)]
        self._blocks = list(zip(packed[::2], packed[1::2], strict=True))
        scores, descriptors = model.keypoint_decoder, model.descriptor_decoder
        self._score_hidden = PackedConvolution(scores.conv_score_a, dtype)
        self._score = _linear(scores.conv_score_b, torch.float32)
        self._descriptor_hidden = PackedConvolution(descriptors.conv_descriptor_a, dtype)
        self._descriptor_patch = _linear(descriptors.conv_descriptor_a, dtype)
        self._descriptor = _linear(descriptors.conv_descriptor_b, dtype)
        self._cell = model.config.cell
        mode = model.compile_mode if model.device.type != "cpu" else None  # strips are quicker on a CPU
        self._compiled = None if mode is None else CompiledMaps(model, dtype, mode)

    def maps(self, gray: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probability of keypoints and what ``describe`` needs.

        Args:
            gray: (B, 1, h, w) from 0 to 1, no side shorter than a cell.

        Returns:
            (B, 8 (h // 8), 8 (w // 8)) in float32, and the encoder's output (B, C, h // 8, w // 8).
        """
        if self._compiled is not None:
            return self._compiled(gray)
        if gray.device.type == "cpu":
            images = [self._encode_in_strips(image[None]) for image in gray]
            encoded = images[0] if len(images) == 1 else torch.cat(images)
        else:
            encoded = self._encode(gray)
        hidden = self._score_hidden(encoded).permute(0, 2, 3, 1).float()
        count, height, width, _ = hidden.shape
        weight, bias = self._score
        logits = torch.addmm(bias, hidden.flatten(0, 2), weight)
        cells = logits.softmax(dim=1)[:, :-1].view(count, height, width, self._cell, self._cell)
        return cells.transpose(2, 3).reshape(count, height * self._cell, width * self._cell), encoded

    def describe(self, keypoints: Tensor, encoded: Tensor) -> Tensor:
        """Return unit-length descriptors (N, D), in float32.

        Args:
            keypoints: (N, 2) x, y in pixels of the image.
            encoded: (C, h, w) of the image from ``maps``.
        """
        corners, weights = bilinear_corners(keypoints, (encoded.shape[1], encoded.shape[2]), self._cell)
        cells, place = torch.unique(corners, return_inverse=True)
        weight, bias = self._descriptor
        descriptors = torch.addmm(bias, self._hidden_at(encoded, cells), weight).float()
        # A cell's descriptor counts with unit length.
        length = torch.linalg.vector_norm(descriptors, dim=1).clamp(min=1e-12)
        sampled = F.embedding_bag(place, descriptors, per_sample_weights=weights / length[place], mode="sum")
        return F.normalize(sampled, dim=1)

    def _hidden_at(self, encoded: Tensor, cells: Tensor) -> Tensor:
        """Return the descriptor head's hidden values (R, C) in cells (R,), counted row by row."""
        _, height, width = encoded.shape
        # Collecting the surroundings of a cell costs a third of its convolution.
        if 4 * len(cells) > 3 * height * width:
            return self._descriptor_hidden(encoded[None])[0].permute(1, 2, 0).flatten(0, 1)[cells]
        padded = F.pad(encoded.permute(1, 2, 0), (0, 0, 1, 1, 1, 1)).flatten(0, 1)
        stride = width + 2
        first = cells // width * stride + cells % width
        steps = torch.tensor([y * stride + x for y in range(3) for x in range(3)], device=cells.device)
        patches = padded.index_select(0, (first[:, None] + steps).flatten()).view(len(cells), 9 * padded.shape[1])
        weight, bias = self._descriptor_patch
        return torch.addmm(bias, patches, weight).relu_()

    def _encode(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for index, (first, second) in enumerate(self._blocks):
            x = second(first(x))
            if index < len(self._blocks) - 1:
                x = F.max_pool2d(x, 2)
        return x

    def _encode_in_strips(self, gray: Tensor) -> Tensor:
        x = F.pad(gray.float(), (0, 0, _HALO, _HALO))
        for first, second in self._blocks[:-1]:
            x = _pooled_in_strips(x, first, second)
        first, second = self._blocks[-1]
        return second(first(x[:, :, _HALO:-_HALO]))


def _linear(conv: nn.Conv2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a convolution as a matrix (kernel's rows, columns, channels; C') of one pixel's surroundings, and bias."""
    weight = conv.weight.detach().permute(2, 3, 1, 0).flatten(0, 2)
    return weight.to(dtype).contiguous(), cast("Tensor", conv.bias).detach().to(dtype)


def _pooled_in_strips(x: Tensor, first: PackedConvolution, second: PackedConvolution) -> Tensor:
    """Return the 2 x 2 maxima of two 3 x 3 convolutions of one image.

    Args:
        x: (1, C, h + 4, w) channels last, with two rows of zeros above and below the image.
        first: Of C to C' channels.
        second: Of C' to C'' channels.

    Returns:
        (1, C'', h // 2 + 4, w // 2), again with rows of zeros.
    """
    height, width = x.shape[2] - 2 * _HALO, x.shape[3]
    out_height, out_width = height // 2, width // 2
    out = torch.empty(
        (1, second.out_channels, out_height + 2 * _HALO, out_width),
        dtype=second.dtype,
        memory_format=torch.channels_last,
    )
    out[:, :, :_HALO] = 0
    out[:, :, -_HALO:] = 0
    for top, rows in _strips(out_height, width * first.out_channels):
        between = first(x[:, :, 2 * top : 2 * (top + rows) + 2 * _HALO], pad_rows=False)
        # Beyond the image the second convolution sees zeros, not what the first one makes of zeros.
        if top == 0:
            between[:, :, 0] = 0
        if 2 * (top + rows) == height:
            between[:, :, -1] = 0
        wide = second(between, pad_rows=False)[..., : 2 * out_width]
        lines = torch.maximum(wide[:, :, ::2], wide[:, :, 1::2])
        target = out[:, :, _HALO + top : _HALO + top + rows]
        torch.maximum(lines[..., ::2], lines[..., 1::2], out=target)
    return out


def _strips(height: int, values_per_row: int) -> list[tuple[int, int]]:
    """Return first row and number of rows of strips of equal size, in rows of the output; the last two may overlap."""
    most = max(1, _STRIP_BYTES * torch.get_num_threads() // (4 * values_per_row) // 2)
    count = -(-height // most)
    rows = -(-height // count)
    return [(min(index * rows, height - rows), rows) for index in range(count)]
