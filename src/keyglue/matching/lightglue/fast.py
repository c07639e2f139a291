"""Which code does the arithmetic of the layers: the reference path, or a fast path that gives the same answers sooner.

The fast paths keep their own copy of the weights, made when it is first needed and again after any parameter has
changed. Whatever they do not know (training, gradients, records, hooks, replaced modules, other types and devices)
runs on the reference path.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keyglue.base import native
from keyglue.base.derived import Derived
from keyglue.base.fast_path import is_hooked, suits_fast_path
from keyglue.matching.lightglue.assignment import MatchAssignment, mutual_matches
from keyglue.matching.lightglue.assignment_blocks import match_in_blocks
from keyglue.matching.lightglue.attention import Attention
from keyglue.matching.lightglue.attention_blocks import Workspace
from keyglue.matching.lightglue.confidence import TokenConfidence
from keyglue.matching.lightglue.fast_cpu import CpuBlock
from keyglue.matching.lightglue.fast_native import ACTIVATION, NativeAssignment, NativeBlock, NativeWorkspace
from keyglue.matching.lightglue.fast_packed import PackedBlock
from keyglue.matching.lightglue.folding import fold_block
from keyglue.matching.lightglue.layer import MLP, TransformerLayer
from keyglue.matching.lightglue.ragged import Tokens
from keyglue.matching.lightglue.recording import Recorder

if TYPE_CHECKING:
    from keyglue.matching.lightglue.lightglue import LightGlueMatcher

MatchesOfPair = tuple[Tensor, Tensor, Tensor, Tensor]
AnyBlock = NativeBlock | CpuBlock | PackedBlock


class ComputePath(Protocol):
    """The arithmetic of the layers.

    Attributes:
        together: Whether pairs should run together; otherwise one after the other.
        dtype: Type of the tokens; None for whatever the projection of the descriptors gives.
    """

    together: bool
    dtype: torch.dtype | None

    def layer(self, index: int, tokens: Tokens) -> Tensor:
        """Return the descriptors (T, D) after a layer; ``tokens.x`` may be overwritten."""
        ...

    def confidence(self, index: int, x: Tensor) -> Tensor:
        """Return (T,) probabilities that the tokens' matches are final."""
        ...

    def matchability(self, index: int, x: Tensor) -> Tensor:
        """Return (T,) probabilities that the tokens have a match."""
        ...

    def matches(self, index: int, x0: Tensor, x1: Tensor) -> MatchesOfPair:
        """Return the matches of one pair as ``mutual_matches`` does."""
        ...


class ReferencePath:
    """The modules themselves, written to be read; also takes down hidden states and attentions."""

    together = True
    dtype: torch.dtype | None = None

    def __init__(self, model: LightGlueMatcher, record: Recorder | None = None) -> None:
        self.model = model
        self.record = record

    def layer(self, index: int, tokens: Tokens) -> Tensor:
        """Return the descriptors (T, D) after a layer."""
        return self.model.transformer_layers[index](tokens, self.record)

    def confidence(self, index: int, x: Tensor) -> Tensor:
        """Return (T,) probabilities that the tokens' matches are final."""
        return self.model.token_confidence[index](x)

    def matchability(self, index: int, x: Tensor) -> Tensor:
        """Return (T,) probabilities that the tokens have a match."""
        return self.model.assignment(index).matchability_of(x)

    def matches(self, index: int, x0: Tensor, x1: Tensor) -> MatchesOfPair:
        """Return the matches of one pair."""
        return mutual_matches(self.model.assignment(index)(x0, x1), self.model.config.filter_threshold)


class FastPath:
    """Folded weights on float32 tokens: in float32 on a CPU block by block, else in one pass over all pairs."""

    dtype: torch.dtype | None = torch.float32

    def __init__(self, weights: FastWeights, filter_threshold: float) -> None:
        self.weights = weights
        self.filter_threshold = filter_threshold
        self.together = not weights.on_cpu
        self.work = Workspace()
        self.native_work = NativeWorkspace()

    def layer(self, index: int, tokens: Tokens) -> Tensor:
        """Return the descriptors (T, D) after a layer, which overwrite ``tokens.x``."""
        for block, cross in zip(self.weights.layers[index], (False, True), strict=True):
            if isinstance(block, NativeBlock):
                block.run(tokens, self.native_work)
            elif isinstance(block, CpuBlock):
                block.run(tokens, self.work, cross=cross)
            else:
                block.run(tokens, cross=cross)
        return tokens.x

    def confidence(self, index: int, x: Tensor) -> Tensor:
        """Return (T,) probabilities that the tokens' matches are final."""
        return F.linear(x, *self.weights.confidence[index]).squeeze(1).sigmoid()

    def matchability(self, index: int, x: Tensor) -> Tensor:
        """Return (T,) probabilities that the tokens have a match."""
        return self._matchability_logits(index, x).sigmoid()

    def matches(self, index: int, x0: Tensor, x1: Tensor) -> MatchesOfPair:
        """Return the matches of one pair."""
        z0, z1 = (self._matchability_logits(index, x) for x in (x0, x1))
        if self.weights.assignments:
            found = self.weights.assignments[index].matches(x0, x1, z0, z1, self.filter_threshold, self.native_work)
            if found is not None:
                return found
        projected0, projected1 = (F.linear(x, *self.weights.projection[index]) for x in (x0, x1))
        return match_in_blocks(projected0, projected1, z0, z1, self.filter_threshold)

    def _matchability_logits(self, index: int, x: Tensor) -> Tensor:
        return F.linear(x, *self.weights.matchability[index]).squeeze(1)


