"""The compiled kernels of the package keyglue-native, where it is installed and the processor can run them."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch

from keyglue.base.errors import InputError

# What KEYGLUE_ISA may be, and which kernels it then allows, quickest first.
_ALLOWED = {
    "": ("amx", "avx512", "avx2"),
    "amx": ("amx", "avx512", "avx2"),
    "avx512": ("avx512", "avx2"),
    "avx2": ("avx2",),
    "amx-emulated": ("amx-emulated", "avx512", "avx2"),
    "off": (),
}


def kernels(dtype: torch.dtype) -> Any | None:
    """Return the quickest kernels that compute in ``dtype`` on this processor, None if there are none.

    Without the package keyglue-native there are none. The environment variable KEYGLUE_ISA, which is looked at in every
    call, limits the choice: "avx2" and "avx512" to these and older instruction sets, "off" to none; "amx-emulated"
    computes in bfloat16 as AMX would, slowly, for tests.

    Args:
        dtype: float32, or bfloat16, for which there are only kernels with AMX.

    Raises:
        InputError: KEYGLUE_ISA has another value.
    """
    wanted = os.environ.get("KEYGLUE_ISA", "")
    if wanted not in _ALLOWED:
        known = ", ".join(repr(name) for name in _ALLOWED if name)
        raise InputError(f"KEYGLUE_ISA is {wanted!r}; it may be one of {known}, or unset for the best there is.")
    return _quickest(_ALLOWED[wanted], dtype)


@functools.cache
def _quickest(names: tuple[str, ...], dtype: torch.dtype) -> Any | None:
    if dtype not in (torch.float32, torch.bfloat16) or not names:
        return None
    try:
        module = importlib.import_module("keyglue_native")
    except ImportError:
        return None
    supported = module.supported()
    for name in names:
        if name in supported:
            found = module.kernels(name)
            if found.bfloat16 == (dtype == torch.bfloat16):
                return found
    return None
