"""Where the matcher's pairs come from: groups of views that show the same thing, with the true matches between them.

A group is drawn, rendered and described once; all its pairs are used, then it is replaced by a new one. Fresh views
are worth more than more passes over the same ones.

Shapes: V views a group, h w pixels. Frame: pixels of each view.
"""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.base.types import Features
from keyglue.keypoints.detector import KeypointDetector
from keyglue.training.homographies import (
    ViewSettings,
    between_views,
    random_views,
    render_views,
    view_scales,
    warp,
)
from keyglue.training.labels import Labels, homography_labels, labels_from_depth
from keyglue.training.photometric import PhotometricSettings, change_light
from keyglue.training.photos import Photos
from keyglue.training.rooms import RoomSettings, RoomViews, random_room
from keyglue.training.scenes import FEWEST_SHARED, Scene

POSITIVE = 3.0
# Beyond this a keypoint has no match: homographies are exact, depth and poses are not.
NEGATIVE_EXACT, NEGATIVE = 3.0, 5.0
# With the settings' own values one room in fifty is drawn again, where two views are drawn.
_MOST_ROOMS = 100


@dataclasses.dataclass(frozen=True)
class Plan:
    """A group of views before it is described.

    Attributes:
        images: (V, 1, h, w) what the views show, float32 from 0 to 1.
        pairs: Views (a, b) that belong together.
        label: Labels of a pair of views from their numbers and Features.
    """

    images: Tensor
    pairs: list[tuple[int, int]]
    label: Callable[[int, int, Features, Features], Labels]


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of views that is described.

    Attributes:
        plan: What the views are.
        features: Features of each view.
    """

    plan: Plan
    features: list[Features]

    def labelled(self, number: int, most: int) -> tuple[Features, Features, Labels]:
        """Return the best ``most`` keypoints of one of the group's pairs, with their labels.

        Args:
            number: Which pair; numbers beyond the last begin anew.
            most: Keypoints an image.
        """
        first, second = self.plan.pairs[number % len(self.plan.pairs)]
        features0, features1 = (strongest(self.features[view], most) for view in (first, second))
        return features0, features1, self.plan.label(first, second, features0, features1)


class Source(ABC):
    """Something that groups of views are drawn from."""

    @abstractmethod
    def draw(self, views: int, generator: torch.Generator) -> Plan:
        """Draw and render a group of at most ``views`` views."""


class PhotoSource(Source):
    """Views of single photographs, related by homographies.

    Args:
        photos: The photographs.
        settings: How the views differ.
    """

    def __init__(self, photos: Photos, settings: ViewSettings) -> None:
        self.photos, self.settings = photos, settings

    def draw(self, views: int, generator: torch.Generator) -> Plan:
        """Draw views of one photograph."""
        index = [int(torch.randint(len(self.photos), (), generator=generator))] * views
        drawn = random_views(self.photos.sizes(index[:1]), views, self.settings, generator)[0]

        def label(first: int, second: int, features0: Features, features1: Features) -> Labels:
            H = between_views(drawn[first], drawn[second]).to(features0.device, torch.float32)
            return homography_labels(
                features0.keypoints, features1.keypoints, H, positive=POSITIVE, negative=NEGATIVE_EXACT
            )

        pairs = _shuffled(itertools.combinations(range(views), 2), generator)
        return Plan(_rendered(self.photos, index, drawn, self.settings.size, generator), pairs, label)


class SceneSource(Source):
    """Frames of scenes that see the same things, each through a view of its own.

    Args:
        scenes: The scenes.
        settings: How a view differs from its frame; mild ones will do, as the frames differ already.

    Raises:
        InputError: No scene has a pair of frames that see the same things.
    """

    def __init__(self, scenes: list[Scene], settings: ViewSettings) -> None:
        self.scenes, self.settings = [scene for scene in scenes if scene.pairs], settings
        if not self.scenes:
            raise InputError("no two frames of the scenes see the same things.")

    def draw(self, views: int, generator: torch.Generator) -> Plan:
        """Draw a pair of frames of a scene and more frames that see the same things."""
        scene = self.scenes[int(torch.randint(len(self.scenes), (), generator=generator))]
        start = scene.pairs[int(torch.randint(len(scene.pairs), (), generator=generator))]
        near = [pair for pair in scene.pairs if set(pair) & set(start) and pair != start]
        frames = list(start)
        for pair in _shuffled(near, generator):
            frames += [frame for frame in pair if frame not in frames]
            if len(frames) >= views:
                break
        frames = frames[:views]
        related = set(scene.pairs)
        pairs = [
            (a, b)
            for a, b in itertools.combinations(range(len(frames)), 2)
            if (frames[a], frames[b]) in related or (frames[b], frames[a]) in related
        ]
        drawn = random_views(scene.frames.sizes(frames), 1, self.settings, generator)[:, 0]
        scales = view_scales(drawn, self.settings.size)

        def label(first: int, second: int, features0: Features, features1: Features) -> Labels:
            # In pixels of the frames; a view's pixel may be more or less than one of them.
            scale = float((scales[first] * scales[second]).sqrt())
            placed0, placed1 = (
                dataclasses.replace(
                    features,
                    keypoints=warp(drawn[view].to(features.device), features.keypoints.double()).nan_to_num(-1e6),
                    image_size=tuple(scene.frames.pyramids[frames[view]][0].shape),
                )
                for view, features in ((first, features0), (second, features1))
            )
            return scene.labels(frames[first], frames[second], placed0, placed1, POSITIVE * scale, NEGATIVE * scale)

        pairs = _shuffled(pairs, generator)
        return Plan(_rendered(scene.frames, frames, drawn, self.settings.size, generator), pairs, label)


class RoomSource(Source):
    """Views of rooms made up at random, with photographs on their walls.

    Args:
        photos: The photographs.
        size: Height and width of the views.
        settings: What rooms are like.
    """

    def __init__(self, photos: Photos, size: tuple[int, int], settings: RoomSettings) -> None:
        self.photos, self.size, self.settings = photos, size, settings

    def draw(self, views: int, generator: torch.Generator) -> Plan:
        """Draw rooms until one has two views that see the same things.

        Args:
            views: Number of views, at least two.
            generator: Source of randomness, on the CPU.

        Raises:
            InputError: There are fewer than two views, or with these settings no two views ever see the same things.
        """
        if views < 2:
            raise InputError(f"a group needs two views at the least, got {views}.")
        room, pairs = self._room(views, generator)

        def label(first: int, second: int, features0: Features, features1: Features) -> Labels:
            R, t = room.motion(first, second)
            return labels_from_depth(
                features0,
                features1,
                room.depths[first],
                room.depths[second],
                room.K[first],
                room.K[second],
                R,
                t,
                positive=POSITIVE,
                negative=NEGATIVE,
            )

        return Plan(room.images, _shuffled(pairs, generator), label)

    def _room(self, views: int, generator: torch.Generator) -> tuple[RoomViews, list[tuple[int, int]]]:
        """Return a room and the pairs of its views that see the same things, at least one."""
        for _ in range(_MOST_ROOMS):
            room = random_room(self.photos, views, self.size, self.settings, generator)
            pairs = [pair for pair in itertools.combinations(range(views), 2) if room.overlap(*pair) >= FEWEST_SHARED]
            if pairs:
                return room, pairs
        raise InputError(
            f"in {_MOST_ROOMS} rooms drawn with {self.settings} no two of {views} views see the same things. Let the "
            "cameras stand closer together (spread) or see more (field_of_view)."
        )


def strongest(features: Features, most: int) -> Features:
    """Return the best ``most`` keypoints; detectors give the best first."""
    return features if len(features) <= most else features.select(torch.arange(most, device=features.device))


def _rendered(
    photos: Photos, index: list[int], views: Tensor, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Return views (V, 1, h, w) of photographs; what lies outside is black in half of them and gray in the others."""
    fill = torch.rand(len(index), generator=generator) * (torch.rand(len(index), generator=generator) < 0.5)
    return render_views(photos, index, views, size, fill)[0]


def describe(
    plan: Plan,
    detector: KeypointDetector,
    light: PhotometricSettings,
    generator: torch.Generator,
) -> Group:
    """Change the light of a group's views and describe them.

    Args:
        plan: The group.
        detector: Finds and describes keypoints.
        light: Photometric changes.
        generator: Source of randomness, on the CPU.
    """
    height, width = plan.images.shape[-2:]
    with torch.no_grad():
        images = change_light(plan.images, light, generator)
        features = detector.extract_batch(images, [(height, width)] * len(images))
    return Group(plan, features)


def _shuffled(items: Iterable[tuple[int, int]], generator: torch.Generator) -> list[tuple[int, int]]:
    pairs = list(items)
    return [pairs[i] for i in torch.randperm(len(pairs), generator=generator).tolist()]
