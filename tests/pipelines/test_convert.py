"""Converting checkpoints in every direction: equal tensors, nothing left over, nothing made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from keyglue.base.checkpoints import read_state_dict
from keyglue.base.errors import CheckpointError, InputError
from keyglue.images.processor import LightGlueImageProcessor
from keyglue.keypoints.formats import superpoint_to_original
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.lightglue.lightglue import LightGlueMatcher
from keyglue.pipelines.convert import convert_checkpoint

Tensors = dict[str, torch.Tensor]
MakeModel = Callable[..., LightGlueForKeypointMatching]


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


def names(files: list[Path], folder: Path) -> list[str]:
    assert all(file.is_file() for file in files)
    return [str(file.relative_to(folder)) for file in files]


@pytest.fixture(scope="module")
def model(tiny_model: MakeModel) -> LightGlueForKeypointMatching:
    return tiny_model(seed=3)


@pytest.fixture
def folder(model: LightGlueForKeypointMatching, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_there_and_back_gives_the_same_tensors(
    folder: Path, model: LightGlueForKeypointMatching, suffix: str, tmp_path: Path
) -> None:
    written = convert_checkpoint(folder, tmp_path / f"matcher.{suffix}", to="original")
    assert names(written, tmp_path) == [f"matcher.{suffix}", f"matcher_superpoint.{suffix}"]
    matcher, detector = (read_state_dict(file) for file in written)
    assert "transformers.0.self_attn.Wqkv.weight" in matcher
    assert sorted({name.partition(".")[0] for name in matcher}) == sorted(
        ["input_proj", "log_assignment", "posenc", "token_confidence", "transformers"]
    )
    assert detector.keys() == superpoint_to_original(model.keypoint_detector.state_dict()).keys()
    back = convert_checkpoint(written[0], tmp_path / "back", detector=written[1])
    assert names(back, tmp_path / "back") == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert_equal(load_file(tmp_path / "back" / "model.safetensors"), dict(model.state_dict()))
    loaded = LightGlueForKeypointMatching.from_pretrained(tmp_path / "back")
    assert loaded.config.detector.encoder_hidden_sizes == (8, 8, 16, 16)
    assert loaded.config.num_attention_heads == 2


def test_a_pth_can_be_read_by_plain_torch(folder: Path, tmp_path: Path) -> None:
    written = convert_checkpoint(folder, tmp_path / "out", to="original")
    assert names(written, tmp_path / "out") == ["lightglue.pth", "superpoint.pth"]
    content = torch.load(written[0], weights_only=True)
    assert type(content) is dict
    assert content["posenc.Wr.weight"].shape == (8, 2)


def test_a_matcher_alone_becomes_a_folder_for_the_matcher(
    folder: Path, model: LightGlueForKeypointMatching, tmp_path: Path
) -> None:
    matcher, _ = convert_checkpoint(folder, tmp_path / "matcher.pth", to="original")
    written = convert_checkpoint(matcher, tmp_path / "alone")
    assert names(written, tmp_path / "alone") == ["config.json", "model.safetensors"]
    loaded = LightGlueMatcher.from_pretrained(tmp_path / "alone")
    expected = {name: t for name, t in model.state_dict().items() if not name.startswith("keypoint_detector.")}
    assert_equal(dict(loaded.state_dict()), expected)
    with pytest.raises(CheckpointError, match="missing: keypoint_detector"):
        LightGlueForKeypointMatching.from_pretrained(tmp_path / "alone")
    joined = convert_checkpoint(tmp_path / "alone", tmp_path / "joined", detector=folder)
    assert len(joined) == 3
    assert_equal(load_file(joined[1]), dict(model.state_dict()))
    back = convert_checkpoint(tmp_path / "alone", tmp_path / "again.pth", to="original")
    assert_equal(read_state_dict(back[0]), read_state_dict(matcher))


def test_a_detector_alone_both_ways(folder: Path, model: LightGlueForKeypointMatching, tmp_path: Path) -> None:
    _, detector = convert_checkpoint(folder, tmp_path / "x.pth", to="original")
    written = convert_checkpoint(detector, tmp_path / "superpoint")
    assert names(written, tmp_path / "superpoint") == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert json.loads(written[2].read_text())["image_processor_type"] == "SuperPointImageProcessor"
    loaded = SuperPointForKeypointDetection.from_pretrained(tmp_path / "superpoint")
    assert_equal(dict(loaded.state_dict()), dict(model.keypoint_detector.state_dict()))
    back = convert_checkpoint(tmp_path / "superpoint", tmp_path / "back.pth", to="original")
    assert [file.name for file in back] == ["back.pth"]
    assert_equal(read_state_dict(back[0]), read_state_dict(detector))
    in_folder = convert_checkpoint(detector, tmp_path / "files", to="original")
    assert names(in_folder, tmp_path / "files") == ["superpoint.pth"]


def test_settings_of_the_detector_come_along(tiny_model: MakeModel, folder: Path, tmp_path: Path) -> None:
    other = tiny_model(seed=8)
    detector = SuperPointForKeypointDetection(other.config.detector.replace(nms_radius=7, max_keypoints=99))
    detector.save_pretrained(tmp_path / "detector")
    convert_checkpoint(folder, tmp_path / "joined", detector=tmp_path / "detector")
    loaded = LightGlueForKeypointMatching.from_pretrained(tmp_path / "joined")
    assert (loaded.config.detector.nms_radius, loaded.config.detector.max_keypoints) == (7, 99)
    assert_equal(dict(loaded.keypoint_detector.state_dict()), dict(detector.state_dict()))


def test_processor_and_card_are_kept(folder: Path, tmp_path: Path) -> None:
    LightGlueImageProcessor(size={"longest_edge": 640}).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    written = convert_checkpoint(folder, tmp_path / "copy", dtype="float16")
    assert [file.name for file in written][2:] == ["preprocessor_config.json", "README.md"]
    assert LightGlueImageProcessor.from_pretrained(tmp_path / "copy").size == {"longest_edge": 640}
    assert LightGlueForKeypointMatching.from_pretrained(tmp_path / "copy").licence == "cc-by-4.0"


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16, "float64"])
def test_the_type_is_that_of_the_source_or_as_asked(folder: Path, dtype: str | torch.dtype, tmp_path: Path) -> None:
    expected = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    convert_checkpoint(folder, tmp_path / "typed", dtype=dtype)
    assert {t.dtype for t in load_file(tmp_path / "typed" / "model.safetensors").values()} == {expected}
    kept = convert_checkpoint(tmp_path / "typed", tmp_path / "kept.safetensors", to="original")
    assert {t.dtype for file in kept for t in load_file(file).values()} == {expected}
    with pytest.raises(InputError, match="int8"):
        convert_checkpoint(folder, tmp_path / "other", dtype="int8")
    assert not (tmp_path / "other").exists()


def test_in_place(folder: Path, model: LightGlueForKeypointMatching) -> None:
    LightGlueImageProcessor().save_pretrained(folder)
    written = convert_checkpoint(folder, folder, dtype="float16")
    assert len(written) == 3
    assert load_file(written[1]).keys() == model.state_dict().keys()
    assert json.loads(written[0].read_text())["dtype"] == "float16"


def test_sift_needs_no_detector_file(tiny_model: MakeModel, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    sift = tiny_model(keypoint_detector_config={"model_type": "sift"}, add_scale_ori=True)
    sift.save_pretrained(tmp_path / "sift")
    written = convert_checkpoint(tmp_path / "sift", tmp_path / "sift.pth", to="original")
    assert [file.name for file in written] == ["sift.pth"]
    assert read_state_dict(written[0])["posenc.Wr.weight"].shape == (8, 4)
    convert_checkpoint(written[0], tmp_path / "back")
    loaded = LightGlueForKeypointMatching.from_pretrained(tmp_path / "back")
    assert loaded.config.detector.model_type == "sift"
    assert_equal(dict(loaded.state_dict()), dict(sift.state_dict()))


def test_unequal_projections_cannot_become_original(tiny_model: MakeModel, tmp_path: Path) -> None:
    tiny_model(shared_query_key=False).save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="different projections"):
        convert_checkpoint(tmp_path / "model", tmp_path / "out", to="original")
    assert not (tmp_path / "out").exists()


def test_a_detector_of_another_width_is_refused(tiny_model: MakeModel, folder: Path, tmp_path: Path) -> None:
    detector = {"encoder_hidden_sizes": [8, 8, 8, 8], "decoder_hidden_size": 8, "descriptor_decoder_dim": 40}
    other = tiny_model(keypoint_detector_config={"model_type": "superpoint", **detector})
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="24 values, and this SuperPoint gives 40"):
        convert_checkpoint(folder, tmp_path / "out", detector=tmp_path / "other")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["missing", "left over"])
@pytest.mark.parametrize("part", ["matcher", "detector"])
def test_nothing_may_be_missing_or_left_over(folder: Path, change: str, part: str, tmp_path: Path) -> None:
    files = convert_checkpoint(folder, tmp_path / "x.safetensors", to="original")
    damaged = files[part == "detector"]
    name = "transformers.1.cross_attn.to_v.bias" if part == "matcher" else "conv3b.bias"
    tensors = load_file(damaged)
    value = tensors.pop(name)
    if change == "left over":
        tensors |= {name: value, "conv9z.weight": value.clone()}
    save_file(tensors, damaged)
    published = {
        "matcher": r"transformer_layers\.1\.cross_attention\.v_proj\.bias",
        "detector": r"conv_blocks\.2\.conv_b",
    }
    with pytest.raises(CheckpointError, match="conv9z" if change == "left over" else published[part]):
        convert_checkpoint(files[0], tmp_path / "out", detector=files[1])
    assert not (tmp_path / "out").exists()


def test_impossible_requests(folder: Path, model: LightGlueForKeypointMatching, tmp_path: Path) -> None:
    model.keypoint_detector.save_pretrained(tmp_path / "detector")
    with pytest.raises(InputError, match="'onnx'"):
        convert_checkpoint(folder, tmp_path / "out", to="onnx")
    with pytest.raises(InputError, match="names a file"):
        convert_checkpoint(folder, tmp_path / "out.pth")
    with pytest.raises(InputError, match="detector itself"):
        convert_checkpoint(tmp_path / "detector", tmp_path / "out", detector=folder)
    with pytest.raises(CheckpointError, match="there is no model"):
        convert_checkpoint(tmp_path / "nowhere.pth", tmp_path / "out")
    (tmp_path / "file").touch()
    for to in ("original", "transformers"):
        with pytest.raises(InputError, match="is a file"):
            convert_checkpoint(folder, tmp_path / "file", to=to)
    assert (tmp_path / "file").read_bytes() == b""


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    save_file({"layer1.0.conv1.weight": torch.ones(4, 4, 3, 3), "fc.bias": torch.ones(9)}, tmp_path / "r.safetensors")
    with pytest.raises(CheckpointError, match="not a LightGlue checkpoint"):
        convert_checkpoint(tmp_path / "r.safetensors", tmp_path / "out")


def test_the_real_file_with_the_bundled_detector(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "weights" / "start_small_matcher_original_layout.safetensors"
    if not file.is_file():
        pytest.skip("the original-layout file is not here")
    written = convert_checkpoint(file, tmp_path / "model", detector="keyglue-small")
    found = load_file(written[1])
    expected = load_file(shared_data / "weights" / "start_small" / "model.safetensors")
    assert found.keys() == expected.keys()
    different = {name.partition(".")[0] for name in expected if not torch.equal(found[name], expected[name])}
    # The heads are untrained there, and set so that nothing stops here; the bundled detector was trained further since.
    assert different == {"token_confidence", "keypoint_detector"}
    assert {t.dtype for t in found.values()} == {torch.float16}
