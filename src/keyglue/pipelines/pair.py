"""Two images and how they have been looked at: what was described is kept, and how it matched."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from keyglue.base.devices import to_device
from keyglue.base.errors import InputError
from keyglue.base.types import Features, Matches
from keyglue.images.resize import resize_mask, to_grayscale
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.pipelines.alignment import Similarity, find_similarity
from keyglue.pipelines.photograph import Photograph
from keyglue.pipelines.refinement import refine_matches
from keyglue.pipelines.views import Float, Prepare, View, Warp

# Matches that have to agree on a similarity or a plane.
FEWEST = 8


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


class Pair:
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
        self,
        view0: View | Warp,
        view1: View | Warp,
        degrees: float,
        zoom: float,
        *,
        all_layers: bool = False,
        faint: bool = False,
    ) -> Outcome:
        """Match a view of image 0 with one of image 1; ``faint`` for all layers and all mutual best matches."""
        look0, look1 = self._look(0, view0), self._look(1, view1)
        model = self.model.without_adaptivity() if all_layers or faint else self.model
        model = model.without_threshold() if faint else model
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
        if len(outcome.scores) < FEWEST:
            return None
        found = find_similarity(*outcome.points, outcome.scores, self.images[0].size, self.images[1].size)
        return None if found is None or np.count_nonzero(found.inliers) < FEWEST else found
