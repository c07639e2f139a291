"""Scores on held-out photographs, always on the same pairs of views, while training goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import Self

from keyglue.base.types import Features, Matches
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.nearest_neighbor import match_nearest
from keyglue.training.homographies import ViewSettings, between_views, random_views, render_views, warp
from keyglue.training.labels import labels_from_homography
from keyglue.training.photometric import PhotometricSettings, change_light
from keyglue.training.photos import Photos
from keyglue.training.task import generator_for

_SEED = 20_240_607
_MOST_PAIRS, _PAIRS_OF_A_PHOTO = 24, 8
CORRECT = 3.0


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutPairs:
    """Pairs of views with the homographies between them.

    Attributes:
        images: (P, 2, 1, h, w) values from 0 to 1.
        H: (P, 3, 3) float64, from pixels of the first view to pixels of the second.
    """

    images: Tensor
    H: Tensor

    @classmethod
    def of_photos(cls, photos: Photos, views: ViewSettings, light: PhotometricSettings) -> Self:
        """Make pairs of views of photographs, the same ones each time: 24, or fewer of very few photographs."""
        pairs = min(_MOST_PAIRS, _PAIRS_OF_A_PHOTO * len(photos))
        generator = generator_for(_SEED)
        chosen = [index % len(photos) for index in range(pairs)]
        drawn = random_views(photos.sizes(chosen), 2, views, generator)
        index = [i for i in chosen for _ in range(2)]
        clean, _ = render_views(photos, index, drawn.flatten(0, 1), views.size, torch.zeros(2 * pairs))
        images = change_light(clean, light, generator)
        return cls(images.unflatten(0, (pairs, 2)), between_views(drawn[:, 0], drawn[:, 1]))


@dataclasses.dataclass
class MatchCounts:
    """Sums over pairs from which precision and recall follow."""

    matches: int = 0
    correct: int = 0
    within_1px: int = 0
    true: int = 0
    found: int = 0
    points: int = 0

    def add(self, features0: Features, features1: Features, matches: Matches, H: Tensor) -> None:
        """Count the matches of one pair; H (3, 3) maps image 0 to image 1."""
        labels0, labels1 = labels_from_homography(features0, features1, H)
        index = matches.indices
        mapped = warp(H.to(features0.device), features0.keypoints.double())[index[:, 0]]
        distance = (mapped - features1.keypoints[index[:, 1]]).norm(dim=1).nan_to_num(torch.inf)
        correct = distance < CORRECT
        self.matches += len(index)
        self.correct += int(correct.sum())
        self.within_1px += int((distance < 1).sum())
        self.true += int((labels0 >= 0).sum())
        self.found += int((correct & (labels0[index[:, 0]] >= 0)).sum())
        back = warp(torch.linalg.inv(H).to(features1.device), features1.keypoints.double())
        there = warp(H.to(features0.device), features0.keypoints.double())
        self.points += min(_inside(there, features1.image_size), _inside(back, features0.image_size))
        del labels1

    def scores(self) -> dict[str, float]:
        """Return the scores.

        ``precision`` and ``precision_1px`` are the shares of matches within 3 px and 1 px of the truth; ``recall`` is
        the share of keypoints with a true match whose match is right; ``repeatability`` is the share of the keypoints
        that the other image could repeat which it does.
        """
        return {
            "precision": self.correct / max(self.matches, 1),
            "recall": self.found / max(self.true, 1),
            "precision_1px": self.within_1px / max(self.matches, 1),
            "repeatability": self.true / max(self.points, 1),
        }


def _inside(points: Tensor, size: tuple[int, int]) -> int:
    height, width = size
    limit = points.new_tensor([width, height])
    return int(((points > -0.5) & (points < limit - 0.5)).all(dim=1).sum())


def score_pairs(
    pairs: HeldOutPairs,
    describe: Callable[[Tensor], list[Features]],
    match: Callable[[Features, Features], Matches],
) -> dict[str, float]:
    """Score a way of describing (images (2, 1, h, w) to Features) and one of matching."""
    counts = MatchCounts()
    with torch.no_grad():
        for images, H in zip(pairs.images, pairs.H, strict=True):
            features0, features1 = describe(images)
            counts.add(features0, features1, match(features0, features1), H)
    return counts.scores()


def detector_scores(detector: SuperPointForKeypointDetection, pairs: HeldOutPairs) -> dict[str, float]:
    """Score a detector with mutual nearest neighbours of its descriptors, 512 keypoints an image."""
    height, width = pairs.images.shape[-2:]
    config = detector.config
    detector.config = config.replace(max_keypoints=512, keypoint_threshold=0.0)
    try:
        return score_pairs(
            pairs,
            lambda images: detector.extract_batch(images, [(height, width)] * 2),
            lambda first, second: match_nearest(first.descriptors, second.descriptors),
        )
    finally:
        detector.config = config
