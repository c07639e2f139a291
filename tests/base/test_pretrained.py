"""Loading and saving models: where from, as what type, with which settings."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from keyglue.base.checkpoints import WEIGHTS_NAME
from keyglue.base.errors import CheckpointError, ConfigError, InputError
from keyglue.keypoints.superpoint import SuperPointConfig, SuperPointForKeypointDetection
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.lightglue.lightglue import LightGlueMatcher

MakeModel = Callable[..., LightGlueForKeypointMatching]


@pytest.fixture(scope="module")
def model(tiny_model: MakeModel) -> LightGlueForKeypointMatching:
    return tiny_model(seed=7)


@pytest.fixture
def folder(model: LightGlueForKeypointMatching, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_bundled_model_needs_no_name() -> None:
    by_default, by_name = (LightGlueForKeypointMatching.from_pretrained(name) for name in (None, "keyglue-small"))
    assert by_default.name_or_path == by_name.name_or_path == "keyglue-small"
    assert by_default.dtype == torch.float32
    assert not by_default.training
    assert by_default.num_parameters() == 3_417_260
    assert by_default.num_parameters(only_trainable=True) == 3_417_260
    assert by_default.device == torch.device("cpu")


def test_every_way_to_name_a_local_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "outer" / "inner").mkdir(parents=True)
    shutil.copytree(folder, folder.parent / "outer" / "inner", dirs_exist_ok=True)
    for name in (folder, str(folder), "model", "./model", folder / WEIGHTS_NAME, "model/config.json"):
        assert LightGlueForKeypointMatching.from_pretrained(name).config.descriptor_dim == 32
    assert LightGlueForKeypointMatching.from_pretrained("outer", subfolder="inner").config.descriptor_dim == 32
    monkeypatch.setenv("HOME", str(folder.parent))
    assert LightGlueForKeypointMatching.from_pretrained("~/model").config.descriptor_dim == 32


@pytest.mark.parametrize(
    "name",
    ["nothing", "no/such/folder", "/nowhere", "owner/file.pth", "owner/model.safetensors", "a b/c", "", "../x/y"],
)
def test_names_that_cannot_be_a_model(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        LightGlueForKeypointMatching.from_pretrained(name)


def test_parts_of_a_joint_model(folder: Path, model: LightGlueForKeypointMatching) -> None:
    detector = SuperPointForKeypointDetection.from_pretrained(folder, max_keypoints=17)
    assert detector.config.max_keypoints == 17
    expected = model.keypoint_detector.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in detector.state_dict().items())
    matcher = LightGlueMatcher.from_pretrained(folder)
    assert not any(name.startswith("keypoint_detector") for name in matcher.state_dict())
    assert torch.equal(matcher.input_projection.weight, model.input_projection.weight)


def test_a_single_published_file_needs_its_config(folder: Path) -> None:
    (folder / WEIGHTS_NAME).rename(folder / "weights.safetensors")
    for cls in (LightGlueMatcher, LightGlueForKeypointMatching):
        with pytest.raises(CheckpointError, match=r"config\.json|which detector"):
            cls.from_pretrained(folder / "weights.safetensors")


def test_types(folder: Path) -> None:
    load = LightGlueForKeypointMatching.from_pretrained
    load(folder).save_pretrained(folder, dtype="float16")
    assert {value.dtype for value in load_file(folder / WEIGHTS_NAME).values()} == {torch.float16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert load(folder).dtype == torch.float32
    assert load(folder, dtype="auto").dtype == torch.float16
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert load(folder, torch_dtype=torch.float64).dtype == torch.float64
    assert load(folder, device_map="cpu").device == torch.device("cpu")
    with pytest.raises(InputError, match="'int8'"):
        load(folder, dtype="int8")
    with pytest.raises(InputError, match="'gpu'"):
        load(folder, device="gpu")


def test_settings_on_loading(folder: Path) -> None:
    load = LightGlueForKeypointMatching.from_pretrained
    model = load(folder, filter_threshold=0.3, hf_compatible=True)
    assert model.config.filter_threshold == 0.3
    assert model.config.detector.hf_compatible
    # What chooses an implementation elsewhere changes nothing here, and is kept nowhere.
    plain = load(folder, trust_remote_code=True, attn_implementation="sdpa", use_safetensors=True)
    assert plain.config == load(folder).config
    config = LightGlueConfig.from_pretrained(folder, depth_confidence=-1)
    assert load(folder, config=config).config.depth_confidence == -1
    assert load(folder, config=config, filter_threshold=0.7).config.filter_threshold == 0.7
    with pytest.raises(ConfigError, match="no setting 'max_keypoints'"):
        load(folder, max_keypoints=10)
    with pytest.raises(ConfigError, match="Did you mean 'filter_threshold'"):
        load(folder, filter_treshold=0.1)
    with pytest.raises(InputError, match="takes a LightGlueConfig, got SuperPointConfig"):
        load(folder, config=SuperPointConfig())


def test_nothing_of_a_loaded_model_is_unset(folder: Path) -> None:
    model = LightGlueForKeypointMatching.from_pretrained(folder)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_saving_makes_the_folder_and_refuses_a_file(model: LightGlueForKeypointMatching, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "a" / "b")
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["config.json", "model.safetensors"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(InputError, match="'int8'"):
        model.save_pretrained(tmp_path / "c", dtype="int8")


def test_random_weights_from_a_config(folder: Path) -> None:
    config = LightGlueConfig.from_pretrained(folder)
    first = LightGlueForKeypointMatching.from_config(config)
    assert first.config == config
    assert first.licence == first.name_or_path == ""
    second = LightGlueForKeypointMatching.from_config(config.to_dict(), num_hidden_layers=2)
    assert len(second.transformer_layers) == 2
    assert 0.01 < first.transformer_layers[0].self_mlp.fc1.weight.detach().std() < 0.03
