"""Damaged, foreign and malicious checkpoints: an error of keyglue's own that says what is wrong."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from keyglue.base import checkpoints
from keyglue.base.checkpoints import INDEX_NAME, WEIGHTS_NAME, read_state_dict, write_state_dict
from keyglue.base.errors import CheckpointError, ConfigError, InputError, KeyglueError
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.lightglue.lightglue import LightGlueMatcher

MakeModel = Callable[..., LightGlueForKeypointMatching]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model(tiny_model: MakeModel) -> LightGlueForKeypointMatching:
    return tiny_model(seed=5)


@pytest.fixture
def folder(model: LightGlueForKeypointMatching, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path) -> LightGlueForKeypointMatching:
    return LightGlueForKeypointMatching.from_pretrained(folder)


def assert_same(loaded: torch.nn.Module, model: torch.nn.Module) -> None:
    found, expected = loaded.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- files that are no state dicts


def code_that_runs(path: Path) -> bytes:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(path),))

    return pickle.dumps({"model": Attack()})


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.pt", "model.bin", "model.tar", "model.ckpt"])
@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 8, b"garbage, garbage", b"\x80\x04N.", b"PK\x03\x04" + b"\x00" * 90]
)
def test_garbage(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_state_dict(tmp_path / name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), head=st.sampled_from([b"", b"\x80\x02}", b"\x80\x04\x95", b"PK\x03\x04"]))
@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_any_bytes_are_an_error_of_ours(name: str, content: bytes, head: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(head + content)
    with pytest.raises(CheckpointError):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_truncated(model: LightGlueForKeypointMatching, suffix: str, share: float, tmp_path: Path) -> None:
    file = tmp_path / f"model.{suffix}"
    write_state_dict(file, model.state_dict())
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="damaged"):
        read_state_dict(file)


def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(code_that_runs(tmp_path / "owned"))
    with pytest.raises(CheckpointError, match="could run code") as caught:
        read_state_dict(tmp_path / "model.pth")
    assert "weights_only" not in str(caught.value)  # no advice to switch the protection off
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        LightGlueMatcher.from_pretrained(tmp_path / "module.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        5,
        {"a": 1},
        {"model": {}},
        {"model": {"state_dict": {"model": {"a": torch.ones(1)}}}},
        {1: torch.ones(1)},
    ],
)
def test_a_pickle_of_something_else(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="no dictionary of tensors"):
        read_state_dict(tmp_path / "model.pth")


def test_missing_files_and_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint file"):
        read_state_dict(tmp_path / "model.pth")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(CheckpointError, match=r"accepted are \.safetensors, \.pth"):
        read_state_dict(tmp_path / "model.onnx")
    with pytest.raises(InputError, match="must end in"):
        write_state_dict(tmp_path / "model.onnx", {})


@pytest.mark.parametrize("name", ["x.safetensors", "X.SAFETENSORS", "x.pth", "x.ckpt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_is_read(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    large = torch.arange(12, dtype=dtype).reshape(3, 4)
    tensors = {"a": large, "shared": large, "part": large[1], "turned": large.T, "grad": torch.nn.Parameter(large)}
    write_state_dict(tmp_path / name, tensors)
    found = read_state_dict(tmp_path / name)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) and found[key].dtype == dtype for key in tensors)
    assert not any(value.requires_grad for value in found.values())


# --- models


def test_a_folder_without_weights_or_without_config(folder: Path) -> None:
    (folder / WEIGHTS_NAME).rename(folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"model has no model\.safetensors"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"model has no config\.json"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "cannot be read as JSON"),
        ("[]", "must hold a JSON object"),
        ('{"model_type": "resnet"}', "'resnet'"),
        ('{"descriptor_dim": 7}', "num_attention_heads"),
        ('{"descriptor_dim": 32, "hidden_size": 64}', "hidden_size"),
        ('{"keypoint_detector_config": {"model_type": "disk", "trust_remote_code": true}}', "disk"),
    ],
)
def test_a_bad_config(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load(folder)


def test_a_config_of_another_size_names_the_shapes(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "descriptor_dim": 64}))
    with pytest.raises(CheckpointError, match=r"input_projection\.weight \(32, 24\) instead of \(64, 24\)"):
        load(folder)
    (folder / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 2}))
    with pytest.raises(CheckpointError, match="not of this model"):
        load(folder)


NAME = "transformer_layers.1.self_mlp.fc1.bias"
CHANGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "missing": (lambda t: t.pop(NAME), rf"1 tensor missing: {NAME}"),
    "left over": (lambda t: t.update({"head.weight": torch.ones(3)}), r"1 tensor not of this model: head\.weight"),
    "shape": (lambda t: t.update({NAME: torch.ones(65)}), rf"{NAME} \(65,\) instead of \(64,\)"),
    "nan": (lambda t: t[NAME].__setitem__(3, torch.nan), f"not finite: {NAME}"),
    "infinite": (lambda t: t[NAME].__setitem__(3, -torch.inf), f"not finite: {NAME}"),
    "integer": (lambda t: t.update({NAME: torch.ones(64, dtype=torch.int8)}), rf"{NAME} torch\.int8"),
    "float8": (lambda t: t.update({NAME: torch.ones(64).to(torch.float8_e4m3fn)}), r"float8_e4m3fn"),
    "complex": (lambda t: t.update({NAME: torch.ones(64, dtype=torch.complex64)}), r"complex64"),
    "detector gone": (lambda t: [t.pop(n) for n in list(t) if n.startswith("keypoint_detector")], "24 tensors missing"),
    "empty": (lambda t: t.clear(), "tensors missing"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_do_not_fit_are_named(folder: Path, change: str) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    apply, message = CHANGES[change]
    apply(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_foreign_model_is_refused(folder: Path) -> None:
    resnet = {
        "conv1.weight": torch.ones(64, 3, 7, 7),
        "bn1.num_batches_tracked": torch.tensor(3),
        "fc.bias": torch.ones(9),
    }
    save_file(resnet, folder / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match=r"not of this model: bn1\.num_batches_tracked, conv1\.weight, fc\.bias"):
        load(folder)
    torch.save({"state_dict": resnet}, folder / "resnet.pth")
    with pytest.raises(CheckpointError, match="not a LightGlue checkpoint"):
        LightGlueMatcher.from_pretrained(folder / "resnet.pth")


def test_a_pickle_in_a_folder_loads(folder: Path, model: LightGlueForKeypointMatching) -> None:
    torch.save(load_file(folder / WEIGHTS_NAME), folder / "pytorch_model.bin")
    (folder / WEIGHTS_NAME).unlink()
    assert_same(load(folder), model)


# --- several files


def split(folder: Path) -> dict[str, str]:
    """Spread the weights over two files and return the index's map."""
    tensors = load_file(folder / WEIGHTS_NAME)
    (folder / WEIGHTS_NAME).unlink()
    files = {name: f"model-0000{1 + (index % 3 == 0)}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: t for name, t in tensors.items() if files[name] == file}, folder / file)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return files


def test_shards_load(folder: Path, model: LightGlueForKeypointMatching) -> None:
    split(folder)
    assert_same(load(folder), model)


def test_damaged_shards(folder: Path) -> None:
    files = split(folder)
    name = next(iter(files))
    index = folder / INDEX_NAME
    index.write_text(json.dumps({"weight_map": {key: file for key, file in files.items() if key != name}}))
    with pytest.raises(CheckpointError, match=f"1 tensor unlisted: {name}"):
        load(folder)
    index.write_text(json.dumps({"weight_map": {**files, "extra": files[name]}}))
    with pytest.raises(CheckpointError, match="1 tensor missing: extra"):
        load(folder)
    for outside in ("../model.safetensors", "/etc/passwd", "shard.bin", 5):
        index.write_text(json.dumps({"weight_map": {**files, "extra": outside}}))
        with pytest.raises(CheckpointError, match="same folder"):
            load(folder)
    for content in ("{}", '{"weight_map": []}'):
        index.write_text(content)
        with pytest.raises(CheckpointError, match="weight_map"):
            load(folder)
    index.write_text(json.dumps({"weight_map": files}))
    (folder / files[name]).unlink()
    with pytest.raises(CheckpointError, match=f"has no {files[name]}"):
        load(folder)
    index.write_text("[")
    with pytest.raises(ConfigError, match="JSON"):
        load(folder)


# --- saving


@pytest.mark.parametrize("where", ["weights", "config"])
def test_a_save_that_fails_leaves_the_old_model(
    folder: Path, tiny_model: MakeModel, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    other = tiny_model(seed=6, filter_threshold=0.5)
    if where == "weights":

        def fail(tensors: Tensors, path: str, metadata: object = None) -> None:
            del tensors, metadata
            Path(path).write_bytes(b"half")
            raise OSError("No space left on device")

        monkeypatch.setattr(checkpoints, "save_file", fail)
        with pytest.raises(OSError, match="No space"):
            other.save_pretrained(folder)
    else:
        other.config = other.config.replace(extra={"foreign": object()})
        with pytest.raises(KeyglueError, match="JSON"):
            other.save_pretrained(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_saving_over_the_loaded_files_keeps_both_right(folder: Path, model: LightGlueForKeypointMatching) -> None:
    loaded = load(folder)
    with torch.no_grad():
        loaded.token_confidence[0].token.bias.add_(1)
    loaded.save_pretrained(folder)
    again = load(folder)
    assert_same(again, loaded)
    assert not torch.equal(again.token_confidence[0].token.bias, model.token_confidence[0].token.bias)
