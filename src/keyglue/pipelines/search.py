"""Matching two images whatever their scales and whichever way up they are.

Descriptors hold to some 45 degrees of rotation and a factor of 1.5 in size. So images are first matched as they are.
Where they then do not seem to show the same, turns and sizes are tried on small copies. What the two have in common is
then cut out, brought to one size and the same way up, and matched again. Where most matches agree on a plane that is
seen from another side, image 1 is warped to look like image 0, and matched once more.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from keyglue.base.devices import to_device
from keyglue.base.errors import InputError
from keyglue.base.types import Features, Matches
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.probability import STRONG, match_probability
from keyglue.pipelines.alignment import Similarity, common_parts, deformations, find_plane, find_similarity
from keyglue.pipelines.views import Float, MaskedImage, Prepare, Size, View, Warp

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
# A plane is seen from much the same side where the derivative of one view by the other differs less than this from the
# identity (a turn by 8 degrees, or a size that differs by 15 %).
_STRAIGHT = 0.2
# How many times larger than it is a part may be shown.
_LARGEST = 2.0


class Look(NamedTuple):
    """An image as the model saw it: the view, and Features in pixels of that view."""

    view: View | Warp
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
        degrees: How far image 1 was turned counter-clockwise.
        zoom: How many times larger things were taken to be in image 0 than in image 1, with both at the size at which
            the model sees whole images.
        milliseconds: Time of "describe" and "match", of all that was tried.
    """

    look0: Look
    look1: Look
    matches: Matches
    degrees: float
    zoom: float
    milliseconds: dict[str, float]

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
        prepare: Prepare,
        seen_size: Callable[[Size], Size],
        *,
        degrees: float | None = None,
        zoom: float | None = None,
    ) -> None:
        self.model, self._prepare, self._seen_size = model, prepare, seen_size
        self._thorough = copy.copy(model)  # shares the weights
        self._thorough.config = model.config.replace(depth_confidence=-1.0, width_confidence=-1.0)
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
        plain = self._match(looks, degrees, zoom)
        if self.degrees is not None and self.zoom is not None:
            return plain
        sure = self._sure(plain)
        if not sure:
            # Early layers leave false matches between images that show nothing in common; later ones drop them.
            plain = self._match(looks, degrees, zoom, self._thorough)
        best = plain
        similarity = _agreement(plain, images) if sure else None
        found = (similarity, plain.points) if similarity is not None else self._try_out(images, looks)
        if found is not None and not (sure and self._alike(images, found[0], plain)):
            best = self._better(plain, self._closer(images, *found))
        warped = self._warped(images, best)
        return best if warped is None else self._better(best, warped)

    def _better(self, first: Outcome, second: Outcome) -> Outcome:
        improved = self._sure(second) >= self._sure(first) and second.support > first.support
        return second if improved else first

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

    def _look(self, image: MaskedImage, view: View | Warp) -> Look:
        start = time.perf_counter()
        pixels, mask = view.render(image, self._prepare)
        look = Look(view, self.model.extract(to_device(pixels, self.model.device), mask=mask))
        self._spent["describe"] += 1000 * (time.perf_counter() - start)
        return look

    def _match(
        self, looks: Iterable[Look], degrees: float, zoom: float, model: LightGlueForKeypointMatching | None = None
    ) -> Outcome:
        look0, look1 = looks
        start = time.perf_counter()
        with torch.no_grad():
            matches = (model or self.model).match_pairs([(look0.features, look1.features)])[0]
        self._spent["match"] += 1000 * (time.perf_counter() - start)
        return Outcome(look0, look1, matches, degrees, zoom, self._spent)

    def _sure(self, outcome: Outcome) -> bool:
        probability = match_probability(outcome.matches, self.model.config.match_probability)
        if probability is not None:
            return probability > _SURE
        strong = int((outcome.matches.matching_scores0 > STRONG).sum())
        return strong > _SURE_SHARE * min(len(outcome.look0.features), len(outcome.look1.features))

    def _try_out(
        self, images: tuple[MaskedImage, MaskedImage], looks: Iterable[Look]
    ) -> tuple[Similarity, tuple[Float, Float]] | None:
        """Return the similarity that most matches agree on, and the matches, of all turns and sizes of small copies.

        The looks at the images as they are need not be repeated.
        """
        zooms = _ZOOMS if self.zoom is None else (self.zoom,)
        turns = _TURNS if self.degrees is None else (self.degrees,)
        known = {(number, look.view): look for number, look in enumerate(looks)}
        tried: list[Outcome] = []
        for turn in turns:
            for zoom in zooms:
                pair: list[Look] = []
                for number, view in enumerate(self._whole(images, zoom, turn, _COPY)):
                    if (number, view) not in known:
                        known[number, view] = self._look(images[number], view)
                    pair.append(known[number, view])
                tried.append(self._match(pair, turn, zoom))
        tried.sort(key=lambda outcome: -outcome.support)
        best: tuple[Similarity, tuple[Float, Float]] | None = None
        for outcome in tried[:_CANDIDATES]:
            similarity = _agreement(outcome, images)
            if similarity is not None and (best is None or similarity.support > best[0].support):
                best = similarity, outcome.points
        return best

    def _alike(self, images: tuple[MaskedImage, MaskedImage], similarity: Similarity, plain: Outcome) -> bool:
        """Tell whether two images matched at much the same size and the same way up."""
        turn = (similarity.degrees - plain.degrees + 180) % 360 - 180
        view0, view1 = self._whole(images, plain.zoom, plain.degrees)
        larger = abs(similarity.factor) * view1.scale / view0.scale
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
        return self._match([self._look(*pair) for pair in zip(images, views, strict=True)], degrees, zoom)

    def _warped(self, images: tuple[MaskedImage, MaskedImage], found: Outcome) -> Outcome | None:
        """Match once more with image 1 as it would look if the plane that it shows were seen from where image 0 is.

        None where the matches agree on no plane, or where both images show it from much the same side.
        """
        view0, view1 = found.look0.view, found.look1.view
        points0, points1 = found.points
        scores = found.matches.scores.detach().cpu().double().numpy()
        plane = find_plane(points0, points1, scores, images[1].size) if len(scores) >= _FEWEST else None
        if plane is None or np.count_nonzero(plane[1]) < _FEWEST:
            return None
        H, inliers = plane
        if not isinstance(view1, View) or not isinstance(view0, View):
            return None
        change = np.linalg.inv(view1.matrix[:2, :2]) @ deformations(H, points0[inliers]) @ view0.matrix[:2, :2]
        if np.linalg.norm(change - np.eye(2), axis=(1, 2)).mean() < _STRAIGHT:
            return None
        warp = Warp(size=view0.size, homography=H @ view0.matrix)
        return self._match([found.look0, self._look(images[1], warp)], found.degrees, found.zoom)


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
