"""Convolutions for inference: weights laid out once, ReLU in the same pass, where torch offers oneDNN for it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# oneDNN chooses the layout of the weights for a size; it is the same for all that were tried.
_TYPICAL_SIZE = (64, 64)


class PackedConvolution:
    """A convolution of stride 1 with an odd kernel, with or without a ReLU behind it; it computes no gradients.

    Args:
        conv: Where weights and bias come from; they are copied.
        dtype: Floating point type of the product; sums are float32 all the same.
        relu: Whether a ReLU follows.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, *, relu: bool = True) -> None:
        self.dtype = dtype
        self.relu = relu
        self.out_channels = conv.out_channels
        self._margin = conv.kernel_size[0] // 2
        weight = conv.weight.detach().to(dtype=dtype, memory_format=torch.channels_last)
        self._bias = cast("Tensor", conv.bias).detach().to(dtype)
        self._packed = can_pack(weight.device, dtype)
        if self._packed:
            margins = [self._margin, self._margin]
            size = [1, conv.in_channels, *_TYPICAL_SIZE]
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, margins, [1, 1], [1, 1], 1, size)
        self._weight = weight

    def __call__(self, x: Tensor, *, pad_rows: bool = True) -> Tensor:
        """Map (B, C, h, w) to (B, C', h, w); without padding above and below, fewer rows come out.

        Args:
            x: Any floating point type, channels last in memory.
            pad_rows: Whether rows of zeros are put above and below; columns always are, at the left and right.
        """
        margins = [self._margin if pad_rows else 0, self._margin]
        if self._packed:
            last = "relu" if self.relu else "none"
            return torch.ops.mkldnn._convolution_pointwise(
                x.to(self.dtype), self._weight, self._bias, margins, [1, 1], [1, 1], 1, last, [], ""
            )
        x = F.conv2d(x.to(self.dtype), self._weight, self._bias, padding=margins)
        return x.relu_() if self.relu else x


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether this torch has oneDNN's convolution with packed weights for a device and type."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:  # pyright: ignore
        return False
    operations = torch.ops.mkldnn
    if not all(hasattr(operations, name) for name in ("_convolution_pointwise", "_reorder_convolution_weight")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and operations._is_mkldnn_bf16_supported())
