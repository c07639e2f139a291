"""Training LightGlue on the Features of a frozen detector: on homographies, on scenes, and its confidence heads."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from keyglue.base.errors import ConfigError
from keyglue.base.types import Features, Matches
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.lightglue.lightglue import FeaturePair, LightGlueMatcher
from keyglue.matching.lightglue.loss import UNMATCHABLE, matching_losses
from keyglue.matching.nearest_neighbor import match_nearest
from keyglue.training.export import write_joint_model
from keyglue.training.grow import grow
from keyglue.training.homographies import ViewSettings
from keyglue.training.initialise import (
    close_projection,
    never_confident,
    open_projection,
    share_cross_projections,
    start_as_nearest_neighbours,
    start_random,
)
from keyglue.training.labels import Labels
from keyglue.training.patterns import PatternSettings, make_patterns
from keyglue.training.photometric import PhotometricSettings
from keyglue.training.photos import Photos
from keyglue.training.precision import autocast
from keyglue.training.rooms import RoomSettings
from keyglue.training.scenes import Scene
from keyglue.training.sources import Group, PhotoSource, RoomSource, SceneSource, Source, describe, strongest
from keyglue.training.task import Task, generator_for
from keyglue.training.validation import HeldOutPairs, score_pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatcherSettings:
    """What LightGlue is trained on.

    Attributes:
        config: Settings of the matcher; the detector's are taken from the detector itself.
        start: Weights to begin with where no model is given: "nearest" (step 0 equals mutual nearest neighbours) or
            "random".
        grow: Whether a smaller model to begin with grows to the size of ``config``; it stays as it is unless so.
        stage: "matching" trains all but the confidence heads, "confidence" the confidence heads alone.
        pairs: Pairs a batch.
        keypoints: Fewest and most keypoints an image; drawn for each batch, few more often than many, which cost more.
        views: How the views of a photograph differ.
        scene_views: How views differ from the frames of scenes.
        light: Photometric changes.
        views_per_group: Views that are described together, of which all pairs are used.
        scenes: Share of the pairs that come from scenes, where there are any.
        rooms: Share of the pairs that show rooms made up at random with photographs on their walls.
        room: What these are like.
        patterns: Share of the pairs that show pictures which repeat themselves, made of the photographs.
        pattern: What these are like.
        unrelated: Share of the pairs that show two different things, so that "no match" is learned.
        first_stop: Layer, counted from 1, after which the first pairs may stop: the confidence heads before it never
            are. Unrelated images seem settled after few layers, with false matches that later ones drop.
    """

    config: LightGlueConfig = dataclasses.field(default_factory=LightGlueConfig)
    start: Literal["nearest", "random"] = "nearest"
    grow: bool = False
    stage: Literal["matching", "confidence"] = "matching"
    pairs: int = 32
    keypoints: tuple[int, int] = (256, 256)
    views: ViewSettings = dataclasses.field(default_factory=lambda: ViewSettings(size=(240, 320), zoom=2.0))
    scene_views: ViewSettings = dataclasses.field(
        default_factory=lambda: ViewSettings(
            size=(240, 320), difficulty=0.2, max_angle=15, region=(0.7, 1.0), overhang=0
        )
    )
    light: PhotometricSettings = dataclasses.field(default_factory=PhotometricSettings)
    views_per_group: int = 6
    scenes: float = 0.5
    rooms: float = 0.0
    room: RoomSettings = dataclasses.field(default_factory=RoomSettings)
    patterns: float = 0.0
    pattern: PatternSettings = dataclasses.field(default_factory=PatternSettings)
    unrelated: float = 0.06
    first_stop: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.keypoints[0] <= self.keypoints[1] or self.pairs < 1 or self.views_per_group < 2:
            raise ConfigError("keypoints must be (fewest, most) of at least 2, pairs at least 1, views at least 2.")
        if self.views.size != self.scene_views.size:
            raise ConfigError("views of photographs and of scenes must be of one size.")
        if self.first_stop < 1:
            raise ConfigError(f"first_stop must be at least 1, got {self.first_stop}.")
        shares = (self.scenes, self.rooms, self.patterns)
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError("the shares of scenes, rooms and patterns must be at least 0 and at most 1 together.")


@dataclasses.dataclass(frozen=True)
class MatchBatch:
    """Pairs of Features with their labels."""

    pairs: list[FeaturePair]
    labels: list[Labels]


class MatcherTask(Task):
    """LightGlue on the Features of one detector.

    Args:
        settings: What to train on.
        detector: The detector, frozen, on the device of training.
        photos: Photographs to train on, on the device of training.
        held_out: Photographs to validate on.
        scenes: Scenes to train on, beside the photographs.
        seed: Of all randomness.
        start: Matcher to go on from; a new one is made as ``settings.start`` says unless given.
    """

    def __init__(
        self,
        settings: MatcherSettings,
        detector: SuperPointForKeypointDetection,
        photos: Photos,
        held_out: Photos,
        *,
        scenes: list[Scene] | None = None,
        seed: int = 0,
        start: LightGlueMatcher | None = None,
    ) -> None:
        self.settings, self.seed = settings, seed
        self.pairs_per_batch = settings.pairs
        self.export_detector = detector
        most = settings.keypoints[1]
        self.detector = copy.deepcopy(detector).to(photos.device).eval()
        self.detector.config = detector.config.replace(max_keypoints=most, keypoint_threshold=0.0)
        self.sources = _sources(settings, photos, scenes or [], seed)
        self._streams: dict[int, _Stream] = {}
        self._lock = threading.Lock()
        matcher = self._new_matcher(detector) if start is None else _begun(start, settings, seed)
        share_cross_projections(matcher, new=start is None)
        self.module = _prepared(matcher, settings).to(photos.device)
        self.held_out = _describe_held_out(held_out, settings, self.detector)

    def _new_matcher(self, detector: SuperPointForKeypointDetection) -> LightGlueMatcher:
        """Make a matcher as ``settings.start`` says."""
        settings = self.settings
        matcher = LightGlueMatcher(settings.config.replace(keypoint_detector_config=detector.config))
        generator = generator_for(self.seed, -1)
        if settings.start == "nearest":
            group = self._stream(-1).group(0, 0)
            sample = torch.cat([features.descriptors for features in group.features]).cpu()
            start_as_nearest_neighbours(matcher, sample, generator)
        else:
            start_random(matcher, generator)
        return matcher

    def batch(self, stream: int, index: int) -> MatchBatch:
        """Take one pair of each of several groups of views, a few of them mixed up so that nothing matches."""
        settings = self.settings
        generator = generator_for(self.seed, stream, index)
        rows = self._stream(stream).rows(index)
        fewest, most = settings.keypoints
        # The same in all streams: they wait for each other after each step.
        lot = float(torch.rand((), generator=generator_for(self.seed, -3, index), dtype=torch.float64))
        count = fewest + int((most - fewest + 1) * lot**2)
        pairs: list[FeaturePair] = []
        labels: list[Labels] = []
        for number, (group, place) in enumerate(rows):
            if float(torch.rand((), generator=generator)) < settings.unrelated and len(rows) > 1:
                features0, features1 = (strongest(rows[n][0].features[0], count) for n in (number, number - 1))
                label = (_unmatchable(features0), _unmatchable(features1))
            else:
                features0, features1, label = group.labelled(place, count)
            pairs.append((features0, features1))
            labels.append(label)
        return MatchBatch(pairs, labels)

    def _stream(self, stream: int) -> _Stream:
        with self._lock:
            if stream not in self._streams:
                self._streams[stream] = _Stream(self, stream)
            return self._streams[stream]

    def loss(self, module: nn.Module, batch: MatchBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch."""
        matcher = cast("LightGlueMatcher", module)
        confidence = self.settings.stage == "confidence"
        with autocast(matcher.device):
            losses = matching_losses(matcher, batch.pairs, batch.labels, confidence=confidence)
        if confidence and losses.confidence is not None:
            return losses.confidence, {"assignment": losses.assignment}
        return losses.assignment, {}

    def plain(self, module: nn.Module) -> LightGlueMatcher:
        """Return a copy of the matcher in the published form."""
        matcher = copy.deepcopy(cast("LightGlueMatcher", module)).eval()
        close_projection(matcher)
        return matcher

    def baseline(self) -> dict[str, float]:
        """Score mutual nearest neighbours on the same keypoints."""
        return self._scores(lambda first, second: match_nearest(first.descriptors, second.descriptors))

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Score the matches on held-out photographs."""
        return self._scores(self.plain(module).match)

    def _scores(self, match: Callable[[Features, Features], Matches]) -> dict[str, float]:
        pairs, features = self.held_out
        described = iter(features)
        return score_pairs(pairs, lambda _: list(next(described)), match)

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write detector and matcher as one folder that ``from_pretrained`` loads, here and in transformers."""
        write_joint_model(folder, self.export_detector, self.plain(module))


