"""Pictures that repeat themselves, and pairs of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from keyglue.base.errors import ConfigError
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.lightglue.loss import check_labels
from keyglue.training.homographies import ViewSettings
from keyglue.training.lightglue import MatcherSettings, MatcherTask
from keyglue.training.patterns import PatternSettings, make_patterns
from keyglue.training.photos import Photos, load_photos

EVEN = PatternSettings(count=4, pages=0.0, tile=(40, 40), own=(0.0, 0.0), gain=0.0, brightness=0.0, joint=0, shade=0.0)


@pytest.fixture(scope="module")
def photos(assets: Path) -> Photos:
    return load_photos([assets / name for name in ("chelsea.png", "coffee.png", "astronaut.png")], long_side=320)


def _pictures(photos: Photos, settings: PatternSettings, seed: int = 0) -> list[torch.Tensor]:
    patterns = make_patterns(photos, settings, torch.Generator().manual_seed(seed))
    return [levels[0].float() for levels in patterns.pyramids]


def test_tiles_without_anything_of_their_own_are_the_same(photos: Photos) -> None:
    for picture in _pictures(photos, EVEN):
        assert picture.shape == (480, 640)
        assert (picture[:, 40:] - picture[:, :-40]).abs().max() <= 1, "but for rounding"
        assert picture[:40, :40].std() > 1
    first, second = _pictures(photos, EVEN)[:2]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("change", [{"own": (0.5, 0.5)}, {"gain": 0.2}, {"brightness": 12.0}, {"shade": 0.3}])
def test_each_setting_makes_tiles_differ(photos: Photos, change: dict) -> None:
    for picture in _pictures(photos, dataclasses.replace(EVEN, **change)):
        assert (picture[:, 40:] - picture[:, :-40]).abs().mean() > 1


def test_joints_lie_between_tiles(photos: Photos) -> None:
    settings = dataclasses.replace(EVEN, joint=5, count=8)
    gray = [picture for picture in _pictures(photos, settings) if picture[0].max() - picture[0].min() <= 1]
    assert 4 <= len(gray) <= 8, "one width in six is none"
    for picture in gray:
        assert (picture[40] - picture[0]).abs().max() <= 1
        assert (picture[20] - picture[0]).abs().max() > 1


def test_pages_are_ink_on_paper(photos: Photos) -> None:
    small, large = (
        _pictures(photos, PatternSettings(count=6, pages=1.0, shade=0.0, letters=(size, size))) for size in (9, 36)
    )
    changes: list[list[float]] = []
    for pictures in (small, large):
        changes.append([])
        for picture in pictures:
            paper = picture.mode().values.mode().values
            share = ((picture - paper).abs() < 3).float().mean()
            assert 0.4 < share < 0.97
            changes[-1].append(float((picture[:, 1:] - picture[:, :-1]).abs().gt(30).float().mean()))
    assert sum(changes[0]) > 1.5 * sum(changes[1]), "smaller letters have more edges"


def test_the_same_generator_gives_the_same_pictures_and_another_others(photos: Photos) -> None:
    settings = PatternSettings(count=3)
    for one, same, other in zip(*(_pictures(photos, settings, seed) for seed in (0, 0, 1)), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert one.std() > 1


def test_pairs_of_patterns_are_labelled(photos: Photos) -> None:
    detector = SuperPointForKeypointDetection.from_pretrained()
    views = ViewSettings(size=(96, 128), difficulty=0.3, max_angle=15, overhang=0)
    settings = MatcherSettings(
        config=LightGlueConfig(descriptor_dim=64, num_hidden_layers=2, num_attention_heads=2),
        pairs=4,
        keypoints=(64, 64),
        views=views,
        scene_views=views,
        patterns=1.0,
        pattern=PatternSettings(count=4),
        scenes=0.0,
        unrelated=0.0,
    )
    task = MatcherTask(settings, detector, *photos.split())
    batch = task.batch(0, 0)
    for labels in batch.labels:
        check_labels(*labels)
    assert sum(int((labels[0] >= 0).sum()) for labels in batch.labels) > 40
    plain = MatcherTask(dataclasses.replace(settings, patterns=0.0), detector, *photos.split()).batch(0, 0)
    assert not torch.equal(batch.pairs[0][0].keypoints, plain.pairs[0][0].keypoints)
    with pytest.raises(ConfigError, match="rooms and patterns"):
        dataclasses.replace(settings, rooms=0.1)
