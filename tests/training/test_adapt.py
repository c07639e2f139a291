"""A trained matcher is fitted to another detector's descriptors."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from keyglue.base.errors import ConfigError
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.lightglue.lightglue import LightGlueMatcher
from keyglue.training import adapt
from keyglue.training.adapt import adapt_projection
from keyglue.training.homographies import ViewSettings
from keyglue.training.photos import load_photos
from keyglue.training.recipes import find_recipe
from keyglue.training.run import RunOptions, run_recipe

VIEWS = ViewSettings(size=(96, 128))


@pytest.fixture(autouse=True)
def few_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt, "_VIEWS", 16)


@pytest.fixture
def turned(small: LightGlueForKeypointMatching) -> SuperPointForKeypointDetection:
    """The bundled detector with its descriptors turned in their space: as good, and of no use to its matcher."""
    detector = copy.deepcopy(small.keypoint_detector)
    turn, _ = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        last = detector.descriptor_decoder.conv_descriptor_b
        last.weight.copy_((turn @ last.weight.flatten(1)).view_as(last.weight))
        last.bias.copy_(turn @ last.bias)
    return detector


def test_descriptors_that_are_only_turned_are_turned_back(
    small: LightGlueForKeypointMatching, turned: SuperPointForKeypointDetection, assets: Path
) -> None:
    matcher = LightGlueMatcher.from_pretrained(dtype="float32")
    photos = load_photos([assets / "coffee.png", assets / "chelsea.png", assets / "rocket.jpg"])
    explained = adapt_projection(matcher, small.keypoint_detector, turned, photos, VIEWS)
    assert explained > 0.99
    image = photos.pyramids[0][1][None] / 255
    views = [image, image.flip(1, 2)[:, 10:]]
    with torch.no_grad():
        before = [small.keypoint_detector.extract(view) for view in views]
        after = [turned.extract(view) for view in views]
        projected = [small.input_projection(f.descriptors) for f in before]
        for own, features in zip(projected, after, strict=True):
            error = matcher.input_projection(features.descriptors) - own
            assert error.norm() < 0.1 * own.norm()


def test_the_run_fits_a_start_to_the_detector_it_is_given(
    turned: SuperPointForKeypointDetection, assets: Path, tmp_path: Path
) -> None:
    turned.save_pretrained(tmp_path / "detector")
    options = RunOptions(steps=1, pairs=2, device="cpu", detector=str(tmp_path / "detector"))
    recipe = find_recipe("finetune")
    lines: list[str] = []
    run_recipe(recipe, [assets / "coffee.png"], tmp_path / "run", options, show=lines.append)
    model = LightGlueForKeypointMatching.from_pretrained(tmp_path / "run" / "model")
    own = model.keypoint_detector.descriptor_decoder.conv_descriptor_b.weight
    assert (own - turned.descriptor_decoder.conv_descriptor_b.weight).abs().max() < 1e-3
    start = next(line for line in lines if line.startswith("step 0"))
    assert float(start.split("precision ")[1].split("%")[0]) > 50, "the start is as good as with its own detector"


def test_matchers_that_cannot_be_fitted_are_refused(
    small: LightGlueForKeypointMatching, turned: SuperPointForKeypointDetection, assets: Path
) -> None:
    photos = load_photos([assets / "coffee.png"])
    wide = LightGlueMatcher(LightGlueConfig(num_hidden_layers=1))
    with pytest.raises(ConfigError, match="takes descriptors as they are"):
        adapt_projection(wide, small.keypoint_detector, turned, photos, VIEWS)
    short = SuperPointForKeypointDetection(turned.config.replace(descriptor_decoder_dim=64))
    matcher = LightGlueMatcher.from_pretrained()
    weight = matcher.input_projection.weight.clone()
    assert isinstance(matcher.input_projection, nn.Linear)
    with pytest.raises(ConfigError, match="256 and 64"):
        adapt_projection(matcher, small.keypoint_detector, short, photos, VIEWS)
    assert torch.equal(weight, matcher.input_projection.weight)
