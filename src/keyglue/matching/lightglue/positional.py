"""Rotary positional encoding (section 3.2, equation 3): descriptors are turned by angles that depend on position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keyglue.matching.lightglue.configuration import LightGlueConfig


class PositionalEncoder(nn.Module):
    """Learned Fourier frequencies that map a position to one angle for every two dimensions of a head."""

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        self.projector = nn.Linear(4 if config.add_scale_ori else 2, config.head_dim // 2, bias=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine (T, head_dim / 2), float32, for positions (T, 2), or (T, 4) with scale and angle."""
        angles = self.projector(positions.to(self.projector.weight.dtype)).float()
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of neighbouring dimensions: (x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin).

    Args:
        x: (T, H, head_dim).
        rotation: Cosine and sine, (T, head_dim / 2) each.
    """
    # A product of complex numbers: in training a quarter of the time of four real ones.
    real = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2)).contiguous()
    turned = torch.view_as_complex(real) * torch.complex(*rotation)[:, None]
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
