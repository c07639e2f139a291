"""Random weights with which something happens: real photographs get matches, pairs stop early, points are dropped."""

from __future__ import annotations

import torch

from keyglue.base.types import Features
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.lightglue.configuration import LightGlueConfig


def lively_model(seed: int = 0, *, detector: dict | None = None, **settings) -> LightGlueForKeypointMatching:
    """Return a model with random weights whose assignment starts from the descriptors' similarity.

    All matrices are random; the final projections are near the identity, so that similar descriptors match. ``enliven``
    then makes points go and pairs stop.
    """
    config = LightGlueConfig(keypoint_detector_config={"model_type": "superpoint", **(detector or {})}, **settings)
    generator = torch.Generator().manual_seed(seed)
    model = LightGlueForKeypointMatching(config).eval()
    width = config.descriptor_dim
    # Length of the descriptors inside the matcher; a similarity of 30 tells points apart.
    length = 1.0 if config.input_dim == width else width**0.5 / 4
    sharpness = (30 * width**0.5) ** 0.5 / length
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("keypoint_detector"):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("projector.weight"):
                parameter.copy_(2 * noise)
            elif "layer_norm" in name:
                parameter.copy_(("weight" in name) + 0.1 * noise)
            elif "input_projection.weight" in name:
                parameter.copy_(noise * parameter.shape[1] ** -0.5 * 4)
            elif "final_projection.weight" in name:
                parameter.copy_(sharpness * torch.eye(width) + 0.1 * noise)
            elif "fc2" in name:
                parameter.copy_(0.004 * length * noise)
            else:
                parameter.copy_(noise * max(parameter.shape[-1], 1) ** -0.5)
    return model


def enliven(model: LightGlueForKeypointMatching, pairs: list[tuple[Features, Features]]) -> None:
    """Set matchability and confidence heads so that, on pairs like these, some points go and pairs stop on the way."""
    layers = model.config.num_hidden_layers
    with torch.no_grad():
        for index, tokens in enumerate(model.tokens_per_layer(pairs)):
            _spread(model.match_assignment_layers[index].matchability, tokens.x, mean=1.0, spread=4.0)
            if index < layers - 1:
                _spread(model.token_confidence[index].token, tokens.x, mean=12 * index / layers - 1.5, spread=2.0)


def _spread(head: torch.nn.Linear, x: torch.Tensor, mean: float, spread: float) -> None:
    values = head(x)
    head.weight.mul_(spread / values.std())
    head.bias.copy_(mean - head(x).mean() + head.bias)
