"""Matching two images whatever their scales and whichever way up they are.

Descriptors hold to some 45 degrees of rotation and a factor of 1.5 in size. So images are first matched as they are.
Where they then do not seem to show the same, turns and sizes are tried on small copies. What the two have in common is
then cut out, brought to one size and the same way up, and matched again. Where most matches agree on a plane that is
seen from another side, image 1 is warped to look like image 0, and matched once more.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from keyglue.base.devices import to_device
from keyglue.base.errors import InputError
from keyglue.base.types import Features, Matches
from keyglue.images.resize import resize_mask, to_grayscale
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.probability import STRONG, match_probability
from keyglue.pipelines.alignment import Similarity, common_parts, deformations, find_plane, find_similarity
from keyglue.pipelines.photograph import Photograph, Size
from keyglue.pipelines.refinement import refine_matches
from keyglue.pipelines.views import Float, Prepare, View, Warp, shrunk

# Long side of the copies on which turns and sizes are tried, which sizes, and how many of the best are looked into.
_COPY = 640
_ZOOMS = (1.0, 2.0, 0.5, 4.0, 0.25)
_TURNS = (0.0, 90.0, 180.0, 270.0)
_CANDIDATES = 3
# Images match for sure when they probably show the same; without calibration, when such a share of keypoints does.
_SURE, _SURE_SHARE = 0.9, 0.05
# Of small copies this makes it certain that no other turn or size does better: wrong ones come to 0.997.
_CERTAIN = 0.999
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
        milliseconds: Time of "describe" and "match", of all that was tried, and of "refine".
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
    def scores(self) -> Float:
        """(S,) scores of the matches."""
        return self.matches.scores.detach().cpu().double().numpy()

    @property
    def support(self) -> float:
        """Sum of the matches' scores."""
        return float(self.matches.scores.sum())


class _Pair:
    """Two images and how they have been looked at: no view is described twice.

    Args:
        model: Detector and matcher.
        prepare: As for ``ViewSearch``.
        images: The images.
    """

    def __init__(
        self, model: LightGlueForKeypointMatching, prepare: Prepare, images: tuple[Photograph, Photograph]
    ) -> None:
        self.model, self._prepare = model, prepare
        # However often they are looked at, files are read once.
        self.images = [dataclasses.replace(image, load=functools.cache(image.load)) for image in images]
        self._known: dict[tuple[int, View | Warp], Features] = {}
        self._rendered: dict[tuple[int, View | Warp], tuple[Tensor, Tensor | None]] = {}
        self._spent = {"describe": 0.0, "match": 0.0}

    def match(
        self, view0: View, view1: View | Warp, degrees: float, zoom: float, *, all_layers: bool = False
    ) -> Outcome:
        """Match a view of image 0 with one of image 1."""
        look0, look1 = self._look(0, view0), self._look(1, view1)
        model = self.model.without_adaptivity() if all_layers else self.model
        start = time.perf_counter()
        matches = model.match(look0.features, look1.features)
        self._spent["match"] += 1000 * (time.perf_counter() - start)
        return Outcome(look0, look1, matches, degrees, zoom, self._spent)

    def remember(self, number: int, view: View) -> None:
        """Take over what is known of a whole image, which the model sees in this view."""
        image = self.images[number]
        if image.features is None:
            return
        if image.features.image_size != view.size:
            raise InputError(
                f"image {number} is seen with height and width {view.size} here, but it was described with "
                f"{image.features.image_size}. Give it to the Matcher that prepared it."
            )
        self._known[number, view] = image.features
        if image.brightness is not None:
            mask = None if image.mask is None else resize_mask(image.mask, view.size)
            self._rendered[number, view] = image.brightness, mask

    def _look(self, number: int, view: View | Warp) -> Look:
        if (number, view) not in self._known:
            start = time.perf_counter()
            pixels, mask = self._render(number, view)
            self._known[number, view] = self.model.extract(to_device(pixels, self.model.device), mask=mask)
            self._spent["describe"] += 1000 * (time.perf_counter() - start)
        return Look(view, self._known[number, view])

    def _render(self, number: int, view: View | Warp) -> tuple[Tensor, Tensor | None]:
        if (number, view) not in self._rendered:
            self._rendered[number, view] = view.render(self.images[number], self._prepare)
        return self._rendered[number, view]

    def refined(self, outcome: Outcome) -> Outcome:
        """Move matched points of image 1 to where the images agree, and drop matches around which they do not."""
        start = time.perf_counter()
        index = outcome.matches.indices
        images: list[Tensor] = []
        points: list[Tensor] = []
        wanted: Tensor | None = None
        for number, look in enumerate((outcome.look0, outcome.look1)):
            pixels, wanted = self._render(number, look.view)
            images.append(to_grayscale(pixels)[0].float())
            points.append(look.features.keypoints[index[:, number]].detach().cpu().float())
        scores = outcome.matches.scores.detach().cpu().float()
        found = refine_matches(images[0], images[1], points[0], points[1], scores, wanted)
        features = outcome.look1.features
        keypoints = features.keypoints.clone()
        keypoints[index[:, 1]] = found.points1.to(keypoints)
        look1 = outcome.look1._replace(features=dataclasses.replace(features, keypoints=keypoints))
        matches = outcome.matches.without(index[~found.alike.to(index.device)])
        self._spent["refine"] = 1000 * (time.perf_counter() - start)
        return outcome._replace(look1=look1, matches=matches)

    def agreement(self, outcome: Outcome) -> Similarity | None:
        """Return the similarity that enough of the matches agree on, if there is one."""
        if len(outcome.scores) < _FEWEST:
            return None
        found = find_similarity(*outcome.points, outcome.scores, self.images[0].size, self.images[1].size)
        return None if found is None or np.count_nonzero(found.inliers) < _FEWEST else found


