"""Random weights of a matcher to start training from, and what makes a trained one plain again."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from keyglue.matching.lightglue.assignment import MatchAssignment
from keyglue.matching.lightglue.confidence import TokenConfidence
from keyglue.matching.lightglue.layer import TransformerLayer
from keyglue.matching.lightglue.lightglue import LightGlueMatcher

# Descriptors of unit length are scaled by this inside the matcher, so that its layers see values of about one.
DESCRIPTOR_SCALE = 16.0
_FREQUENCIES = (0.5, 20.0)
_MATCHABLE = 3.0


def start_random(matcher: LightGlueMatcher, generator: torch.Generator) -> None:
    """Draw random weights that keep the size of what they are applied to, and frequencies of all sizes."""
    with torch.no_grad():
        for module in matcher.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=module.in_features**-0.5, generator=generator)
                nn.init.zeros_(module.bias) if module.bias is not None else None  # pyright: ignore
        _spread_frequencies(matcher.positional_encoder.projector.weight, generator)
    never_confident(matcher)


def start_as_nearest_neighbours(
    matcher: LightGlueMatcher, descriptors: Tensor, generator: torch.Generator, temperature: float = 20.0
) -> None:
    """Draw random weights with which the matcher is a double softmax of the descriptors' similarity.

    Every block adds nothing yet, and every layer's assignment is that of the descriptors, so the matches at the start
    are the mutual nearest neighbours.

    Args:
        matcher: Takes the weights. It is to be given descriptors of length ``DESCRIPTOR_SCALE`` unless it has an
            input projection, which then scales them.
        descriptors: (N, D) descriptors of unit length, of which an input projection keeps the principal directions.
        generator: Source of randomness.
        temperature: What the cosine of two descriptors is multiplied by.
    """
    start_random(matcher, generator)
    width = matcher.config.descriptor_dim
    with torch.no_grad():
        if isinstance(matcher.input_projection, nn.Linear):
            values = descriptors.double()
            _, vectors = torch.linalg.eigh(values.mT @ values)
            principal = vectors[:, -width:].mT.to(matcher.input_projection.weight)
            rows = min(width, len(principal))
            matcher.input_projection.weight.zero_()
            matcher.input_projection.weight[:rows] = DESCRIPTOR_SCALE * principal[:rows]
        for layer in cast("list[TransformerLayer]", list(matcher.transformer_layers)):
            for mlp in (layer.self_mlp, layer.cross_mlp):
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


def fold_scale(matcher: LightGlueMatcher, scale: float) -> None:
    """Change the weights so that the matcher does with descriptors d what it did with scale * d.

    Everything that reads the descriptors is multiplied, what is added to them divided. A matcher with an input
    projection has nothing else to change.
    """
    with torch.no_grad():
        if isinstance(matcher.input_projection, nn.Linear):
            matcher.input_projection.weight *= scale
            return
        for layer in cast("list[TransformerLayer]", list(matcher.transformer_layers)):
            for attention, mlp in (
                (layer.self_attention, layer.self_mlp),
                (layer.cross_attention, layer.cross_mlp),
            ):
                # Each once: in training queries and keys of cross-attention may be one module.
                for projection in {attention.q_proj, attention.k_proj, attention.v_proj}:
                    projection.weight.mul_(scale)
                mlp.fc1.weight[:, : matcher.config.descriptor_dim] *= scale
                mlp.fc2.weight.div_(scale)
                mlp.fc2.bias.div_(scale)
        for head in cast("list[MatchAssignment]", list(matcher.match_assignment_layers)):
            head.final_projection.weight *= scale
            head.matchability.weight *= scale
        for confidence in cast("list[TokenConfidence]", list(matcher.token_confidence)):
            confidence.token.weight *= scale


def _spread_frequencies(weight: Tensor, generator: torch.Generator) -> None:
    """Give the positional encoding frequencies from coarse to fine, evenly on a logarithmic scale, all around."""
    low, high = (math.log(frequency) for frequency in _FREQUENCIES)
    size = torch.exp(torch.linspace(low, high, len(weight)))
    direction = torch.randn(weight.shape, generator=generator)
    weight.copy_(size[:, None] * direction / direction.norm(dim=1, keepdim=True))
