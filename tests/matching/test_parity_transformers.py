"""The same numbers as transformers, where transformers is right: one pair at a time, all layers or adaptive."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from random_models import enliven, lively_model

from keyglue.images.coordinates import pixels_to_relative

transformers = pytest.importorskip("transformers")
from transformers import LightGlueConfig as TheirConfig
from transformers import LightGlueForKeypointMatching as TheirModel

MODELS = {
    "tiny": {"descriptor_dim": 64, "num_hidden_layers": 4},
    "full": {},
    "grouped": {"descriptor_dim": 64, "num_hidden_layers": 3, "num_key_value_heads": 2},
    "multi-query": {"descriptor_dim": 64, "num_hidden_layers": 3, "num_key_value_heads": 1},
    "no bias": {"descriptor_dim": 64, "num_hidden_layers": 3, "attention_bias": False},
    "relu": {"descriptor_dim": 64, "num_hidden_layers": 3, "hidden_act": "relu"},
    "silu": {"descriptor_dim": 64, "num_hidden_layers": 3, "hidden_act": "silu"},
}
DETECTOR = {"max_keypoints": 300, "keypoint_threshold": 0.0005}


@pytest.fixture(scope="module")
def pair_pixels(photographs):
    """The stereo pair as (1, 2, 3, h, w)."""
    pair = torch.stack([photographs["motorcycle_left"], photographs["motorcycle_right"]])
    return pair.expand(-1, 3, -1, -1)[None]


@pytest.fixture(scope="module", params=MODELS)
def both(request, small, described):
    """Our model and theirs with the same random matcher and the bundled detector."""
    ours = lively_model(detector=DETECTOR, hf_compatible=True, **MODELS[request.param])
    ours.keypoint_detector.load_state_dict(small.keypoint_detector.state_dict())
    enliven(ours, [(described["motorcycle_left"], described["motorcycle_right"])])
    config = TheirConfig(**{**ours.config.to_dict(), "keypoint_detector_config": ours.config.detector.to_dict()})
    config._attn_implementation = "eager"
    theirs = TheirModel(config).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def with_settings(model, **changes):
    """Return our model with other settings and the same weights."""
    other = type(model)(model.config.replace(**changes)).eval()
    other.load_state_dict(model.state_dict())
    return other


def test_adaptive_answers_are_equal(both, pair_pixels):
    ours, theirs = both
    with torch.inference_mode():
        a, b = ours(pair_pixels), theirs(pair_pixels)
    assert int((b.matches[:, 0] >= 0).sum()) >= 90
    assert torch.equal(a.keypoints, b.keypoints)
    # Where one image keeps fewer points than the other, theirs overwrites the last keypoint's answer with padding.
    assert torch.equal(a.matches[..., :-1], b.matches[..., :-1])
    assert torch.equal(a.prune, b.prune)
    assert torch.equal(a.mask, b.mask)
    torch.testing.assert_close(a.matching_scores[..., :-1], b.matching_scores[..., :-1], atol=1e-4, rtol=0)
    assert (a.matches.dtype, a.mask.dtype, a.prune.dtype) == (b.matches.dtype, b.mask.dtype, b.prune.dtype)
    assert len(a.to_tuple()) == len(b.to_tuple())


def test_something_stops_and_something_is_pruned(both, pair_pixels):
    ours, _ = both
    with torch.inference_mode():
        out = ours(pair_pixels)
    layers = ours.config.num_hidden_layers
    assert int(out.prune.min()) < int(out.stop_layers[0])
    if layers == 9:
        assert int(out.stop_layers[0]) < layers


def test_every_hidden_state_and_attention_is_equal(both, pair_pixels):
    ours, theirs = both
    fixed = with_settings(ours, depth_confidence=1.0, width_confidence=1.0)
    theirs.depth_confidence, theirs.width_confidence = 1.0, 1.0
    try:
        with torch.inference_mode():
            a = fixed(pair_pixels, output_hidden_states=True, output_attentions=True)
            b = theirs(pair_pixels, output_hidden_states=True, output_attentions=True)
    finally:
        theirs.depth_confidence, theirs.width_confidence = ours.config.depth_confidence, ours.config.width_confidence
    assert len(a.hidden_states) == len(b.hidden_states) == 7 * ours.config.num_hidden_layers
    assert len(a.attentions) == len(b.attentions) == 2 * ours.config.num_hidden_layers
    for own, other in zip((*a.hidden_states, *a.attentions), (*b.hidden_states, *b.attentions), strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


def test_log_assignments_are_equal(both, pair_pixels):
    ours, theirs = both
    with torch.inference_mode():
        features = ours.keypoint_detector.extract_batch(pair_pixels[0], [tuple(pair_pixels.shape[-2:])] * 2)
        for index, tokens in enumerate(ours.tokens_per_layer([tuple(features)])):
            own = ours.assign(index, tokens)[0]
            x = tokens.x.unflatten(0, (2, -1))
            other = theirs.match_assignment_layers[index](x, torch.ones(x.shape[:2], dtype=torch.int))[0]
            torch.testing.assert_close(own, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("path", "atol"), [("reference", 1e-6), ("fast", 1e-5)])
def test_detector_is_equal(both, photographs, path, atol):
    ours, theirs = both
    # Hidden states are kept by the reference path alone.
    reference = path == "reference"
    for name, image in photographs.items():
        pixels = image.expand(3, -1, -1)[None]
        with torch.inference_mode():
            a = ours.keypoint_detector(pixels, output_hidden_states=reference)
            b = theirs.keypoint_detector(pixels)
        assert torch.equal(a.keypoints, b.keypoints), name
        assert torch.equal(a.mask, b.mask)
        torch.testing.assert_close(a.scores, b.scores, atol=atol, rtol=0)
        torch.testing.assert_close(a.descriptors, b.descriptors, atol=1e-5, rtol=0)


def test_detector_keeps_only_points_inside_the_border(both, photographs):
    """Theirs keeps the right and bottom borders; ours returns theirs without those."""
    ours, theirs = both
    detector = with_settings(ours.keypoint_detector, max_keypoints=-1, hf_compatible=False)
    theirs.keypoint_detector.keypoint_decoder.max_keypoints = -1
    image = photographs["astronaut"]
    height, width = image.shape[1:]
    try:
        with torch.inference_mode():
            a = detector(image[None])
            b = theirs.keypoint_detector(image.expand(3, -1, -1)[None])
    finally:
        theirs.keypoint_detector.keypoint_decoder.max_keypoints = DETECTOR["max_keypoints"]
    inside = ((b.keypoints[0] * torch.tensor([width, height])).round() < torch.tensor([width - 4, height - 4])).all(
        dim=1
    )
    assert int((~inside).sum()) > 0
    assert torch.equal(a.keypoints[0], b.keypoints[0][inside])


def test_batch_that_stops_together_is_equal(both, pair_pixels):
    """Theirs is right for a batch when all its pairs stop at one layer: here each twice the same."""
    ours, theirs = both
    batch = pair_pixels.repeat(2, 1, 1, 1, 1)
    with torch.inference_mode():
        a, b = ours(batch), theirs(batch)
    assert torch.equal(a.matches[..., :-1], b.matches[..., :-1])
    assert torch.equal(a.prune, b.prune)


def test_random_detector_of_full_size_is_equal(photographs):
    ours = lively_model(descriptor_dim=64, num_hidden_layers=1).keypoint_detector
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(4)
    from transformers import SuperPointConfig as TheirSuperPointConfig
    from transformers import SuperPointForKeypointDetection as TheirSuperPoint

    theirs = TheirSuperPoint(TheirSuperPointConfig(max_keypoints=200)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours = with_settings(ours, max_keypoints=200, hf_compatible=True)
    pixels = photographs["coffee"].expand(3, -1, -1)[None]
    with torch.inference_mode():
        a, b = ours(pixels, output_hidden_states=True), theirs(pixels, output_hidden_states=True)
    own, other = ({tuple(row) for row in out.keypoints[0].tolist()} for out in (a, b))
    assert len(own ^ other) <= 2, "only points whose scores tie may differ"
    for mine, their in zip(a.hidden_states, b.hidden_states, strict=True):
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=1e-4)


def test_relative_keypoints_mean_pixel_over_size(both, pair_pixels):
    ours, _ = both
    with torch.inference_mode():
        out = ours(pair_pixels)
        features = ours.keypoint_detector.extract(pair_pixels[0, 0])
    relative = pixels_to_relative(features.keypoints, tuple(pair_pixels.shape[-2:]))
    assert torch.equal(out.keypoints0[0, : len(features)], relative)
