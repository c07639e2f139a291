"""Matching two images whatever their scales and whichever way up they are.

Descriptors hold to some 45 degrees of rotation and a factor of 1.5 in size. So images are first matched as they are.
Where they then do not seem to show the same, turns and sizes are tried on small copies. What the two have in common is
then cut out, brought to one size and the same way up, and matched again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyglue.base.devices import to_device
from keyglue.base.errors import InputError
from keyglue.base.types import Features, Matches
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.probability import STRONG, match_probability
from keyglue.pipelines.views import (
    Float,
    MaskedImage,
    Similarity,
    Size,
    View,
    common_parts,
    find_similarity,
)

# Long side of the copies on which turns and sizes are tried, which sizes, and how many of the best are looked into.
_COPY = 640
_ZOOMS = (1.0, 2.0, 0.5, 4.0, 0.25)
_TURNS = (0.0, 90.0, 180.0, 270.0)
_CANDIDATES = 3
# Images match for sure when they probably show the same; without calibration, when such a share of keypoints does.
_SURE, _SURE_SHARE = 0.9, 0.05
# Matches that have to agree on a similarity.
_FEWEST = 8
# Up to these views count as alike: nothing is gained by turning or resizing.
_ALIKE_DEGREES, _ALIKE_ZOOM = 25.0, 1.4
# Turns nearer than this to a quarter turn are one, which moves pixels without blurring them; sizes that differ by less
# are one size.
_SNAP_DEGREES, _SNAP_ZOOM = 8.0, 1.15
# How many times larger than it is a part may be shown.
_LARGEST = 2.0


class Look(NamedTuple):
    """An image as the model saw it: the view, and Features in pixels of that view."""

    view: View
    features: Features

    @property
    def keypoints(self) -> NDArray[np.floating]:
        """(N, 2) keypoints in pixels of the image."""
        return self.view.to_image(self.features.keypoints.detach().cpu().numpy())


class Outcome(NamedTuple):
    """How two images matched best.

    Args:
        look0: Image 0.
        look1: Image 1.
        matches: What matched.
        zoom: How many times larger things were taken to be in image 0 than in image 1, with both at the size at which
            the model sees whole images.
        milliseconds: Time of "describe" and "match", of all that was tried.
    """

    look0: Look
    look1: Look
    matches: Matches
    zoom: float
    milliseconds: dict[str, float]

    @property
    def degrees(self) -> float:
        """How far image 1 was turned counter-clockwise."""
        return self.look1.view.degrees

    @property
    def points(self) -> tuple[Float, Float]:
        """(S, 2) matched points of image 0 and of image 1."""
        index = self.matches.indices.cpu().numpy()
        points0, points1 = self.look0.keypoints[index[:, 0]], self.look1.keypoints[index[:, 1]]
        return points0.astype(np.float64), points1.astype(np.float64)

    @property
    def support(self) -> float:
        """Sum of the matches' scores."""
        return float(self.matches.scores.sum())


