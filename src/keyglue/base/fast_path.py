"""When a fast path may take the reference path's place: what detector and matcher both have to ask."""

from __future__ import annotations

import torch
from torch import nn

_TYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "forward")


def suits_fast_path(model: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether nothing but the answer is wanted of a call, on a device and in a type that fast paths know.

    More is wanted in training, under autocast, and while a call is traced or compiled.
    """
    return (
        dtype in _TYPES.get(device.type, ())
        and not model.training
        and not torch.is_autocast_enabled(device.type)
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # pyright: ignore[reportPrivateImportUsage]
    )


def is_hooked(module: nn.Module) -> bool:
    """Tell whether somebody listens to a module's calls or has replaced its ``forward``."""
    attributes = vars(module)
    return any(attributes.get(name) for name in _HOOKS)
