"""Matching two images whatever their scales and whichever way up they are.

Descriptors hold to some 45 degrees of rotation and a factor of 1.5 in size. So images are first matched as they are.
Where they then do not seem to show the same, turns and sizes are tried on small copies. What the two have in common is
then cut out, brought to one size and the same way up, and matched again. Where most matches agree on a plane that is
seen from another side, image 1 is warped to look like image 0, and matched once more.

In pictures that repeat themselves (brickwork, printed pages) the right partners are the best ones, with scores far
below the threshold. Where hardly anything matches, the plane that most of these agree on is looked for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch

from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.probability import STRONG, match_probability
from keyglue.multiview.homography import transfer_error
from keyglue.pipelines.alignment import Similarity, common_parts, deformations, find_plane, plane_tolerance
from keyglue.pipelines.pair import FEWEST, Outcome, Pair
from keyglue.pipelines.photograph import Photograph, Size
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
# Where a smaller share of the keypoints matches, matches below the threshold are looked at. So many of them, and such a
# share, have to agree on a plane, of so many that are tried: of unrelated pictures some 12 do.
_HARDLY, _MANY, _MANY_SHARE, _PLANES = 0.1, 40, 0.2, 2000
_BY_CHANCE = 12


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
        self._told = degrees is not None and zoom is not None

    def run(self, image0: Photograph, image1: Photograph) -> Outcome:
        """Match two photographs.

        Raises:
            InputError: What is known of one was found with the model seeing it at another size.
        """
        pair = Pair(self.model, self._prepare, (image0, image1))
        for number, view in enumerate(self._whole(pair, 1.0, 0.0)):
            pair.remember(number, view)
        best = self._refined(pair, self._best(pair))
        return best if self._told else self._repeated(pair, best)

    def _refined(self, pair: Pair, outcome: Outcome) -> Outcome:
        return pair.refined(outcome) if self.refine else outcome

    def _best(self, pair: Pair) -> Outcome:
        degrees, zoom = self.degrees or 0.0, self.zoom or 1.0
        views = self._whole(pair, zoom, degrees)
        plain = pair.match(*views, degrees, zoom)
        if self._told:
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

    def _whole(self, pair: Pair, zoom: float, degrees: float, longest: float = math.inf) -> tuple[View, View]:
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

    def _try_out(self, pair: Pair) -> tuple[Similarity, Outcome] | None:
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

    def _alike(self, pair: Pair, similarity: Similarity, plain: Outcome) -> bool:
        """Tell whether two images matched at much the same size and the same way up."""
        turn = (similarity.degrees - plain.degrees + 180) % 360 - 180
        view0, view1 = self._whole(pair, plain.zoom, plain.degrees)
        larger = abs(similarity.factor) * view1.scale / view0.scale
        turned = self.degrees is None and abs(turn) > _ALIKE_DEGREES
        return not turned and (self.zoom is not None or 1 / _ALIKE_ZOOM < larger < _ALIKE_ZOOM)

    def _closer(self, pair: Pair, similarity: Similarity, found: Outcome) -> Outcome:
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

    def _warped(self, pair: Pair, found: Outcome) -> Outcome | None:
        """Match once more with image 1 as it would look if the plane that it shows were seen from where image 0 is.

        None where the matches agree on no plane, or where both images show it from much the same side.
        """
        view0, view1 = found.look0.view, found.look1.view
        if isinstance(view0, Warp) or isinstance(view1, Warp):
            return None
        points0, points1 = found.points
        plane = find_plane(points0, points1, found.scores, pair.images[1].size) if len(points0) >= FEWEST else None
        if plane is None or np.count_nonzero(plane[1]) < FEWEST:
            return None
        H, inliers = plane
        change = np.linalg.inv(view1.matrix[:2, :2]) @ deformations(H, points0[inliers]) @ view0.matrix[:2, :2]
        if np.linalg.norm(change - np.eye(2), axis=(1, 2)).mean() < _STRAIGHT:
            return None
        return pair.match(view0, Warp.like(view0, H), found.degrees, found.zoom)

    def _repeated(self, pair: Pair, best: Outcome) -> Outcome:
        """Return what is found in pictures that repeat themselves, or the best outcome where that is better."""
        if len(best.matches) >= _HARDLY * min(len(best.look0.features), len(best.look1.features)):
            return best
        faint = self._faint(pair, best)
        if faint is None or _off_plane(best, faint[1], pair.images[1].size) >= FEWEST:
            return best
        # The images have the last word: around right matches they look alike.
        found = self._refined(pair, faint[0])
        if len(found.matches) < max(_MANY, 2 * len(best.matches)):
            return best
        share = 1 - _BY_CHANCE / len(found.matches)
        return best if share <= self.model.config.filter_threshold else _scored(found, share)

    def _faint(self, pair: Pair, best: Outcome) -> tuple[Outcome, Float] | None:
        """Return the mutual best matches, whatever their scores, that agree on a plane, and its homography, if many do.

        Image 1 is looked at as for the best outcome, else turned by quarters, and then as the plane has it.
        """
        looked = self._on_plane(pair, best.look0.view, best.look1.view, best.degrees, best.zoom)
        turns = _TURNS[1:] if self.degrees is None else ()
        for turn in turns:
            if looked is not None:
                break
            degrees = (best.degrees + turn) % 360
            looked = self._on_plane(pair, *self._whole(pair, best.zoom, degrees), degrees, best.zoom)
        if looked is None:
            return None
        found, H = looked
        view0 = found.look0.view
        again = self._on_plane(pair, view0, Warp.like(view0, H), found.degrees, found.zoom)
        return again if again is not None and len(again[0].matches) > len(found.matches) else looked

    def _on_plane(
        self, pair: Pair, view0: View | Warp, view1: View | Warp, degrees: float, zoom: float
    ) -> tuple[Outcome, Float] | None:
        """Match two views whatever the scores; return what agrees on a plane, and its homography, if much does."""
        outcome = pair.match(view0, view1, degrees, zoom, faint=True)
        points0, points1 = outcome.points
        least = max(_MANY, _MANY_SHARE * len(points0))
        if len(points0) < least:
            return None
        plane = find_plane(points0, points1, np.sqrt(outcome.scores), pair.images[1].size, share=0.0, tries=_PLANES)
        if plane is None or np.count_nonzero(plane[1]) < least:
            return None
        others = outcome.matches.indices[torch.from_numpy(~plane[1]).to(outcome.matches.matches0.device)]
        return outcome._replace(matches=outcome.matches.without(others)), plane[0]


def _off_plane(outcome: Outcome, H: Float, size1: Size) -> int:
    """Return how many matches a plane does not explain: where there are some, the images show more than the plane."""
    return int(np.count_nonzero(transfer_error(H, *outcome.points) >= plane_tolerance(size1)))


def _scored(outcome: Outcome, score: float) -> Outcome:
    """Return an outcome with one score for all its matches."""
    matches = outcome.matches
    scores = [
        torch.where(index >= 0, score, of)
        for index, of in ((matches.matches0, matches.matching_scores0), (matches.matches1, matches.matching_scores1))
    ]
    return outcome._replace(
        matches=dataclasses.replace(matches, matching_scores0=scores[0], matching_scores1=scores[1])
    )


def _snapped(degrees: float) -> float:
    quarter = round(degrees / 90) * 90.0
    return quarter % 360 if abs(degrees - quarter) < _SNAP_DEGREES else degrees


def _part_size(part: tuple[int, int, int, int], scale: float) -> Size:
    left, top, right, bottom = part
    return max(1, int((bottom - top) * scale + 0.5)), max(1, int((right - left) * scale + 0.5))
