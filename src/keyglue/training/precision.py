"""Floating point types of training: bfloat16 where the processor has it, float32 elsewhere."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether matrix products in bfloat16 are quicker than in float32: on CUDA from Ampere on, on CPUs with AMX.

    Elsewhere bfloat16 is emulated, at a third of the speed of float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # There is no public name for it yet.
    checks = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    return device.type == "cpu" and any(check is not None and check() for check in checks)


def autocast(device: torch.device) -> torch.autocast:
    """Return the context in which a network runs in training; losses are computed outside it, in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))
