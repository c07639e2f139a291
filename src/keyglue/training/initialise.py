"""Random weights of a matcher to start training from, and what makes a trained one plain again."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from keyglue.matching.lightglue.assignment import MatchAssignment
from keyglue.matching.lightglue.confidence import TokenConfidence
from keyglue.matching.lightglue.layer import MLP, TransformerLayer
from keyglue.matching.lightglue.lightglue import LightGlueMatcher

# Descriptors of unit length are scaled by this inside the matcher, so that its layers see values of about one.
DESCRIPTOR_SCALE = 16.0
_FREQUENCIES = (0.5, 20.0)
_MATCHABLE = 3.0
# How much a direction of descriptors counts at least, against the mean over all, when a projection is chosen.
_LEAST_READ = 0.1


def start_random(matcher: LightGlueMatcher, generator: torch.Generator) -> None:
    """Draw random weights that keep the size of what they are applied to, and frequencies of all sizes.

    A matcher that takes descriptors as they are gets an input projection: see ``close_projection``.
    """
    with torch.no_grad():
        for module in matcher.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=module.in_features**-0.5, generator=generator)
                nn.init.zeros_(module.bias) if module.bias is not None else None  # pyright: ignore
        if isinstance(matcher.input_projection, nn.Linear):
            matcher.input_projection.weight *= DESCRIPTOR_SCALE
        else:
            _set_projection(matcher, DESCRIPTOR_SCALE * torch.eye(matcher.config.descriptor_dim))
        _spread_frequencies(matcher.positional_encoder.projector.weight, generator)
    never_confident(matcher)


def start_as_nearest_neighbours(
    matcher: LightGlueMatcher, descriptors: Tensor, generator: torch.Generator, temperature: float = 20.0
) -> None:
    """Draw random weights with which the matcher is a double softmax of the descriptors' similarity.

    Every block adds nothing yet, and every layer's assignment is that of the descriptors, so the matches at the start
    are the mutual nearest neighbours.

    Args:
        matcher: Takes the weights. It has an input projection, which keeps the principal directions.
        descriptors: (N, I) descriptors of unit length.
        generator: Source of randomness.
        temperature: What the cosine of two descriptors is multiplied by.
    """
    start_random(matcher, generator)
    width = matcher.config.descriptor_dim
    with torch.no_grad():
        values = descriptors.double()
        _, vectors = torch.linalg.eigh(values.mT @ values)
        projection = cast("nn.Linear", matcher.input_projection)
        principal = vectors[:, -width:].mT.to(projection.weight)
        projection.weight.zero_()
        projection.weight[: len(principal)] = DESCRIPTOR_SCALE * principal
        for mlp in _mlps(matcher):
            nn.init.zeros_(mlp.fc2.weight)
        # S = (c x0) . (c x1) / sqrt(D) with |x| = DESCRIPTOR_SCALE.
        factor = math.sqrt(temperature * math.sqrt(width)) / DESCRIPTOR_SCALE
        for head in cast("list[MatchAssignment]", list(matcher.match_assignment_layers)):
            head.final_projection.weight.copy_(factor * torch.eye(width))
            nn.init.zeros_(head.matchability.weight)
            nn.init.constant_(head.matchability.bias, _MATCHABLE)


def never_confident(matcher: LightGlueMatcher, layers: int | None = None) -> None:
    """Set the confidence heads of the first layers, or of all, so that no pair stops and no point is dropped there."""
    with torch.no_grad():
        for head in cast("list[TokenConfidence]", list(matcher.token_confidence)[:layers]):
            nn.init.zeros_(head.token.weight)
            nn.init.constant_(head.token.bias, -10.0)


def share_cross_projections(matcher: LightGlueMatcher, *, new: bool) -> None:
    """Make queries and keys of each cross-attention one linear map, as in the paper (section 3.1).

    All published weights have it so, the original layout stores one map for both, and one similarity then serves both
    directions.

    Args:
        matcher: The matcher; widths of keys and queries that differ (fewer heads for keys) are left alone.
        new: Whether the weights are new; in trained ones only maps that are equal become one.
    """
    for layer in cast("list[TransformerLayer]", list(matcher.transformer_layers)):
        attention = layer.cross_attention
        query, key = attention.q_proj.state_dict(), attention.k_proj.state_dict()
        if query["weight"].shape != key["weight"].shape:
            continue
        if new or all(torch.equal(query[name], key[name]) for name in query):
            attention.k_proj = attention.q_proj


def open_projection(matcher: LightGlueMatcher) -> None:
    """Give a matcher that takes descriptors as they are an input projection for as long as it is trained.

    It is the one with which the MLPs multiply the descriptors, in all directions, by as much as the messages, so that
    all layers see values of about one; the other weights change so that the matches stay what they are.
    """
    if isinstance(matcher.input_projection, nn.Linear):
        return
    width = matcher.config.descriptor_dim
    readers = torch.cat([mlp.fc1.weight.detach().double() for mlp in _mlps(matcher)])
    of_descriptor, of_message = readers.chunk(2, dim=1)
    sizes, directions = torch.linalg.eigh(of_descriptor.mT @ of_descriptor)
    # Directions that are hardly read would have to be divided by next to nothing.
    sizes = sizes.clamp(min=max(_LEAST_READ * float(sizes.mean()), torch.finfo(torch.float32).tiny))
    projection = directions * (sizes * width / of_message.square().sum()).sqrt() @ directions.mT
    _fold(matcher, torch.linalg.inv(projection), torch.zeros(width).double())
    _set_projection(matcher, projection)


def close_projection(matcher: LightGlueMatcher) -> None:
    """Make a matcher plain whose input projection was there for training alone, and fold it into the weights."""
    linear = matcher.input_projection
    if isinstance(linear, nn.Linear) and matcher.config.input_dim == matcher.config.descriptor_dim:
        matcher.input_projection = nn.Identity()
        _fold(matcher, linear.weight.detach().double(), linear.bias.detach().double())


def _fold(matcher: LightGlueMatcher, linear: Tensor, shift: Tensor) -> None:
    """Change the weights so that the layers do with descriptors d (D,) what they did with linear d + shift."""
    inverse = torch.linalg.inv(linear)

    def read(module: nn.Module) -> None:
        reader = cast("nn.Linear", module)
        # The descriptors are the first that it reads; the MLPs read the message too.
        weight = reader.weight[:, : len(linear)].double()
        if reader.bias is not None:  # pyright: ignore
            reader.bias.add_(weight @ shift)
        reader.weight[:, : len(linear)] = (weight @ linear).to(reader.weight)

    with torch.no_grad():
        for layer in cast("list[TransformerLayer]", list(matcher.transformer_layers)):
            for attention in (layer.self_attention, layer.cross_attention):
                # Each once: in training queries and keys of cross-attention may be one module.
                for projection in {attention.q_proj, attention.k_proj, attention.v_proj}:
                    read(projection)
        for mlp in _mlps(matcher):
            read(mlp.fc1)
            for written in (mlp.fc2.weight, mlp.fc2.bias):
                written.copy_(inverse @ written.double())
        for head in cast("list[MatchAssignment]", list(matcher.match_assignment_layers)):
            read(head.final_projection)
            read(head.matchability)
        for confidence in cast("list[TokenConfidence]", list(matcher.token_confidence)):
            read(confidence.token)


def _set_projection(matcher: LightGlueMatcher, weight: Tensor) -> None:
    projection = nn.Linear(weight.shape[1], weight.shape[0]).to(next(matcher.parameters()))
    with torch.no_grad():
        projection.weight.copy_(weight)
        projection.bias.zero_()
    matcher.input_projection = projection


def _mlps(matcher: LightGlueMatcher) -> list[MLP]:
    layers = cast("list[TransformerLayer]", list(matcher.transformer_layers))
    return [mlp for layer in layers for mlp in (layer.self_mlp, layer.cross_mlp)]


def _spread_frequencies(weight: Tensor, generator: torch.Generator) -> None:
    """Give the positional encoding frequencies from coarse to fine, evenly on a logarithmic scale, all around."""
    low, high = (math.log(frequency) for frequency in _FREQUENCIES)
    size = torch.exp(torch.linspace(low, high, len(weight)))
    direction = torch.randn(weight.shape, generator=generator)
    weight.copy_(size[:, None] * direction / direction.norm(dim=1, keepdim=True))