class _Stream:
    """The groups of one sequence of batches: as many as a batch has pairs, renewed one after the other."""

    def __init__(self, task: MatcherTask, number: int) -> None:
        self._task, self._number = task, number
        self._groups: dict[int, tuple[int, Group]] = {}
        self._lock = threading.Lock()
        views = task.settings.views_per_group
        self._rounds = views * (views - 1) // 2

    def rows(self, index: int) -> list[tuple[Group, int]]:
        """Return the group of each pair of batch ``index``, and which of its pairs it gives."""
        out: list[tuple[Group, int]] = []
        count = self._task.settings.pairs
        with self._lock:
            for slot in range(count):
                # Shifted against each other, so that each batch has a few new groups and none has all.
                turn = index + slot * self._rounds // count
                generation = turn // self._rounds
                known = self._groups.get(slot)
                if known is None or known[0] != generation:
                    known = (generation, self.group(slot, generation))
                    self._groups[slot] = known
                out.append((known[1], turn % self._rounds))
        return out

    def group(self, slot: int, generation: int) -> Group:
        """Draw and describe a group: a function of its place alone."""
        task, settings = self._task, self._task.settings
        generator = generator_for(task.seed, self._number, slot, generation, 1)
        lot = float(torch.rand((), generator=generator))
        limits = itertools.accumulate(share for share, _ in task.sources)
        chosen = sum(lot >= limit for limit in limits)
        _, source = task.sources[min(chosen, len(task.sources) - 1)]
        plan = source.draw(settings.views_per_group, generator)
        return describe(plan, task.detector, settings.light, generator)