class ViewSearch:
    """Finds the views of two images that match best.

    Args:
        model: Detector and matcher.
        prepare: Resizes pixels (C, h, w) from 0 to 255 to a height and width and makes them what the model takes.
        seen_size: Gives the height and width at which the model sees an image of a height and width.
        degrees: How far image 1 is turned; None to find out.
        zoom: How many times larger things are in image 0; None to find out.
    """

    def __init__(
        self,
        model: LightGlueForKeypointMatching,
        prepare: Callable[[Tensor, Size], Tensor],
        seen_size: Callable[[Size], Size],
        *,
        degrees: float | None = None,
        zoom: float | None = None,
    ) -> None:
        self.model, self._prepare, self._seen_size = model, prepare, seen_size
        self.degrees, self.zoom = degrees, zoom
        self._spent = {"describe": 0.0, "match": 0.0}

    def run(self, image0: MaskedImage, image1: MaskedImage, known: tuple[Features, Features] | None = None) -> Outcome:
        """Match two images.

        Args:
            image0: Image 0.
            image1: Image 1.
            known: Features of both as they are, if there are any; None to compute them.

        Raises:
            InputError: Known features are those of images of another size.
        """
        self._spent = {"describe": 0.0, "match": 0.0}
        images = (image0, image1)
        degrees, zoom = self.degrees or 0.0, self.zoom or 1.0
        views = self._whole(images, zoom, degrees)
        if known is None or degrees or zoom != 1:
            looks = [self._look(*pair) for pair in zip(images, views, strict=True)]
        else:
            looks = [Look(view, features) for view, features in zip(views, known, strict=True)]
            for number, look in enumerate(looks):
                if look.features.image_size != look.view.size:
                    raise InputError(
                        f"image {number} is seen with height and width {look.view.size}, but its features are of an "
                        f"image of {look.features.image_size}. Give those that extract returned for it."
                    )
        plain = self._match(looks, zoom)
        if self.degrees is not None and self.zoom is not None:
            return plain
        sure = self._sure(plain)
        similarity = _agreement(plain, images) if sure else None
        points = plain.points
        if similarity is None:
            found = self._try_out(images)
            if found is None:
                return plain
            similarity, points = found
        elif self._alike(similarity, plain):
            return plain
        closer = self._closer(images, similarity, points)
        better = self._sure(closer) >= sure and closer.support > plain.support
        return (closer if better else plain)._replace(milliseconds=self._spent)

    def _whole(
        self, images: tuple[MaskedImage, MaskedImage], zoom: float, degrees: float, longest: float = math.inf
    ) -> tuple[View, View]:
        """Return views of the whole images, no longer than given, the one shrunk that shows things larger."""
        seen = [self._seen_size(image.size) for image in images]
        sizes = [_shrunk(size, max(1.0, max(size) / longest)) for size in seen]
        return (
            View.whole(images[0].size, _shrunk(sizes[0], max(zoom, 1.0))),
            View.whole(images[1].size, _shrunk(sizes[1], max(1 / zoom, 1.0)), degrees),
        )

    def _look(self, image: MaskedImage, view: View) -> Look:
        start = time.perf_counter()
        pixels, mask = view.render(image, self._prepare)
        look = Look(view, self.model.extract(to_device(pixels, self.model.device), mask=mask))
        self._spent["describe"] += 1000 * (time.perf_counter() - start)
        return look

    def _match(self, looks: Iterable[Look], zoom: float) -> Outcome:
        look0, look1 = looks
        start = time.perf_counter()
        with torch.no_grad():
            matches = self.model.match_pairs([(look0.features, look1.features)])[0]
        self._spent["match"] += 1000 * (time.perf_counter() - start)
        return Outcome(look0, look1, matches, zoom, self._spent)

    def _sure(self, outcome: Outcome) -> bool:
        probability = match_probability(outcome.matches, self.model.config.match_probability)
        if probability is not None:
            return probability > _SURE
        strong = int((outcome.matches.matching_scores0 > STRONG).sum())
        return strong > _SURE_SHARE * min(len(outcome.look0.features), len(outcome.look1.features))

    def _try_out(self, images: tuple[MaskedImage, MaskedImage]) -> tuple[Similarity, tuple[Float, Float]] | None:
        """Return the similarity that most matches agree on, and the matches, of all turns and sizes of small copies."""
        zooms = _ZOOMS if self.zoom is None else (self.zoom,)
        turns = _TURNS if self.degrees is None else (self.degrees,)
        known: dict[tuple[int, View], Look] = {}
        tried: list[Outcome] = []
        for turn in turns:
            for zoom in zooms:
                looks: list[Look] = []
                for number, view in enumerate(self._whole(images, zoom, turn, _COPY)):
                    if (number, view) not in known:
                        known[number, view] = self._look(images[number], view)
                    looks.append(known[number, view])
                tried.append(self._match(looks, zoom))
        tried.sort(key=lambda outcome: -outcome.support)
        best: tuple[Similarity, tuple[Float, Float]] | None = None
        for outcome in tried[:_CANDIDATES]:
            similarity = _agreement(outcome, images)
            if similarity is not None and (best is None or similarity.support > best[0].support):
                best = similarity, outcome.points
        return best

    def _alike(self, similarity: Similarity, plain: Outcome) -> bool:
        """Tell whether two images matched at much the same size and the same way up."""
        turn = (similarity.degrees - plain.degrees + 180) % 360 - 180
        larger = abs(similarity.factor) * plain.look1.view.scale / plain.look0.view.scale
        turned = self.degrees is None and abs(turn) > _ALIKE_DEGREES
        return not turned and (self.zoom is not None or 1 / _ALIKE_ZOOM < larger < _ALIKE_ZOOM)

    def _closer(
        self, images: tuple[MaskedImage, MaskedImage], similarity: Similarity, points: tuple[Float, Float]
    ) -> Outcome:
        """Match what two images have in common at one size and the same way up."""
        whole = self._whole(images, 1.0, 0.0)
        equal = whole[0].scale / whole[1].scale  # of things that the model sees at one size in whole images
        zoom = equal / abs(similarity.factor) if self.zoom is None else self.zoom
        if 1 / _SNAP_ZOOM < zoom < _SNAP_ZOOM and self.zoom is None:
            zoom = 1.0
        degrees = _snapped(similarity.degrees) if self.degrees is None else self.degrees
        parts = common_parts(similarity, *points, images[0].size, images[1].size)
        # As large as the model may see each part, and such that things are of one size in both.
        most: list[float] = []
        for part, view in zip(parts, whole, strict=True):
            room = max(view.size) / max(part[2] - part[0], part[3] - part[1])
            most.append(min(room, max(_LARGEST, view.scale)))
        scale0 = min(most[0], most[1] * equal / zoom)
        views = [
            View(part=part, size=_part_size(part, scale), degrees=turn)
            for part, scale, turn in zip(parts, (scale0, scale0 * zoom / equal), (0.0, degrees), strict=True)
        ]
        return self._match([self._look(*pair) for pair in zip(images, views, strict=True)], zoom)


def _agreement(outcome: Outcome, images: tuple[MaskedImage, MaskedImage]) -> Similarity | None:
    """Return the similarity that enough of the matches agree on, if there is one."""
    scores = outcome.matches.scores.detach().cpu().double().numpy()
    if len(scores) < _FEWEST:
        return None
    found = find_similarity(*outcome.points, scores, images[0].size, images[1].size)
    return None if found is None or np.count_nonzero(found.inliers) < _FEWEST else found


def _snapped(degrees: float) -> float:
    quarter = round(degrees / 90) * 90.0
    return quarter % 360 if abs(degrees - quarter) < _SNAP_DEGREES else degrees


def _shrunk(size: Size, factor: float) -> Size:
    return max(1, round(size[0] / factor)), max(1, round(size[1] / factor))


def _part_size(part: tuple[int, int, int, int], scale: float) -> Size:
    left, top, right, bottom = part
    return max(1, int((bottom - top) * scale + 0.5)), max(1, int((right - left) * scale + 0.5))
