"""Floating point types of training: bfloat16 where the processor has it, float32 elsewhere."""

from __future__ import annotations

import torch

from keyglue.base.devices import has_fast_bfloat16


def autocast(device: torch.device) -> torch.autocast:
    """Return the context in which a network runs in training; losses are computed outside it, in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))