def _sources(settings: MatcherSettings, photos: Photos, scenes: list[Scene], seed: int) -> list[tuple[float, Source]]:
    """Return where groups of views come from, each with its share."""
    sources: list[tuple[float, Source]] = [(1.0, PhotoSource(photos, settings.views))]
    if scenes and settings.scenes > 0:
        sources.append((settings.scenes, SceneSource(scenes, settings.scene_views)))
    if settings.rooms > 0:
        sources.append((settings.rooms, RoomSource(photos, settings.views.size, settings.room)))
    if settings.patterns > 0:
        patterns = make_patterns(photos, settings.pattern, generator_for(seed, -5))
        sources.append((settings.patterns, PhotoSource(patterns, settings.views)))
    sources[0] = (1.0 - sum(share for share, _ in sources[1:]), sources[0][1])
    return sources


def _begun(start: LightGlueMatcher, settings: MatcherSettings, seed: int) -> LightGlueMatcher:
    """Return a trained matcher to go on from, larger where that is wanted."""
    matcher = grow(start, settings.config, generator_for(seed, -4)) if settings.grow else start
    open_projection(matcher)
    return matcher


def _prepared(matcher: LightGlueMatcher, settings: MatcherSettings) -> LightGlueMatcher:
    """Return the matcher in training mode, with those parameters trainable that the stage trains."""
    heads = set(matcher.token_confidence.parameters())
    if settings.stage == "confidence":
        trained = set(matcher.token_confidence[settings.first_stop - 1 :].parameters())
        if not trained:
            raise ConfigError(
                f"a matcher of {matcher.config.num_hidden_layers} layers has no confidence heads to train from layer "
                f"{settings.first_stop} on."
            )
        never_confident(matcher, settings.first_stop - 1)
        if all(bool((p == 0).all()) for p in trained if p.ndim == 2):
            with torch.no_grad():
                for parameter in trained:
                    parameter.zero_()
    else:
        # Fourier frequencies that are spread well stay as they are.
        trained = set(matcher.parameters()) - heads - set(matcher.positional_encoder.parameters())
    for parameter in matcher.parameters():
        parameter.requires_grad_(parameter in trained)
    return matcher.train()


def _unmatchable(features: Features) -> Tensor:
    """Return labels (N,) that say that no keypoint has a match."""
    return torch.full((len(features),), UNMATCHABLE, device=features.device)


def _describe_held_out(
    photos: Photos, settings: MatcherSettings, detector: SuperPointForKeypointDetection
) -> tuple[HeldOutPairs, list[tuple[Features, Features]]]:
    """Make the pairs to validate on and describe them, once."""
    pairs = HeldOutPairs.of_photos(photos, settings.views, settings.light)
    size = settings.views.size
    with torch.no_grad():
        described = [detector.extract_batch(images, [size] * 2) for images in pairs.images]
    return pairs, [(first, second) for first, second in described]
