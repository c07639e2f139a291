"""The fast path in compiled kernels (package keyglue-native): the same folded weights, everything in the cache.

What differs from ``fast_cpu`` is in native/README.md. Nothing here decides when kernels are taken; ``fast`` does.

Shapes: T tokens, D width of the matcher, M and N keypoints of a pair's two images.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.matching.lightglue.assignment import mutual_best
from keyglue.matching.lightglue.folding import FoldedBlock
from keyglue.matching.lightglue.ragged import Tokens

# Of the MLP. Others are left to PyTorch.
ACTIVATION = "gelu"


class NativeWorkspace:
    """Memory of the kernels, kept from call to call, for one call at a time; made when first asked for."""

    @functools.cached_property
    def memory(self) -> Any:
        """The kernels' own object."""
        return importlib.import_module("keyglue_native").Workspace()


class NativeBlock:
    """One folded block with its weights laid out for the kernels.

    Args:
        block: Folded weights.
        kernels: What ``keyglue.base.native.kernels`` returns.
        cross: Whether it is a cross block, whose queries and keys are not rotated.
    """

    def __init__(self, block: FoldedBlock, kernels: Any, *, cross: bool) -> None:
        native = importlib.import_module("keyglue_native")
        weight, bias, epsilon = block.norm
        self.cross = cross
        self.block = native.Block(
            kernels=kernels,
            projection=_array(block.projection),
            projection_bias=_array(block.projection_bias),
            first=_array(block.first),
            first_bias=_array(block.first_bias),
            norm_weight=_array(weight),
            norm_bias=_array(bias),
            epsilon=epsilon,
            second=_array(block.second),
            second_bias=_array(block.second_bias),
            heads=block.heads,
            key_value_heads=block.key_value_heads,
            head_dim=block.head_dim,
            shared=block.shared,
            rotary=not cross,
        )

    def run(self, tokens: Tokens, work: NativeWorkspace) -> None:
        """Run the block on ``tokens.x`` (T, D), float32 and contiguous, in place."""
        cosine, sine = (None, None) if self.cross else (_array(part) for part in tokens.rotation)
        lengths = list(tokens.packing.lengths)
        threads = torch.get_num_threads()
        self.block.run(tokens.x.numpy(), cosine, sine, lengths, self.cross, work.memory, threads)


class NativeAssignment:
    """One layer's assignment with its projection laid out for the kernels.

    Args:
        weight: (D, D), scaled so that the products of what it gives are the similarity.
        bias: (D,).
        kernels: What ``keyglue.base.native.kernels`` returns.
    """

    def __init__(self, weight: Tensor, bias: Tensor, kernels: Any) -> None:
        native = importlib.import_module("keyglue_native")
        self.assignment = native.Assignment(kernels, _array(weight), _array(bias))

    def matches(
        self, x0: Tensor, x1: Tensor, z0: Tensor, z1: Tensor, filter_threshold: float, work: NativeWorkspace
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Return the matches of one pair as ``mutual_matches`` does; None if something is not a number.

        Args:
            x0: (M, D) tokens, float32, M >= 1.
            x1: (N, D), N >= 1.
            z0: (M,) logits of matchability.
            z1: (N,).
            filter_threshold: Probability that a match must exceed.
            work: Memory.
        """
        offsets = [_array(F.logsigmoid(z)) for z in (z0, z1)]
        best0 = torch.empty_like(z0)
        index0, index1 = (torch.empty_like(z, dtype=torch.long) for z in (z0, z1))
        found = [part.numpy() for part in (best0, index0, index1)]
        tokens = _array(x0), _array(x1)
        if not self.assignment.assign(*tokens, *offsets, *found, work.memory, torch.get_num_threads()):
            return None
        return mutual_best(best0, index0, index1, filter_threshold)


def _array(tensor: Tensor) -> Any:
    """Return a tensor as an array for the kernels; without a copy if it is contiguous already."""
    return tensor.detach().contiguous().numpy()
