"""One layer: a self-attention block, then a cross-attention block (section 3.2, equation 1).

Each block updates x to x + MLP([x | message]). Both images share the weights. The attributes carry the published
checkpoints' names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keyglue.matching.lightglue.attention import Attention
from keyglue.matching.lightglue.configuration import ACTIVATIONS, LightGlueConfig
from keyglue.matching.lightglue.ragged import Tokens
from keyglue.matching.lightglue.recording import Recorder


class MLP(nn.Module):
    """Linear(2D, 2D), LayerNorm, activation, Linear(2D, D)."""

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        width = 2 * config.descriptor_dim
        self.fc1 = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc2 = nn.Linear(width, config.descriptor_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (T, 2D) to (T, D)."""
        return self.fc2(self.activation(self.layer_norm(self.fc1(x))))


class TransformerLayer(nn.Module):
    """Self-attention block, then cross-attention block."""

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config)
        self.self_mlp = MLP(config)
        self.cross_attention = Attention(config)
        self.cross_mlp = MLP(config)

    def forward(self, tokens: Tokens, record: Recorder | None = None) -> Tensor:
        """Return the updated descriptors (T, D); ``record`` takes down what happens on the way."""
        x = self._block(tokens, tokens.x, record, cross=False)
        return self._block(tokens, x, record, cross=True)

    def _block(self, tokens: Tokens, x: Tensor, record: Recorder | None, *, cross: bool) -> Tensor:
        attention, mlp = (self.cross_attention, self.cross_mlp) if cross else (self.self_attention, self.self_mlp)
        message = attention(
            x,
            tokens.packing,
            rotation=None if cross else tokens.rotation,
            cross=cross,
            probabilities=None if record is None else record.probabilities,
        )
        joined = torch.cat([x, message], dim=-1)
        update = mlp(joined)
        out = x + update
        if record is not None:
            record.block(tokens, x, joined, update, out, cross=cross)
        return out
