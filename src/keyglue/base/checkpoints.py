"""Reading and writing state dicts: safetensors, in one file or several, and pickles of tensors; always strictly.

Pickles are opened with ``weights_only=True``, so that a file can hold tensors but can't run code.
"""

# safetensors has no type hints where it is compiled.

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from keyglue.base.config import CONFIG_NAME, read_json
from keyglue.base.errors import CheckpointError, InputError
from keyglue.base.files import atomic_path
from keyglue.base.hub import Source

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_NAME = "pytorch_model.bin"
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt")
CHECKPOINT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
# Under which key training code wraps the tensors of a model.
_WRAPPERS = ("model", "state_dict", "model_state_dict")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
StateDict = dict[str, Tensor]


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Read a flat dictionary of tensors from a safetensors file or a pickle; safetensors are memory-mapped.

    A pickle may wrap its tensors once, as in {"model": {...}} or {"state_dict": {...}}.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind, or holds something else than tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"there is no checkpoint file {file}.")
    suffix = file.suffix.lower()
    if suffix not in CHECKPOINT_SUFFIXES:
        raise CheckpointError(
            f"{file.name} is not a checkpoint that can be read; accepted are {', '.join(CHECKPOINT_SUFFIXES)}."
        )
    try:
        if suffix == ".safetensors":
            return read_safetensors(file)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch asks to report pickles of other versions than its own
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is damaged, or holds something else than tensors. Python objects in a checkpoint are never "
            "loaded, because they could run code."
        ) from error
    except Exception as error:  # damaged bytes can make the readers raise anything
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file} cannot be read as a checkpoint ({first_line}). It is damaged, or of another kind."
        ) from error
    return _unwrap(content, file)


def read_safetensors(path: Path, device: str = "cpu") -> tuple[StateDict, dict[str, str]]:
    """Read the tensors and the header's metadata of a safetensors file."""
    with safe_open(str(path), framework="pt", device=device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def _unwrap(content: Any, file: Path) -> StateDict:
    for _ in range(2):
        if isinstance(content, Mapping):
            found = cast("Mapping[Any, Any]", content)
            if found and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()):
                return dict(found)
            content = next((found[key] for key in _WRAPPERS if key in found), None)
    raise CheckpointError(f"{file} holds no dictionary of tensors, plain or under {', '.join(_WRAPPERS)}.")


def read_model(source: Source) -> tuple[StateDict, dict[str, Any]]:
    """Read the tensors of a model and the content of its config.json.

    Raises:
        CheckpointError: A file is missing or damaged.
        ConfigError: config.json is not a JSON object.
    """
    values = read_json(source.file(CONFIG_NAME))
    weights = source.find(WEIGHTS_NAME)
    if weights is None:
        index = source.find(INDEX_NAME)
        if index is not None:
            return _read_shards(source, index), values
        weights = source.find(PICKLE_NAME)
    if weights is None:
        raise CheckpointError(f"{source.place} has no {WEIGHTS_NAME} (nor {PICKLE_NAME}); is it a model folder?")
    return read_state_dict(weights), values


def _read_shards(source: Source, index: Path) -> StateDict:
    """Read tensors that are spread over several files; the index says which of them holds which."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no weight_map: it is damaged.")
    where = cast("dict[str, Any]", weight_map)
    tensors: StateDict = {}
    for name in sorted({str(shard) for shard in where.values()}):
        # A path could lead out of the model's folder.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r}, which is not a safetensors file of the same folder.")
        shard = read_state_dict(source.file(name))
        listed = {key for key, file in where.items() if file == name}
        if listed != set(shard):
            problems = _listing("missing", sorted(listed - set(shard))) + _listing(
                "unlisted", sorted(set(shard) - listed)
            )
            raise CheckpointError(f"{source.place}: {name} is not what {INDEX_NAME} says: {'; '.join(problems)}.")
        tensors.update(shard)
    return tensors


def write_state_dict(path: str | os.PathLike[str], state_dict: Mapping[str, Tensor]) -> None:
    """Write tensors to a file, atomically: safetensors or, by its suffix, a pickle that older code reads.

    Raises:
        InputError: The suffix is that of neither, or the folder does not exist.
        CheckpointError: The file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in CHECKPOINT_SUFFIXES:
        raise InputError(f"cannot write weights to {path}: its name must end in {', '.join(CHECKPOINT_SUFFIXES)}.")
    # Copies, so that tensors that share memory (or are part of a larger one) become files of their own size.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state_dict.items()}
    with atomic_path(path) as temporary:
        if suffix != ".safetensors":
            torch.save(tensors, temporary)
            return
        try:
            save_file(tensors, str(temporary), metadata={"format": "pt"})
        except SafetensorError as error:
            raise CheckpointError(f"{path} cannot be written: {error}") from error


def load_strictly(module: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Give a module the tensors of a checkpoint; every name and shape has to fit.

    The tensors become the module's own (memory-mapped files are not copied), so a module made on the meta device
    never allocates random weights first.

    Raises:
        CheckpointError: A tensor is missing, left over, not finite or of another shape or type; the first few of
            each kind are named.
    """
    wanted = module.state_dict()
    problems: list[str] = []
    problems += _listing("missing", sorted(set(wanted) - set(state_dict)))
    problems += _listing("not of this model", sorted(set(state_dict) - set(wanted)))
    shared = [name for name in wanted if name in state_dict]
    problems += _listing(
        "of another shape",
        [
            f"{name} {tuple(state_dict[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in shared
            if state_dict[name].shape != wanted[name].shape
        ],
    )
    floats = [name for name in shared if state_dict[name].dtype in _FLOATS]
    problems += _listing(
        "of a type that is not read", [f"{name} {state_dict[name].dtype}" for name in shared if name not in floats]
    )
    problems += _listing("not finite", [name for name in floats if not torch.isfinite(state_dict[name]).all()])
    if problems:
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}. "
            "Check that the checkpoint and the configuration belong together; `keyglue convert` reads other layouts."
        )
    laid_out = {name: _memory_format(tensor) for name, tensor in state_dict.items()}
    module.load_state_dict(laid_out, strict=True, assign=True)


def _memory_format(tensor: Tensor) -> Tensor:
    """Return convolution weights with channels last, in which convolutions are quicker; others as they are."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _listing(what: str, names: Iterable[str], most: int = 4) -> list[str]:
    found = list(names)
    if not found:
        return []
    more = f" and {len(found) - most} more" if len(found) > most else ""
    noun = "tensor" if len(found) == 1 else "tensors"
    return [f"{len(found)} {noun} {what}: {', '.join(found[:most])}{more}"]