class ViewSearch:
    """Finds the views of two images that match best.

    Args:
        model: Detector and matcher.
        prepare: Resizes pixels (C, h, w) from 0 to 255 to a height and width and makes them what the model takes.
        seen_size: Gives the height and width at which the model sees an image of a height and width.
        degrees: How far image 1 is turned; None to find out.
        zoom: How many times larger things are in image 0; None to find out.
        refine: Whether matched points of image 1 move to where the images agree, and matches around which they do not
            are dropped.
    """

    def __init__(
        self,
        model: LightGlueForKeypointMatching,
        prepare: Prepare,
        seen_size: Callable[[Size], Size],
        *,
        degrees: float | None = None,
        zoom: float | None = None,
        refine: bool = True,
    ) -> None:
        self.model, self._prepare, self._seen_size = model, prepare, seen_size
        self.degrees, self.zoom, self.refine = degrees, zoom, refine

    def run(self, image0: Photograph, image1: Photograph) -> Outcome:
        """Match two photographs.

        Raises:
            InputError: What is known of one was found with the model seeing it at another size.
        """
        pair = _Pair(self.model, self._prepare, (image0, image1))
        for number, view in enumerate(self._whole(pair, 1.0, 0.0)):
            pair.remember(number, view)
        best = self._best(pair)
        return pair.refined(best) if self.refine else best

    def _best(self, pair: _Pair) -> Outcome:
        degrees, zoom = self.degrees or 0.0, self.zoom or 1.0
        views = self._whole(pair, zoom, degrees)
        plain = pair.match(*views, degrees, zoom)
        if self.degrees is not None and self.zoom is not None:
            return plain
        sure = self._sure(plain)
        if not sure:
            # Early layers leave false matches between images that show nothing in common; later ones drop them.
            plain = pair.match(*views, degrees, zoom, all_layers=True)
        best = plain
        similarity = pair.agreement(plain) if sure else None
        found = (similarity, plain) if similarity is not None else self._try_out(pair)
        if found is not None and not (sure and self._alike(pair, found[0], plain)):
            best = self._better(plain, self._closer(pair, *found))
        warped = self._warped(pair, best)
        return best if warped is None else self._better(best, warped)

    def _better(self, first: Outcome, second: Outcome) -> Outcome:
        improved = self._sure(second) >= self._sure(first) and second.support > first.support
        return second if improved else first

    def _whole(self, pair: _Pair, zoom: float, degrees: float, longest: float = math.inf) -> tuple[View, View]:
        """Return views of the whole images, no longer than given, the one shrunk that shows things larger."""
        image0, image1 = pair.images
        seen = [self._seen_size(image.size) for image in pair.images]
        sizes = [shrunk(size, max(1.0, max(size) / longest)) for size in seen]
        return (
            View.whole(image0.size, shrunk(sizes[0], max(zoom, 1.0))),
            View.whole(image1.size, shrunk(sizes[1], max(1 / zoom, 1.0)), degrees),
        )

    def _sure(self, outcome: Outcome) -> bool:
        probability = self._probability(outcome)
        if probability is not None:
            return probability > _SURE
        strong = int((outcome.matches.matching_scores0 > STRONG).sum())
        return strong > _SURE_SHARE * min(len(outcome.look0.features), len(outcome.look1.features))

    def _probability(self, outcome: Outcome) -> float | None:
        return match_probability(outcome.matches, self.model.config.match_probability)

    def _try_out(self, pair: _Pair) -> tuple[Similarity, Outcome] | None:
        """Try turns and sizes on small copies; return a similarity that many matches agree on, and these.

        The first that are certain to match will do; where none are, those that agree most.
        """
        zooms = _ZOOMS if self.zoom is None else (self.zoom,)
        turns = _TURNS if self.degrees is None else (self.degrees,)
        tried: list[Outcome] = []
        for turn, zoom in itertools.product(turns, zooms):
            tried.append(pair.match(*self._whole(pair, zoom, turn, _COPY), turn, zoom))
            certain = (self._probability(tried[-1]) or 0.0) > _CERTAIN
            similarity = pair.agreement(tried[-1]) if certain else None
            if similarity is not None:
                return similarity, tried[-1]
        tried.sort(key=lambda outcome: -outcome.support)
        agreed = [(pair.agreement(outcome), outcome) for outcome in tried[:_CANDIDATES]]
        found = [(similarity, outcome) for similarity, outcome in agreed if similarity is not None]
        return max(found, key=lambda candidate: candidate[0].support, default=None)

    def _alike(self, pair: _Pair, similarity: Similarity, plain: Outcome) -> bool:
        """Tell whether two images matched at much the same size and the same way up."""
        turn = (similarity.degrees - plain.degrees + 180) % 360 - 180
        view0, view1 = self._whole(pair, plain.zoom, plain.degrees)
        larger = abs(similarity.factor) * view1.scale / view0.scale
        turned = self.degrees is None and abs(turn) > _ALIKE_DEGREES
        return not turned and (self.zoom is not None or 1 / _ALIKE_ZOOM < larger < _ALIKE_ZOOM)

    def _closer(self, pair: _Pair, similarity: Similarity, found: Outcome) -> Outcome:
        """Match what two images have in common at one size and the same way up."""
        whole = self._whole(pair, 1.0, 0.0)
        equal = whole[0].scale / whole[1].scale  # of things that the model sees at one size in whole images
        zoom = equal / abs(similarity.factor) if self.zoom is None else self.zoom
        if 1 / _SNAP_ZOOM < zoom < _SNAP_ZOOM and self.zoom is None:
            zoom = 1.0
        degrees = _snapped(similarity.degrees) if self.degrees is None else self.degrees
        parts = common_parts(similarity, *found.points, pair.images[0].size, pair.images[1].size)
        # As large as the model may see each part, and such that things are of one size in both.
        most: list[float] = []
        for part, view in zip(parts, whole, strict=True):
            room = max(view.size) / max(part[2] - part[0], part[3] - part[1])
            most.append(min(room, max(_LARGEST, view.scale)))
        scale0 = min(most[0], most[1] * equal / zoom)
        view0 = View(part=parts[0], size=_part_size(parts[0], scale0))
        view1 = View(part=parts[1], size=_part_size(parts[1], scale0 * zoom / equal), degrees=degrees)
        return pair.match(view0, view1, degrees, zoom)

    def _warped(self, pair: _Pair, found: Outcome) -> Outcome | None:
        """Match once more with image 1 as it would look if the plane that it shows were seen from where image 0 is.

        None where the matches agree on no plane, or where both images show it from much the same side.
        """
        view0, view1 = found.look0.view, found.look1.view
        if isinstance(view0, Warp) or isinstance(view1, Warp):
            return None
        points0, points1 = found.points
        plane = find_plane(points0, points1, found.scores, pair.images[1].size) if len(points0) >= _FEWEST else None
        if plane is None or np.count_nonzero(plane[1]) < _FEWEST:
            return None
        H, inliers = plane
        change = np.linalg.inv(view1.matrix[:2, :2]) @ deformations(H, points0[inliers]) @ view0.matrix[:2, :2]
        if np.linalg.norm(change - np.eye(2), axis=(1, 2)).mean() < _STRAIGHT:
            return None
        return pair.match(view0, Warp(size=view0.size, homography=H @ view0.matrix), found.degrees, found.zoom)


def _snapped(degrees: float) -> float:
    quarter = round(degrees / 90) * 90.0
    return quarter % 360 if abs(degrees - quarter) < _SNAP_DEGREES else degrees


def _part_size(part: tuple[int, int, int, int], scale: float) -> Size:
    left, top, right, bottom = part
    return max(1, int((bottom - top) * scale + 0.5)), max(1, int((right - left) * scale + 0.5))
