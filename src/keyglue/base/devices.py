"""Choosing the device and floating point type of a computation. Nothing here changes global state."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from keyglue.base.errors import InputError

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
# Values of ONEDNN_MAX_CPU_ISA below AVX512_CORE_BF16.
_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


def resolve_device(device: str | torch.device | int | None) -> torch.device:
    """Return the device asked for, or the best one there is: CUDA, Apple's MPS, then the CPU.

    Raises:
        InputError: The name is unknown or the device is not on this machine.
    """
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        chosen = torch.device("cpu" if device == -1 else device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"unknown device {device!r}. Use 'cpu', 'cuda', 'cuda:0' or 'mps'.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {str(device)!r} was asked for, but this torch finds no CUDA device. Use 'cpu'.")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps' was asked for, but this torch finds no Apple GPU. Use 'cpu'.")
    return chosen


def resolve_dtype(dtype: str | torch.dtype | None, default: torch.dtype = torch.float32) -> torch.dtype:
    """Return a floating point type from a torch type or its name ("float32", "torch.bfloat16", ...).

    Raises:
        InputError: It is not one of float16, bfloat16, float32, float64.
    """
    if dtype is None:
        return default
    found = dtype if isinstance(dtype, torch.dtype) else _DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None or found not in _DTYPES.values():
        raise InputError(f"unknown dtype {dtype!r}. Use one of {', '.join(_DTYPES)}.")
    return found


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether matrix products in bfloat16 are quicker than in float32.

    They are on CUDA from Ampere on and on CPUs with AMX or AVX512-BF16, unless ONEDNN_MAX_CPU_ISA keeps oneDNN from
    using them. Elsewhere bfloat16 is emulated, at a third of the speed of float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_BFLOAT16:
        return False
    # There is no public name for it yet.
    checks = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    return device.type == "cpu" and any(check is not None and check() for check in checks)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device without waiting for what the device has still to do.

    To a GPU it goes through memory that the operating system leaves in place, so that the copy runs beside computation.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)
