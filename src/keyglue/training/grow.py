"""A larger matcher that begins as a trained smaller one: wider, with more layers, and with the same matches.

What is new reads at random and is not listened to yet, or is listened to and adds nothing yet, so each of its weights
has a gradient within four steps. The idea is that of Net2Net (Chen, Goodfellow, Shlens 2016).

Shapes: D width of the small matcher, D' = r D of the large one, I of the detector's descriptors.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from keyglue.base.errors import ConfigError
from keyglue.matching.lightglue.assignment import MatchAssignment
from keyglue.matching.lightglue.attention import Attention
from keyglue.matching.lightglue.confidence import TokenConfidence
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.lightglue.layer import MLP, TransformerLayer
from keyglue.matching.lightglue.lightglue import LightGlueMatcher
from keyglue.training.initialise import never_confident, open_projection, start_random

# New rows of a map whose products with itself are taken would never leave zero: their size, as a share of that of the
# old rows. The products change by its square.
_STIR = 0.1
# How unequally copies of a unit are listened to, so that they become different units.
_UNEQUAL = 0.5


def grow(matcher: LightGlueMatcher, config: LightGlueConfig, generator: torch.Generator) -> LightGlueMatcher:
    """Return a matcher of another size that does what a smaller one does.

    Args:
        matcher: The trained one; it stays as it is.
        config: Gives width and number of layers; all else stays the small one's.
        generator: Source of randomness.

    Returns:
        The large one, with an input projection: ``close_projection`` makes it plain.

    Raises:
        ConfigError: The matcher is not smaller, or its width does not divide the other.
    """
    old = matcher.config
    ratio, rest = divmod(config.descriptor_dim, old.descriptor_dim)
    if rest or ratio < 1 or config.num_hidden_layers < old.num_hidden_layers:
        raise ConfigError(
            f"a matcher of {old.num_hidden_layers} layers, {old.descriptor_dim} wide, cannot become one of "
            f"{config.num_hidden_layers} layers, {config.descriptor_dim} wide: a matcher grows to a multiple of its "
            "width and to more layers. Give no size to train it as it is."
        )
    if old.key_value_heads != old.num_attention_heads:
        raise ConfigError("a matcher whose heads share keys and values cannot be grown.")
    if not old.attention_bias:
        raise ConfigError("a matcher whose attention has no biases cannot be grown.")
    matcher = copy.deepcopy(matcher)
    open_projection(matcher)
    size = {"descriptor_dim": config.descriptor_dim, "num_hidden_layers": config.num_hidden_layers}
    large = LightGlueMatcher(old.replace(**size))
    start_random(large, generator)
    with torch.no_grad():
        _grow_input(matcher, large)
        frequencies = matcher.positional_encoder.projector.weight
        large.positional_encoder.projector.weight[: len(frequencies)] = frequencies
        never_confident(large)
        done = -1
        for number in range(config.num_hidden_layers):
            source = number * old.num_hidden_layers // config.num_hidden_layers
            layer = cast("TransformerLayer", large.transformer_layers[number])
            _grow_layer(cast("TransformerLayer", matcher.transformer_layers[source]), layer, generator)
            if source == done:
                for mlp in (layer.self_mlp, layer.cross_mlp):
                    nn.init.zeros_(mlp.fc2.weight)
                    nn.init.zeros_(mlp.fc2.bias)
            _grow_assignment(
                cast("MatchAssignment", matcher.match_assignment_layers[source]),
                cast("MatchAssignment", large.match_assignment_layers[number]),
            )
            if source < len(matcher.token_confidence) and number < len(large.token_confidence):
                _widen(
                    cast("TokenConfidence", matcher.token_confidence[source]).token,
                    cast("TokenConfidence", large.token_confidence[number]).token,
                )
            done = source
    return large


def _grow_input(small: LightGlueMatcher, large: LightGlueMatcher) -> None:
    """Give the large matcher a state that begins with the small one's and goes on with what that leaves out."""
    projection = cast("nn.Linear", small.input_projection)
    state = projection.weight.double()
    _, sizes, directions = torch.linalg.svd(state, full_matrices=True)
    others = directions[len(sizes) :] * sizes.log().mean().exp()
    whole = torch.cat([state, others])[: large.config.descriptor_dim]
    wide = cast("nn.Linear", large.input_projection)
    nn.init.zeros_(wide.weight)[: len(whole)] = whole
    wide.bias[: len(state)] = projection.bias