class FastWeights:
    """What the fast path needs of a model's weights, in its own order.

    Args:
        model: The model; its parameters are copied.
        dtype: Type of the matrix products.
        kernels: Compiled kernels for that type, if there are any.

    Attributes:
        layers: Self and cross block of each layer.
        confidence: Weight and bias of each layer's confidence head.
        matchability: Weight and bias of each layer's matchability head.
        projection: Weight and bias of each layer's final projection, scaled so that its products are the similarity.
        assignments: The same for the compiled kernels; empty without them.
    """

    def __init__(self, model: LightGlueMatcher, dtype: torch.dtype, kernels: Any | None = None) -> None:
        self.dtype = dtype
        self.kernels = kernels
        self.on_cpu = model.device.type == "cpu"
        self.layers = [
            (self._block(model, layer, cross=False), self._block(model, layer, cross=True)) for layer in _layers(model)
        ]
        assignments = [model.assignment(index) for index in range(len(self.layers))]
        confidences = cast("Iterable[TokenConfidence]", model.token_confidence)
        self.confidence = [_float32(head.token) for head in confidences]
        self.matchability = [_float32(layer.matchability) for layer in assignments]
        self.projection = [_float32(layer.final_projection, layer.scale) for layer in assignments]
        self.assignments = [NativeAssignment(*linear, kernels) for linear in self.projection] if kernels else []

    def _block(self, model: LightGlueMatcher, layer: TransformerLayer, *, cross: bool) -> AnyBlock:
        attention = layer.cross_attention if cross else layer.self_attention
        mlp = layer.cross_mlp if cross else layer.self_mlp
        activation = model.config.hidden_act
        mode = model.compile_mode
        if self.kernels is not None and activation == ACTIVATION:
            return NativeBlock(fold_block(attention, mlp, cross=cross), self.kernels, cross=cross)
        if self.on_cpu and self.dtype == torch.float32 and mode is None:
            return CpuBlock(fold_block(attention, mlp, cross=cross), activation)
        return PackedBlock(fold_block(attention, mlp, cross=cross, halves=not cross), activation, self.dtype, mode)


def _float32(linear: nn.Linear, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    # A scale of 1 must copy too: the parameters may change later.
    return linear.weight.detach().float() * scale, linear.bias.detach().float() * scale


def choose_path(model: LightGlueMatcher, kept: Derived[FastWeights], record: Recorder | None) -> ComputePath:
    """Return the path for a call with the model as it is now.

    Args:
        model: The matcher.
        kept: Its folded weights, where they are still right.
        record: Takes down hidden states and attentions, which the fast path does not have.
    """
    dtype = model.inference_dtype
    known = record is None and suits_fast_path(model, model.device, dtype)
    parameters = _plain_parameters(model) if known else None
    if parameters is None or (torch.is_grad_enabled() and any(p.requires_grad for p in parameters)):
        return ReferencePath(model, record)
    # Place and version tell nearly all changes; values are looked at, which takes longer, in a few, for
    # changes through ``.data``, which have no version.
    places = tuple((p.data_ptr(), -1 if p.is_inference() else p._version) for p in parameters)  # pyright: ignore[reportPrivateUsage]
    some = [layer.self_mlp.fc2.weight[0] for layer in _layers(model)]
    mode = model.compile_mode
    kernels = native.kernels(dtype) if model.device.type == "cpu" and mode is None else None
    settings = (dtype, mode, None if kernels is None else kernels.name, places)
    weights = kept.get(some, functools.partial(FastWeights, model, dtype, kernels), settings)
    return FastPath(weights, model.config.filter_threshold)


_PARTS = {nn.Linear, nn.LayerNorm, nn.ModuleList, TransformerLayer, Attention, MLP, MatchAssignment, TokenConfidence}


def _layers(model: LightGlueMatcher) -> Iterable[TransformerLayer]:
    return cast("Iterable[TransformerLayer]", model.transformer_layers)


def _plain_parameters(model: LightGlueMatcher) -> list[nn.Parameter] | None:
    """Return the parameters that the layers use, None if somebody has replaced a part or hooked into it."""
    found: list[nn.Parameter] = []
    for part in (model.transformer_layers, model.match_assignment_layers, model.token_confidence):
        for module in part.modules():
            if type(module) not in _PARTS or is_hooked(module):
                return None
            found += [p for p in vars(module)["_parameters"].values() if p is not None]
    return found
