"""A matcher's input projection opened and closed, and a larger matcher that begins as a smaller one."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from keyglue.base.errors import ConfigError
from keyglue.base.types import Features
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.lightglue.lightglue import LightGlueMatcher
from keyglue.training import grow as growing
from keyglue.training.grow import grow
from keyglue.training.homographies import ViewSettings
from keyglue.training.initialise import close_projection, open_projection, start_random
from keyglue.training.lightglue import MatcherSettings, MatcherTask
from keyglue.training.photos import load_photos
from keyglue.training.recipes import find_recipe, matcher_config

Pair = tuple[Features, Features]


@pytest.fixture(scope="module")
def detector() -> SuperPointForKeypointDetection:
    return SuperPointForKeypointDetection.from_pretrained()


@pytest.fixture(scope="module")
def pair(described: dict[str, Features]) -> Pair:
    return described["chelsea"].select(torch.arange(80)), described["coffee"].select(torch.arange(70))


def _random(config: LightGlueConfig) -> LightGlueMatcher:
    """Return a matcher in which nothing is zero."""
    matcher = LightGlueMatcher(config).eval()
    generator = torch.Generator().manual_seed(0)
    start_random(matcher, generator)
    with torch.no_grad():
        for name, parameter in matcher.named_parameters():
            if parameter.ndim == 1 and "token" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return matcher


def _config(detector: SuperPointForKeypointDetection, width: int, layers: int = 2) -> LightGlueConfig:
    return LightGlueConfig(
        descriptor_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        keypoint_detector_config=detector.config,
    )


def _assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor], atol: float = 2e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=atol)


def test_an_input_projection_that_training_needs_folds_into_the_weights(
    detector: SuperPointForKeypointDetection, pair: Pair
) -> None:
    matcher = _random(_config(detector, 256))
    assert isinstance(matcher.input_projection, nn.Linear)
    with torch.no_grad():
        expected = matcher.log_assignments(*pair)
        head = matcher.token_confidence[0]
        head.token.weight.normal_(generator=torch.Generator().manual_seed(2))
        confident = head(matcher.embed([pair]).x)
        close_projection(matcher)
        assert isinstance(matcher.input_projection, nn.Identity)
        _assert_equal(matcher.log_assignments(*pair), expected)
        torch.testing.assert_close(head(matcher.embed([pair]).x), confident, rtol=1e-3, atol=1e-6)
        open_projection(matcher)
        _assert_equal(matcher.log_assignments(*pair), expected)
        layers = list(matcher.transformer_layers)
        fc1 = torch.cat([mlp.fc1.weight for layer in layers for mlp in (layer.self_mlp, layer.cross_mlp)])
    of_descriptor, of_message = (part.square().mean() for part in fc1.chunk(2, dim=1))
    assert of_descriptor == pytest.approx(float(of_message), rel=0.1)
    # A matcher that has a projection by itself keeps it.
    narrow = _random(_config(detector, 64))
    weight = narrow.input_projection.weight.clone()
    open_projection(narrow)
    close_projection(narrow)
    assert torch.equal(narrow.input_projection.weight, weight)


@pytest.mark.parametrize(("width", "layers"), [(64, 3), (128, 2), (192, 5), (256, 3)])
def test_a_larger_matcher_begins_with_the_same_assignments(
    detector: SuperPointForKeypointDetection, pair: Pair, monkeypatch: pytest.MonkeyPatch, width: int, layers: int
) -> None:
    small = _random(_config(detector, 64))
    before = copy.deepcopy(small.state_dict())
    with torch.no_grad():
        expected = small.log_assignments(*pair)
    close = grow(small, _config(detector, width, layers), torch.Generator().manual_seed(1)).eval()
    monkeypatch.setattr(growing, "_STIR", 0.0)
    large = grow(small, _config(detector, width, layers), torch.Generator().manual_seed(1)).eval()
    for matcher, atol in ((large, 2e-4), (close, 0.5)):
        close_projection(matcher)
        assert isinstance(matcher.input_projection, nn.Identity) == (width == 256)
        with torch.no_grad():
            found = matcher.log_assignments(*pair)
        assert len(found) == layers
        _assert_equal(found, [expected[number * 2 // layers] for number in range(layers)], atol)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


@pytest.mark.parametrize("layers", [2, 3])
def test_a_matcher_as_wide_as_the_descriptors_grows_in_layers_or_stays(
    detector: SuperPointForKeypointDetection, pair: Pair, layers: int
) -> None:
    plain = _random(_config(detector, 256))
    close_projection(plain)
    large = grow(plain, _config(detector, 256, layers), torch.Generator().manual_seed(1)).eval()
    close_projection(large)
    assert isinstance(plain.input_projection, nn.Identity)
    with torch.no_grad():
        expected, found = plain.log_assignments(*pair), large.log_assignments(*pair)
    _assert_equal(found, [expected[number * 2 // layers] for number in range(layers)])


def test_grown_from_the_bundled_matcher_it_matches_alike(described: dict[str, Features]) -> None:
    small = LightGlueMatcher.from_pretrained()
    large = grow(small, matcher_config("base"), torch.Generator().manual_seed(0)).eval()
    close_projection(large)
    assert (large.config.num_hidden_layers, large.config.descriptor_dim) == (9, 256)
    pair = described["motorcycle_left"], described["motorcycle_right"]
    expected, found = (each.without_adaptivity().match(*pair) for each in (small, large))
    assert len(expected) > 100
    assert (found.matches0 == expected.matches0).float().mean() > 0.99
    assert (found.matching_scores0 - expected.matching_scores0).abs().max() < 0.05


def test_what_grew_is_trained(detector: SuperPointForKeypointDetection, assets: Path, tmp_path: Path) -> None:
    photos = load_photos([assets / name for name in ("chelsea.png", "coffee.png", "astronaut.png")], long_side=320)
    views = ViewSettings(size=(96, 128), difficulty=0.3, max_angle=15, overhang=0)
    settings = MatcherSettings(
        config=_config(detector, 256, 3), grow=True, pairs=4, keypoints=(64, 64), views=views, scene_views=views
    )
    task = MatcherTask(settings, detector, *photos.split(), start=_random(_config(detector, 64)))
    optimizer = torch.optim.AdamW((p for p in task.module.parameters() if p.requires_grad), lr=1e-3)
    losses: list[float] = []
    for index in range(12):
        optimizer.zero_grad()
        loss, _ = task.loss(task.module, task.batch(0, index))
        loss.backward()
        losses.append(loss.item())
        if index == 3:
            still = {
                name: float((parameter.grad == 0).float().mean())
                for name, parameter in task.module.named_parameters()
                if parameter.requires_grad and parameter.grad is not None and parameter.ndim > 1
            }
            assert len(still) > 40
            assert max(still.values()) < 0.01, {name: share for name, share in still.items() if share >= 0.01}
        optimizer.step()
    assert sum(losses[-3:]) < sum(losses[:3])
    task.export(task.module, tmp_path)
    exported = LightGlueForKeypointMatching.from_pretrained(tmp_path)
    assert (exported.config.num_hidden_layers, exported.config.descriptor_dim) == (3, 256)


def test_sizes_that_cannot_be_reached_are_refused(detector: SuperPointForKeypointDetection) -> None:
    small = _random(_config(detector, 64))
    generator = torch.Generator()
    for wrong in (_config(detector, 32), _config(detector, 96), _config(detector, 128, 1)):
        with pytest.raises(ConfigError, match="2 layers, 64 wide, cannot become"):
            grow(small, wrong, generator)
    shared = LightGlueMatcher(dataclasses.replace(_config(detector, 64), num_key_value_heads=1))
    with pytest.raises(ConfigError, match="share keys"):
        grow(shared, _config(detector, 128), generator)
    plain = LightGlueMatcher(dataclasses.replace(_config(detector, 64), attention_bias=False))
    with pytest.raises(ConfigError, match="no biases"):
        grow(plain, _config(detector, 128), generator)


def test_only_a_size_that_is_asked_for_makes_a_matcher_grow() -> None:
    assert find_recipe("finetune", "base").task.grow
    assert not find_recipe("finetune").task.grow