def _grow_layer(small: TransformerLayer, large: TransformerLayer, generator: torch.Generator) -> None:
    for name in ("self", "cross"):
        _grow_attention(getattr(small, f"{name}_attention"), getattr(large, f"{name}_attention"))
        _grow_mlp(getattr(small, f"{name}_mlp"), getattr(large, f"{name}_mlp"), generator)


def _grow_attention(small: Attention, large: Attention) -> None:
    """Make each head wider; what is new in its queries is multiplied by zeros in its keys, and in its values unread."""
    heads = len(small.q_proj.weight) // small.head_dim
    starts = large.head_dim * torch.arange(heads)
    rows = (starts[:, None] + torch.arange(small.head_dim)).flatten()
    # Similarities are divided by the root of the width.
    factor = (large.head_dim / small.head_dim) ** 0.25
    # Where queries and keys are one map, new rows of zeros would stay zeros.
    one = torch.equal(small.q_proj.weight, small.k_proj.weight)
    large.q_proj.weight *= _STIR if one else 1.0
    large.k_proj.weight.copy_(large.q_proj.weight) if one else large.k_proj.weight.zero_()
    for name, scale in (("q_proj", factor), ("k_proj", factor), ("v_proj", 1.0)):
        _widen(getattr(small, name), getattr(large, name), rows, scale=scale)
    width = len(small.o_proj.weight)
    large.o_proj.weight[:width] = 0
    large.o_proj.weight[:width, rows] = small.o_proj.weight
    large.o_proj.bias[:width] = small.o_proj.bias


def _grow_mlp(small: MLP, large: MLP, generator: torch.Generator) -> None:
    """Have each hidden unit several times, so that the layer norm sees what it saw, each listened to in another way."""
    width, wide = len(small.fc2.weight), len(large.fc2.weight)
    copies = wide // width
    of_descriptor, of_message = small.fc1.weight.chunk(2, dim=1)
    large.fc1.weight.zero_()
    large.fc1.weight[:, :width] = of_descriptor.repeat(copies, 1)
    large.fc1.weight[:, wide : wide + width] = of_message.repeat(copies, 1)
    large.fc1.bias.copy_(small.fc1.bias.repeat(copies))
    large.layer_norm.weight.copy_(small.layer_norm.weight.repeat(copies))
    large.layer_norm.bias.copy_(small.layer_norm.bias.repeat(copies))
    unequal = _UNEQUAL * (2 * torch.rand((copies, *small.fc2.weight.shape), generator=generator) - 1)
    shares = (1 + unequal - unequal.mean(dim=0)) / copies
    large.fc2.weight[:width] = (shares * small.fc2.weight).transpose(0, 1).flatten(1)
    large.fc2.bias[:width] = small.fc2.bias


def _grow_assignment(small: MatchAssignment, large: MatchAssignment) -> None:
    large.final_projection.weight *= _STIR
    rows = torch.arange(len(small.final_projection.weight))
    _widen(small.final_projection, large.final_projection, rows, scale=small.scale / large.scale)
    _widen(small.matchability, large.matchability)


def _widen(small: nn.Linear, large: nn.Linear, rows: Tensor | None = None, *, scale: float = 1.0) -> None:
    """Give the wanted rows of a map (all, unless told) the small one's, which do not read what is new."""
    rows = torch.arange(len(small.weight)) if rows is None else rows
    large.weight[rows] = 0
    large.weight[rows, : small.in_features] = scale * small.weight
    large.bias[rows] = scale * small.bias
