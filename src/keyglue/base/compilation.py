"""torch.compile where somebody asks for it: modes, the compiler that it needs, functions compiled once a process."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from keyglue.base.errors import InputError, MissingDependencyError

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
# Modes in which CUDA records graphs, one for each number of rows that it is given.
_WITH_GRAPHS = ("reduce-overhead", "max-autotune")
# What numbers of rows are rounded up to before a graph, so that pairs of all sizes share a few dozen of them.
_ROWS_OF_GRAPHS = 256


def resolve_compile(compile: bool | str | None, device: torch.device) -> str | None:
    """Return torch.compile's mode for what was asked for, None for no compiling.

    Args:
        compile: False or None for none, True for the default mode, or the name of a mode.
        device: Where the compiled code will run.

    Raises:
        InputError: The mode is unknown, or there is no C++ compiler for a CPU.
        MissingDependencyError: Triton is missing, which compiles for CUDA.
    """
    if compile is None or compile is False:
        return None
    mode = "default" if compile is True else compile
    if mode not in MODES:
        raise InputError(f"unknown compile mode {compile!r}. Use True, False or one of {', '.join(MODES)}.")
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise MissingDependencyError("triton", None, f"compile={compile!r} on CUDA")
    elif shutil.which(_cpp_compiler()) is None:
        raise InputError(
            f"compile={compile!r} needs a C++ compiler, and {_cpp_compiler()!r} is not on this machine. "
            "Install g++ (or name another compiler in the environment variable CXX), or leave compile out."
        )
    return mode


def _cpp_compiler() -> str:
    """Return the compiler that torch calls."""
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return os.environ.get("CXX", default)


@functools.lru_cache(maxsize=32)
def compiled(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """Return a function compiled by torch; all sizes are fixed except those that ``let_vary`` marks.

    Args:
        function: Takes tensors and constants. Its weights are arguments, so that all layers share the machine code.
        mode: One of ``MODES``.
    """
    with warnings.catch_warnings():
        # torch's own compiler uses what torch calls deprecated, when it is imported.
        warnings.filterwarnings("ignore", r".*torch\.jit\.", DeprecationWarning)
        importlib.import_module("torch._inductor.compile_fx")
    return torch.compile(function, mode=mode, dynamic=False)


def let_vary(tensors: Iterable[Tensor], dims: Sequence[int] = (0,)) -> None:
    """Tell the compiler that the size of tensors along some dimensions changes from call to call."""
    for tensor in tensors:
        for dim in dims:
            torch._dynamo.maybe_mark_dynamic(tensor, dim)  # pyright: ignore[reportPrivateUsage]


def call_by_rows(
    function: Callable[..., Tensor], mode: str, rows: Sequence[Tensor], constants: Sequence[Any]
) -> Tensor:
    """Return ``function(*rows, *constants)`` from compiled code that serves any number of rows.

    Args:
        function: Returns a tensor (T, ...) whose rows depend on the same rows of the arguments only.
        mode: One of ``MODES``. Those with CUDA graphs, which have fixed sizes, compute up to 255 rows more.
        rows: Tensors (T, ...).
        constants: Further arguments.
    """
    count = len(rows[0])
    if _is_recorded(mode, rows[0].device):
        rows = [_padded(part, -count % _ROWS_OF_GRAPHS) for part in rows]
    let_vary(rows)
    return compiled(function, mode)(*rows, *constants)[:count]


def _is_recorded(mode: str, device: torch.device) -> bool:
    return mode in _WITH_GRAPHS and device.type == "cuda"


def _padded(rows: Tensor, more: int) -> Tensor:
    """Return a tensor (T, ...) with ``more`` rows of zeros at the end."""
    return torch.cat([rows, rows.new_zeros(more, *rows.shape[1:])]) if more else rows
