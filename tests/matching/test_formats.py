"""The original releases' layout of LightGlue, in every spelling seen, against the published one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from keyglue.base.checkpoints import read_state_dict
from keyglue.base.errors import CheckpointError
from keyglue.base.types import Features
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.lightglue.formats import (
    config_of_original,
    is_original,
    matcher_from_checkpoint,
    matcher_to_original,
)
from keyglue.matching.lightglue.lightglue import LightGlueMatcher

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def published(tiny_model: Callable[..., LightGlueMatcher]) -> Tensors:
    return {k: v for k, v in tiny_model().state_dict().items() if not k.startswith("keypoint_detector.")}


@pytest.fixture(scope="module")
def original(published: Tensors) -> Tensors:
    return matcher_to_original(published, 2)


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


def as_released(tensors: Tensors) -> Tensors:
    """Return the names of the .pth files of the releases."""
    return {re.sub(r"^transformers\.(\d+)\.(self|cross)_attn", r"\2_attn.\1", k): v for k, v in tensors.items()}


SPELLINGS: dict[str, Callable[[Tensors], Tensors]] = {
    "later files": lambda tensors: tensors,
    "releases": as_released,
    "prefix": lambda tensors: {f"matcher.{name}": t for name, t in tensors.items()},
    "prefix, as released": lambda tensors: {f"matcher.{name}": t for name, t in as_released(tensors).items()},
    "buffer": lambda tensors: {**tensors, "confidence_thresholds": torch.rand(3)},
    "short confidence": lambda tensors: {name.replace("token.0.", ""): t for name, t in tensors.items()},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_tensors(published: Tensors, original: Tensors, spelling: str) -> None:
    spelled = SPELLINGS[spelling](original)
    assert is_original(spelled)
    assert_equal(matcher_from_checkpoint(spelled, 2), published)
    config = LightGlueConfig.from_dict(config_of_original(spelled))
    assert (config.descriptor_dim, config.num_hidden_layers, config.num_attention_heads) == (32, 3, 2)
    assert (config.input_dim, config.add_scale_ori) == (24, False)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_files_of_every_spelling_load(
    original: Tensors, published: Tensors, spelling: str, wrapper: str | None, tmp_path: Path
) -> None:
    content = SPELLINGS[spelling](original)
    torch.save(content if wrapper is None else {wrapper: content, "epoch": 3}, tmp_path / "matcher.pth")
    assert_equal(dict(LightGlueMatcher.from_pretrained(tmp_path / "matcher.pth").state_dict()), published)


def test_published_names_pass_unchanged(published: Tensors) -> None:
    assert not is_original(published)
    assert_equal(matcher_from_checkpoint(published), published)
    documented = {k.replace("positional_encoder", "positional_encoding"): v for k, v in published.items()}
    assert_equal(matcher_from_checkpoint(documented), published)


def test_packed_rows_run_over_heads_then_dimensions_then_query_key_value(published: Tensors, original: Tensors) -> None:
    packed = original["transformers.1.self_attn.Wqkv.weight"]
    head, dimension = 1, 5
    for offset, part in enumerate("qkv"):
        row = packed[(head * 16 + dimension) * 3 + offset]
        expected = published[f"transformer_layers.1.self_attention.{part}_proj.weight"][head * 16 + dimension]
        assert torch.equal(row, expected)


def test_superpoint_lightglue_has_251_tensors() -> None:
    with torch.device("meta"):
        model = LightGlueMatcher(LightGlueConfig())
    with pytest.raises(CheckpointError, match="different projections"):
        matcher_to_original({k: torch.rand(v.shape) for k, v in model.state_dict().items()}, 4)
    tensors = matcher_to_original({k: torch.zeros(v.shape) for k, v in model.state_dict().items()}, 4)
    assert len(tensors) == 251
    assert tensors["transformers.8.self_attn.Wqkv.weight"].shape == (768, 256)
    assert tensors["posenc.Wr.weight"].shape == (32, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shared_query_key": False}, r"transformer_layers\.0\.cross_attention.*different projections"),
        ({"num_key_value_heads": 1}, "grouped-query"),
        ({"attention_bias": False}, "without biases"),
    ],
)
def test_what_the_original_cannot_hold_is_refused(
    tiny_model: Callable[..., LightGlueMatcher], settings: dict[str, object], message: str
) -> None:
    model = tiny_model(**{"shared_query_key": "num_key_value_heads" not in settings, **settings})
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith("keypoint_detector.")}
    with pytest.raises(CheckpointError, match=message):
        matcher_to_original(tensors, 2)


def made_original(width: int, heads: int, layers: int, inputs: int = 2, input_dim: int | None = None) -> Tensors:
    """Return random tensors of an original checkpoint, written down by hand from the released code's layers."""
    shapes: dict[str, tuple[int, ...]] = {"posenc.Wr.weight": (width // heads // 2, inputs)}
    linears = {}
    if input_dim is not None:
        linears["input_proj"] = (width, input_dim)
    for i in range(layers):
        for block in (f"self_attn.{i}", f"cross_attn.{i}"):
            linears |= {f"{block}.ffn.0": (2 * width, 2 * width), f"{block}.ffn.3": (width, 2 * width)}
            shapes |= {f"{block}.ffn.1.weight": (2 * width,), f"{block}.ffn.1.bias": (2 * width,)}
        linears |= {f"self_attn.{i}.Wqkv": (3 * width, width), f"self_attn.{i}.out_proj": (width, width)}
        linears |= {f"cross_attn.{i}.{name}": (width, width) for name in ("to_qk", "to_v", "to_out")}
        linears |= {f"log_assignment.{i}.matchability": (1, width), f"log_assignment.{i}.final_proj": (width, width)}
        if i < layers - 1:
            linears[f"token_confidence.{i}.token.0"] = (1, width)
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


KINDS = {
    "superpoint": {"width": 64, "heads": 4, "layers": 3},
    "disk, aliked": {"width": 64, "heads": 4, "layers": 3, "input_dim": 32},
    "sift, doghardnet": {"width": 256, "heads": 4, "layers": 2, "inputs": 4, "input_dim": 128},
    "LighterGlue for XFeat": {"width": 96, "heads": 1, "layers": 6, "input_dim": 64},
}


@pytest.mark.parametrize("kind", KINDS)
def test_released_kinds_are_recognised_and_load(kind: str, tmp_path: Path) -> None:
    values = KINDS[kind]
    tensors = made_original(**values)
    torch.save(tensors, tmp_path / "matcher.pth")
    model = LightGlueMatcher.from_pretrained(tmp_path / "matcher.pth")
    assert model.config.num_attention_heads == values["heads"]
    assert model.config.num_hidden_layers == values["layers"]
    assert model.config.input_dim == values.get("input_dim", values["width"])
    assert model.config.add_scale_ori == (values.get("inputs") == 4)
    assert_equal(as_released(matcher_to_original(model.state_dict(), values["heads"])), tensors)


DAMAGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "left over": (lambda t: t.update({"self_attn.0.extra.weight": torch.ones(1)}), r"self_attn\.extra\.weight"),
    "missing": (lambda t: t.pop("cross_attn.2.to_v.bias"), r"transformer_layers\.2\.cross_attention\.v_proj\.bias"),
    "missing layer": (lambda t: [t.pop(n) for n in list(t) if ".2." in n and "log_a" in n], "not of this model"),
    "no encoding": (lambda t: t.pop("posenc.Wr.weight"), r"posenc\.Wr\.weight"),
    "no assignment": (lambda t: t.pop("log_assignment.0.final_proj.weight"), r"final_proj\.weight"),
    "other encoding": (lambda t: t.update({"posenc.Wr.weight": torch.ones(8, 6)}), r"\(8, 6\)"),
    "odd rows": (lambda t: t.update({"self_attn.1.Wqkv.weight": torch.ones(190, 64)}), r"\(190, 64\)"),
    "scalar rows": (lambda t: t.update({"self_attn.1.Wqkv.bias": torch.tensor(1.0)}), r"Wqkv\.bias"),
    "other width": (lambda t: t.update({"cross_attn.1.to_out.weight": torch.ones(64, 63)}), r"\(64, 63\)"),
    "not finite": (lambda t: t["cross_attn.1.to_out.bias"].fill_(torch.nan), r"not finite.*cross_attention\.o_proj"),
    "twice": (lambda t: t.update({"matcher.posenc.Wr.weight": torch.ones(8, 2)}), "two spellings"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_an_error_that_names_the_tensor(damage: str, tmp_path: Path) -> None:
    tensors = made_original(**KINDS["superpoint"])
    change, message = DAMAGES[damage]
    change(tensors)
    torch.save(tensors, tmp_path / "matcher.pth")
    with pytest.raises(CheckpointError, match=message):
        LightGlueMatcher.from_pretrained(tmp_path / "matcher.pth")


def test_a_real_file_of_the_original_layout_holds_the_same_matcher(shared_data: Path) -> None:
    file = shared_data / "weights" / "start_small_matcher_original_layout.safetensors"
    if not file.is_file():
        pytest.skip("the original-layout file is not here")
    small = LightGlueMatcher.from_pretrained(shared_data / "weights" / "start_small")
    # Its confidence heads are untrained; the other file's are set so that nothing stops.
    real = {name: t for name, t in read_state_dict(file).items() if not name.startswith("token_confidence")}
    bundled = {name: t for name, t in small.state_dict().items() if not name.startswith("keypoint_detector.")}
    written = matcher_to_original({name: t.half() for name, t in bundled.items()}, 4)
    assert_equal({name: t for name, t in written.items() if not name.startswith("token_confidence")}, real)
    loaded = LightGlueMatcher.from_pretrained(file).state_dict()
    heads = [name for name in loaded if name.startswith("token_confidence")]
    assert len(heads) == 10
    assert_equal({n: t for n, t in loaded.items() if n not in heads}, {n: bundled[n] for n in loaded if n not in heads})


@pytest.mark.parametrize("sift", [False, True])
def test_kornia_gives_the_same_answers_with_what_keyglue_writes(
    tiny_model: Callable[..., LightGlueMatcher], sift: bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kornia.feature

    detector = {"model_type": "sift"} if sift else {"model_type": "superpoint", "descriptor_decoder_dim": 24}
    settings = {"keypoint_detector_config": detector, "add_scale_ori": sift, "filter_threshold": 0.0}
    ours = tiny_model(depth_confidence=-1.0, width_confidence=-1.0, **settings)
    with torch.no_grad():
        # Descriptors pass the layers nearly unchanged and are compared as they are, so that like matches like.
        for layer in ours.transformer_layers:
            layer.self_mlp.fc2.weight.mul_(0.05)
            layer.cross_mlp.fc2.weight.mul_(0.05)
        for layer in ours.match_assignment_layers:
            layer.final_projection.weight.mul_(0.1).add_(5 * torch.eye(32))
    config = ours.config
    matcher = {name: t for name, t in ours.state_dict().items() if not name.startswith("keypoint_detector.")}
    theirs = kornia.feature.LightGlue(
        features=None,
        input_dim=config.input_dim,
        descriptor_dim=config.descriptor_dim,
        n_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        add_scale_ori=sift,
        depth_confidence=-1,
        width_confidence=-1,
        filter_threshold=0.0,
        flash=False,
    ).eval()
    result = theirs.load_state_dict(matcher_to_original(matcher, config.num_attention_heads), strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys == ["confidence_thresholds"]

    generator = torch.Generator().manual_seed(1)
    features = []
    points = torch.nn.functional.normalize(torch.randn(60, config.input_dim, generator=generator))
    for count, size in ((60, (120, 160)), (45, (200, 100))):
        noise = torch.randn(count, config.input_dim, generator=generator) / 50
        features.append(
            Features(
                keypoints=torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]]),
                descriptors=torch.nn.functional.normalize(points[:count] + noise),
                image_size=size,
                scales=torch.rand(count, generator=generator) * 5 if sift else None,
                orientations=torch.rand(count, generator=generator) if sift else None,
            )
        )
    data = {}
    for index, image in enumerate(features):
        values = {"keypoints": image.keypoints, "descriptors": image.descriptors, "image_size": None}
        if sift:
            values |= {"scales": image.scales, "oris": image.orientations}
        data[f"image{index}"] = {name: value[None] for name, value in values.items() if value is not None}
        data[f"image{index}"]["image_size"] = torch.tensor([image.image_size[::-1]])
    with torch.inference_mode():
        expected = theirs(data)
        assignment = ours.log_assignments(*features)[-1]
    found = ours.match(*features)
    torch.testing.assert_close(assignment, expected["log_assignment"][0], atol=1e-4, rtol=0)
    assert torch.equal(found.matches0, expected["matches0"][0])
    assert torch.equal(found.matches1, expected["matches1"][0])
    assert len(found) >= 15
    torch.testing.assert_close(found.matching_scores0, expected["matching_scores0"][0], atol=1e-4, rtol=0)
