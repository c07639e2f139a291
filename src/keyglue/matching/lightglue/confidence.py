"""Adaptive depth (section 3.3, equations 7 and 8): is a point's match final, and may the pair stop?"""

from __future__ import annotations

import math

from torch import Tensor, nn

from keyglue.matching.lightglue.configuration import LightGlueConfig


class TokenConfidence(nn.Module):
    """Probability that a token's match will not change in later layers."""

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        self.token = nn.Linear(config.descriptor_dim, 1)

    def logits(self, x: Tensor) -> Tensor:
        """Return (T,) logits; the descriptors are detached, so training it does not change them."""
        return self.token(x.detach()).squeeze(-1).float()

    def forward(self, x: Tensor) -> Tensor:
        """Return (T,) probabilities."""
        return self.logits(x).sigmoid()


def confidence_threshold(layer: int, num_layers: int) -> float:
    """Return the confidence that a token must reach after layer ``layer`` (from 0): 0.8 + 0.1 exp(-4 l / L)."""
    return 0.8 + 0.1 * math.exp(-4.0 * layer / num_layers)


def stops_early(unconfident: int, original_points: int, depth_confidence: float) -> bool:
    """Tell whether a pair stops: enough of its original points are confident or have been dropped."""
    return 1.0 - unconfident / original_points > depth_confidence
