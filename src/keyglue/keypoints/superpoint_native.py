"""SuperPoint through the compiled kernels of keyglue-native: the fast path's answers, sooner.

In float32, 3 x 3 convolutions are computed by Winograd's minimal filtering (native/src/detector/winograd.hpp), in
bfloat16 directly with AMX (bfloat16.hpp); both in bands of rows that stay in the caches. Scores, suppression and
descriptors have kernels of their own. The plain twins are FastSuperPoint and find_keypoints.

Shapes: B images, C channels, h and w pixels of the image, N keypoints, D descriptor.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keyglue.keypoints import nms

if TYPE_CHECKING:
    from keyglue.keypoints.superpoint import ConvBlock, SuperPointForKeypointDetection

# Channels come in panels of so many.
PANEL = 16
# Of a channel that is there to fill a panel, so that nothing of it is left after softmax.
_NEVER = -1e30
# Values that no sum may exceed in size, far enough from float32's 3.4e38.
_LARGEST = 1e30
# How much larger than the output the kernels' sums can get: the squares of the largest row sums of the transforms of
# input and output. That of the weights makes no sum larger.
_BETWEEN = 4.5**2 * 7.4**2

# Channels in and out, packed weights, bias.
Layer = tuple[int, int, Tensor, Tensor]


class CellMap(NamedTuple):
    """The encoder's output in the kernels' layout.

    Args:
        values: (h, w', C'), cells with zeros around them.
        width: Of the map in cells.
    """

    values: Tensor
    width: int


class NativeSuperPoint:
    """SuperPoint's layers, laid out for the kernels.

    Args:
        model: The detector; its weights are copied.
        kernels: From ``keyglue.base.native``.
    """

    def __init__(self, model: SuperPointForKeypointDetection, kernels: Any) -> None:
        self._native = importlib.import_module("keyglue_native")
        self._kernels = kernels
        blocks = [cast("ConvBlock", block) for block in model.encoder.conv_blocks]
        convolutions = [conv for block in blocks for conv in (block.conv_a, block.conv_b)]
        pack = _pack_bfloat16 if kernels.bfloat16 else _pack_winograd
        self._layers = [_pack_first(convolutions[0]), *(pack(conv) for conv in convolutions[1:])]
        scores, descriptors = model.keypoint_decoder, model.descriptor_decoder
        self._scores = (pack(scores.conv_score_a), _pack_linear(scores.conv_score_b, fill=_NEVER))
        self._descriptors = (
            pack(descriptors.conv_descriptor_a),
            _pack_linear(descriptors.conv_descriptor_b),
        )
        self._cell = model.config.cell
        heads = [[scores.conv_score_a, scores.conv_score_b]]
        heads += [[descriptors.conv_descriptor_a, descriptors.conv_descriptor_b]]
        self._limit = min(largest_input([*convolutions, *head]) for head in heads)

    def suits(self, gray: Tensor) -> bool:
        """Tell whether no value can overflow on the way, for which the plain paths have their own answers."""
        low, high = gray.aminmax()
        return max(-float(low), float(high)) <= self._limit

    def maps(self, gray: Tensor) -> tuple[list[Tensor], list[CellMap]]:
        """Return the probability of keypoints and what ``describe`` needs, for each image.

        Args:
            gray: (B, 1, h, w) from 0 to 1, no side shorter than a cell.

        Returns:
            (8 (h // 8), 8 (w // 8)) scores and the encoder's output.
        """
        scores: list[Tensor] = []
        maps: list[CellMap] = []
        threads = torch.get_num_threads()
        for image in gray[:, 0].detach().float().contiguous():
            height, width = (size // self._cell for size in image.shape)
            # One pixel of zeros at the left, at the right up to a multiple of four and one more.
            encoded = torch.zeros(height, _multiple(width, 4) + 2, _multiple(self._layers[-1][1], PANEL))
            self._native.encode(self._kernels, image, self._layers, 4 * threads, threads, encoded)
            found = torch.empty(height * self._cell, width * self._cell)
            self._native.scores(self._kernels, encoded, width, *self._scores, self._cell, threads, found)
            scores.append(found)
            maps.append(CellMap(encoded, width))
        return scores, maps

    def describe(self, keypoints: Tensor, encoded: CellMap) -> Tensor:
        """Return unit-length descriptors (N, D), in float32.

        Args:
            keypoints: (N, 2) x, y in pixels of the image.
            encoded: Of the image from ``maps``.
        """
        out = torch.empty(len(keypoints), self._descriptors[1][1])
        if len(keypoints):
            places = keypoints.contiguous()
            self._native.describe(
                self._kernels, *encoded, *self._descriptors, self._cell, places, torch.get_num_threads(), out
            )
        return out

    def find_keypoints(
        self,
        scores: Tensor,
        radius: int,
        threshold: float,
        border: int,
        max_keypoints: int,
        *,
        border_right_bottom: bool = True,
        recovery_rounds: int = 2,
    ) -> tuple[Tensor, Tensor]:
        """Return what ``find_keypoints`` of nms.py returns for scores (h, w)."""
        most = max(scores.shape)  # pixels further away than this are not there
        settings = (min(radius, most), threshold, min(border, most), max_keypoints)
        found = self._native.find_keypoints(
            self._kernels, scores.contiguous(), *settings, border_right_bottom, recovery_rounds
        )
        if found is None:  # a score is NaN
            return nms.find_keypoints(
                scores, *settings, border_right_bottom=border_right_bottom, recovery_rounds=recovery_rounds
            )
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def _pack(matrix: Tensor, bias: Tensor, fill: float = 0) -> tuple[Tensor, Tensor]:
    """Return matrices (..., C, C') in panels (..., C' / 16, C, 16), and the bias, both filled up."""
    missing = -matrix.shape[-1] % PANEL
    return panels(F.pad(matrix.float(), (0, missing))), F.pad(bias.float(), (0, missing), value=fill).contiguous()


def panels(matrix: Tensor) -> Tensor:
    """Return matrices (..., C, C'), 16 divides C', in panels (..., C' / 16, C, 16)."""
    return matrix.unflatten(-1, (-1, PANEL)).transpose(-3, -2).contiguous()


def _pack_linear(conv: nn.Conv2d, fill: float = 0) -> Layer:
    weight, bias = conv.weight.detach(), cast("Tensor", conv.bias).detach()
    return conv.in_channels, conv.out_channels, *_pack(weight[:, :, 0, 0].T, bias, fill)


def _pack_first(conv: nn.Conv2d) -> Layer:
    """Return a convolution of one channel: its weights are (9, C')."""
    weight, bias = conv.weight.detach(), cast("Tensor", conv.bias).detach()
    missing = (0, -conv.out_channels % PANEL)
    return 1, conv.out_channels, F.pad(weight.flatten(1).T.float(), missing).contiguous(), F.pad(bias.float(), missing)


def _pack_winograd(conv: nn.Conv2d) -> Layer:
    """Return a 3 x 3 convolution with its weights transformed: (36, C' / 16, C, 16)."""
    weight, bias = conv.weight.detach(), cast("Tensor", conv.bias).detach()
    return conv.in_channels, conv.out_channels, *_pack(winograd_weight(weight).flatten(0, 1), bias)


def _pack_bfloat16(conv: nn.Conv2d) -> Layer:
    """Return a 3 x 3 convolution in bfloat16, (C' / 32, 9, C / 32, 16, 32, 2): channels in lie in pairs."""
    weight, bias = conv.weight.detach(), cast("Tensor", conv.bias).detach()
    missing = (0, -conv.in_channels % 32, 0, -conv.out_channels % 32)
    taps = F.pad(weight.flatten(2).permute(2, 0, 1).to(torch.bfloat16), missing)
    packed = taps.unflatten(2, (-1, 16, 2)).unflatten(1, (-1, 32)).permute(1, 0, 3, 4, 2, 5).contiguous()
    return conv.in_channels, conv.out_channels, packed, F.pad(bias.float(), (0, -conv.out_channels % PANEL))


def winograd_weight(weight: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return G w G^T of 3 x 3 weights (C', C, 3, 3) as (6, 6, C, C'), computed in ``dtype``."""
    taps = weight.to(dtype).permute(2, 3, 1, 0).flatten(2).flatten(0, 1)
    return (winograd_transform(dtype) @ taps).view(6, 6, *weight.shape[1::-1])


@functools.cache
def winograd_transform(dtype: torch.dtype) -> Tensor:
    """Return the map (36, 9) from the weights of a 3 x 3 convolution to G w G^T.

    G evaluates a polynomial at 0, +-sqrt(1/2), +-sqrt(2) and infinity, where the kernels interpolate; each row is
    divided by the product of the point's distances from the others. See Lavin and Gray, arXiv 1509.09308.
    """
    points = [0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)]
    rows = [
        [power / math.prod(point - other for other in points if other != point) for power in (1, point, point**2)]
        for point in points
    ]
    transform = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)
    return torch.kron(transform, transform).to(dtype)


def largest_input(convolutions: Sequence[nn.Conv2d]) -> float:
    """Return up to which size of the input no value of a stack of convolutions overflows, -1 if none is sure.

    The largest value after a layer is at most a factor times the input's, and an offset.
    """
    factor, offset, limit = 1.0, 0.0, _LARGEST
    for conv in convolutions:
        gain = float(conv.weight.detach().abs().sum((1, 2, 3), dtype=torch.float64).max())
        bias = float(cast("Tensor", conv.bias).detach().abs().max())
        if not math.isfinite(gain + bias):
            return -1.0
        largest = _BETWEEN * gain
        limit = min(limit, (_LARGEST - bias - offset * largest) / max(factor * largest, 1.0))
        factor, offset = factor * gain, offset * gain + bias
    return limit
