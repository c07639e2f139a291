"""The state of a run on disk: everything needed to go on as if nothing had happened, in files under 16 MB.

A state is a folder that is renamed into place when it is complete, so what is there is always whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from keyglue.base.checkpoints import read_safetensors
from keyglue.base.errors import CheckpointError

SHARD_BYTES = 15_000_000
_NAME = re.compile(r"state-(\d{9})")


def write_state(folder: Path, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write a state and remove older ones.

    Args:
        folder: Folder of the run.
        step: Number of steps done.
        tensors: Everything in tensors.
        info: Everything else, as JSON.
    """
    target, unfinished = folder / f"state-{step:09d}", folder / ".state-unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for number, shard in enumerate(shards(tensors)):
        save_file(shard, str(unfinished / f"tensors-{number:03d}.safetensors"))
    (unfinished / "info.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    for path in (*unfinished.iterdir(), unfinished):
        _flush(path)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.replace(target)
    _flush(folder)
    for old in _states(folder):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the newest state of a run, or None where there is none.

    Raises:
        CheckpointError: A state is there but cannot be read.
    """
    states = _states(folder)
    if not states:
        return None
    tensors: dict[str, Tensor] = {}
    try:
        for path in sorted(states[-1].glob("*.safetensors")):
            tensors.update(read_safetensors(path)[0])
        return tensors, json.loads((states[-1] / "info.json").read_text(encoding="utf-8"))
    except Exception as error:  # damaged bytes can make the readers raise anything
        raise CheckpointError(f"the state in {states[-1]} cannot be read: {error}. Remove it to start anew.") from error


def shards(tensors: Mapping[str, Tensor], most: int = SHARD_BYTES) -> list[dict[str, Tensor]]:
    """Spread tensors over dictionaries of at most ``most`` bytes each (more where one tensor alone is larger)."""
    out: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if out[-1] and filled + size > most:
            out.append({})
            filled = 0
        # Copies, because safetensors refuses tensors that share memory or are not laid out plainly.
        out[-1][name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        filled += size
    return out


def pack(module: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return weights, their running mean, the optimiser's memory and the state of torch's generators as tensors."""
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    tensors.update({f"ema.{name}": value for name, value in ema.state_dict().items()})
    for index, values in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()})
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def unpack(tensors: Mapping[str, Tensor], module: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put back what ``pack`` took.

    Raises:
        CheckpointError: The state is of another model.
    """
    parts: dict[str, dict[str, Tensor]] = {"module": {}, "ema": {}, "optimizer": {}, "random": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    try:
        module.load_state_dict(parts["module"])
        ema.load_state_dict(parts["ema"])
    except RuntimeError as error:
        raise CheckpointError(f"the state belongs to another model: {error}") from error
    memory: dict[int, dict[str, Tensor]] = {}
    for name, value in parts["optimizer"].items():
        index, _, key = name.partition(".")
        memory.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": memory})
    torch.set_rng_state(parts["random"]["cpu"])
    if torch.cuda.is_available() and "cuda" in parts["random"]:
        torch.cuda.set_rng_state(parts["random"]["cuda"])


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("state-*") if _NAME.fullmatch(path.name))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
