"""What keyglue saves loads in transformers, and the other way round, with equal tensors."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching

transformers = pytest.importorskip("transformers")
MakeModel = Callable[..., LightGlueForKeypointMatching]

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped queries": {"num_key_value_heads": 1, "shared_query_key": False},
    "no attention bias": {"attention_bias": False},
    "no projection": {"descriptor_dim": 24, "num_attention_heads": 2},
    "whole numbers": {"depth_confidence": -1, "width_confidence": 1, "filter_threshold": 0},
    "other activation": {"hidden_act": "relu", "foreign_key": {"kept": [1]}},
}


def theirs_from(folder: Path, cls: str = "LightGlueForKeypointMatching") -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = getattr(transformers, cls).from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, local_files_only=True
        )
    assert not any(info.values()), info
    return model.eval()


def assert_same(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back(variant: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model(seed=2, **VARIANTS[variant])
    model.save_pretrained(tmp_path / "ours")
    theirs = theirs_from(tmp_path / "ours")
    assert_same(theirs, model)
    theirs.save_pretrained(tmp_path / "theirs")
    back = LightGlueForKeypointMatching.from_pretrained(tmp_path / "theirs")
    assert_same(back, model)
    own = json.loads((tmp_path / "ours" / "config.json").read_text())
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    for key in VARIANTS[variant]:
        if key != "shared_query_key":
            assert written[key] == own[key]
    assert back.config.detector.encoder_hidden_sizes == (8, 8, 16, 16)
    # keyglue in turn writes back what transformers put there.
    back.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["transformers_version"] == transformers.__version__
    assert again["architectures"] == ["LightGlueForKeypointMatching"]
    assert_same(theirs_from(tmp_path / "again"), model)


def test_the_bundled_model(small: LightGlueForKeypointMatching, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path, dtype="float16")
    theirs = theirs_from(tmp_path)
    assert_same(theirs, small)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == config["keypoint_detector_config"]["dtype"] == "float16"
    assert theirs.config.keypoint_detector_config.max_keypoints == 1024
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        automatic = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(automatic).__name__ == "LightGlueForKeypointMatching"
    assert automatic.dtype == torch.float16


def test_a_detector_alone(tiny_model: MakeModel, tmp_path: Path) -> None:
    detector = tiny_model(seed=4).keypoint_detector
    detector.save_pretrained(tmp_path / "ours")
    theirs = theirs_from(tmp_path / "ours", "SuperPointForKeypointDetection")
    assert_same(theirs, detector)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(SuperPointForKeypointDetection.from_pretrained(tmp_path / "theirs"), detector)


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_what_transformers_makes_and_saves_loads(size: str, tmp_path: Path) -> None:
    config = transformers.LightGlueConfig()
    if size == "tiny":
        config = transformers.LightGlueConfig(
            descriptor_dim=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
        )
    theirs = transformers.LightGlueForKeypointMatching(config)
    theirs.save_pretrained(tmp_path, max_shard_size="5GB" if size == "tiny" else "20MB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "full")
    ours = LightGlueForKeypointMatching.from_pretrained(tmp_path)
    assert_same(ours, theirs)
    if size == "full":
        assert (len(ours.state_dict()), ours.num_parameters()) == (329, 13_744_594)
