"""Configurations: what they refuse, what they keep, what they write."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyglue.base.config import PretrainedConfig, read_json
from keyglue.base.errors import CheckpointError, ConfigError, InputError, KeyglueError
from keyglue.keypoints.superpoint import SuperPointConfig
from keyglue.matching.lightglue.configuration import LightGlueConfig

FOREIGN = {
    "num_heads": 4,
    "rotary_value": None,
    "attention_probs_dropout_prob": 0.0,
    "torch_dtype": "float32",
    "transformers_version": "4.53.0",
    "architectures": ["LightGlueForKeypointMatching"],
    "nested": {"a": [1, {"b": None}]},
}


def test_foreign_keys_survive_a_round_trip(tmp_path: Path) -> None:
    written = {"model_type": "lightglue", "descriptor_dim": 128, **FOREIGN}
    written["keypoint_detector_config"] = {"model_type": "superpoint", "attn_implementation": "eager", "odd": [1]}
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = LightGlueConfig.from_pretrained(tmp_path)
    assert config.rotary_value is None
    assert config.nested == {"a": [1, {"b": None}]}
    config.save_pretrained(tmp_path / "copy")
    again = read_json(tmp_path / "copy" / "config.json")
    assert {key: again[key] for key in FOREIGN} == FOREIGN
    assert again["keypoint_detector_config"]["attn_implementation"] == "eager"
    assert again["keypoint_detector_config"]["odd"] == [1]
    assert LightGlueConfig.from_dict(again) == config


def test_config_of_a_folder_a_file_or_the_package(tmp_path: Path) -> None:
    LightGlueConfig(descriptor_dim=64).save_pretrained(tmp_path)
    (tmp_path / "other.json").write_text(json.dumps({"descriptor_dim": 32}))
    assert LightGlueConfig.from_pretrained(tmp_path).descriptor_dim == 64
    assert LightGlueConfig.from_pretrained(tmp_path / "config.json").descriptor_dim == 64
    assert LightGlueConfig.from_pretrained(str(tmp_path / "other.json")).descriptor_dim == 32
    assert LightGlueConfig.from_json_file(tmp_path / "other.json").descriptor_dim == 32
    assert LightGlueConfig.from_pretrained(tmp_path, filter_threshold=0.5).filter_threshold == 0.5
    assert LightGlueConfig.from_pretrained().descriptor_dim == 128
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        LightGlueConfig.from_pretrained(tmp_path / "..")
    with pytest.raises(InputError, match="is a file"):
        LightGlueConfig().save_pretrained(tmp_path / "other.json")


def test_copies_and_pickles_are_equal() -> None:
    config = LightGlueConfig(descriptor_dim=64, foreign=[1])
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.replace(descriptor_dim=32).descriptor_dim == 32
    assert config.replace(descriptor_dim=32).foreign == [1]
    assert not hasattr(config, "nothing_like_it")
    assert LightGlueConfig.from_dict(json.loads(config.to_json_string())) == config


@pytest.mark.parametrize("given_dtype", [torch.float16, "torch.float16", "float16"])
def test_the_type_is_written_by_its_plain_name(given_dtype: Any) -> None:
    assert LightGlueConfig(dtype=given_dtype).dtype == "float16"
    config = LightGlueConfig(torch_dtype="float32", keypoint_detector_config={"dtype": "float32"})
    values = config.with_dtype("bfloat16").to_dict()
    assert (values["dtype"], values["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert values["keypoint_detector_config"]["dtype"] == "bfloat16"
    assert "dtype" not in LightGlueConfig().to_dict()


def test_whole_numbers_will_do_where_fractions_are_meant() -> None:
    config = LightGlueConfig(depth_confidence=-1, width_confidence=1)
    assert type(config.depth_confidence) is float
    assert '"depth_confidence": -1.0' in config.to_json_string()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"filter_treshold": 0.2}, "'filter_threshold'"),
        ({"descriptor_dim": 250}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"hidden_size": 100}, "hidden_size is 100"),
        ({"descriptor_dim": "256"}, "descriptor_dim"),
        ({"depth_confidence": float("nan")}, "depth_confidence"),
        ({"depth_confidence": 10**400}, "depth_confidence"),
        ({"filter_threshold": 2}, "filter_threshold"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"hidden_act": "nothing"}, "hidden_act"),
        ({"hidden_act": ["gelu"]}, "LightGlueConfig"),
        ({"keypoint_detector_config": 5}, "keypoint_detector_config"),
        ({"keypoint_detector_config": {"model_type": "resnet"}}, "resnet"),
        ({"keypoint_detector_config": {"encoder_hidden_sizes": 5}}, "SuperPointConfig"),
        ({"keypoint_detector_config": {"keypoint_decoder_dim": 64}}, "keypoint_decoder_dim"),
        ({"extra": 5}, "extra"),
    ],
)
def test_impossible_and_contradictory_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LightGlueConfig.from_dict(values)


def test_a_keyword_without_a_setting_is_an_error_where_it_would_change_nothing() -> None:
    for make in (LightGlueConfig().replace, lambda **given: LightGlueConfig.from_dict({}, **given)):
        with pytest.raises(ConfigError, match="no setting 'max_keypoints'"):
            make(max_keypoints=5)
    assert LightGlueConfig.from_dict({"max_keypoints": 7}, max_keypoints=5).max_keypoints == 5


def test_another_kind_of_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="'superpoint'"):
        LightGlueConfig.from_dict(SuperPointConfig().to_dict())
    with pytest.raises(ConfigError, match="JSON object"):
        LightGlueConfig.from_dict([1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1, 2]", b'"text"', b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut", "list", "text", "null", "not text", "deep", "long number"],
)
def test_a_file_that_is_no_json_object(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        LightGlueConfig.from_pretrained(tmp_path)


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"descriptor_dim": 64}', encoding="utf-8-sig")
    assert LightGlueConfig.from_pretrained(tmp_path).descriptor_dim == 64


def test_what_json_cannot_hold_is_an_error_and_leaves_the_file(tmp_path: Path) -> None:
    LightGlueConfig().save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="JSON"):
        LightGlueConfig(foreign=object()).save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("cls", [LightGlueConfig, SuperPointConfig])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_json_gives_a_configuration_or_an_error_of_ours(cls: type[PretrainedConfig], data: st.DataObject) -> None:
    names = [*cls().to_dict(), "hidden_size", "self", "extra"]
    values = data.draw(st.dictionaries(st.sampled_from(names) | st.text(max_size=8), JSON, max_size=4))
    try:
        config = cls.from_dict(values)
    except KeyglueError:
        return
    assert cls.from_dict(config.to_dict()).to_json_string() == config.to_json_string()
