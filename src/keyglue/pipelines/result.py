"""What matching two images gives: matched points, geometry on demand, pictures and files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from keyglue.base.errors import InputError
from keyglue.base.files import atomic_path, atomic_write
from keyglue.images.draw import draw_matches, draw_pruning
from keyglue.images.read import ImageInput
from keyglue.multiview.cameras import Camera
from keyglue.multiview.robust import (
    EssentialEstimate,
    FundamentalEstimate,
    HomographyEstimate,
    RelativePose,
    estimate_essential,
    estimate_fundamental,
    estimate_homography,
    estimate_relative_pose,
)

if TYPE_CHECKING:
    from PIL.Image import Image

Float = NDArray[np.float32]
CameraInput = Camera | NDArray[Any] | dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PairResult:
    """Matches of two images, in pixels of the images as they were given.

    Frame: x right, y down, the centre of the top-left pixel at (0, 0), after a photograph has been turned upright.

    Attributes:
        keypoints0: (M, 2) all keypoints of image 0.
        keypoints1: (N, 2) all keypoints of image 1, matched ones where refinement moved them.
        matches: (S, 2) indices into ``keypoints0`` and ``keypoints1``, best first.
        scores: (S,) matching scores from 0 to 1.
        size0: Height and width of image 0.
        size1: Height and width of image 1.
        prune0: (M,) number of layers that each keypoint was processed in.
        prune1: (N,) the same for image 1.
        stop_layer: Number of layers that the pair ran through.
        num_layers: Number of layers that the matcher has.
        match_probability: Probability that the images show the same thing at all, if as many pairs do as do not; None
            where the model was not calibrated.
        rotation: Degrees that image 1 was turned counter-clockwise before matching.
        zoom: How many times larger things were taken to be in image 0 than in image 1.
        seed: Seed of the robust estimators.
        milliseconds: Time of each step: "read", "describe", "match", "refine".
        images: The two images as they were given, for drawing; None where only features were matched.
    """

    keypoints0: Float
    keypoints1: Float
    matches: NDArray[np.int64]
    scores: Float
    size0: tuple[int, int]
    size1: tuple[int, int]
    prune0: NDArray[np.int64]
    prune1: NDArray[np.int64]
    stop_layer: int
    num_layers: int
    match_probability: float | None = None
    rotation: float = 0.0
    zoom: float = 1.0
    seed: int = 0
    milliseconds: dict[str, float] = dataclasses.field(default_factory=dict)
    images: tuple[ImageInput, ImageInput] | None = dataclasses.field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.matches)

    def __repr__(self) -> str:
        return (
            f"PairResult({len(self)} matches of {len(self.keypoints0)} and {len(self.keypoints1)} keypoints, "
            f"{self.stop_layer} of {self.num_layers} layers)"
        )

    @property
    def points0(self) -> Float:
        """(S, 2) matched points of image 0, best first."""
        return self.keypoints0[self.matches[:, 0]]

    @property
    def points1(self) -> Float:
        """(S, 2) matched points of image 1, in the same order."""
        return self.keypoints1[self.matches[:, 1]]

    def homography(self, threshold: float = 3.0, *, backend: str = "auto", **options: Any) -> HomographyEstimate:
        """Estimate the homography from image 0 to image 1.

        Args:
            threshold: Largest transfer error of an inlier, in pixels of image 1.
            backend: "poselib", "opencv", or "auto" for the first one installed.
            **options: ``confidence`` and ``max_iterations``, as for ``estimate_homography``.

        Returns:
            Matrix (3, 3), None where there is none, and inliers (S,).
        """
        return estimate_homography(
            self.points0, self.points1, threshold=threshold, backend=backend, seed=self.seed, **options
        )

    def fundamental(self, threshold: float = 1.0, *, backend: str = "auto", **options: Any) -> FundamentalEstimate:
        """Estimate the fundamental matrix F, x1' F x0 = 0; arguments as for ``homography``."""
        return estimate_fundamental(
            self.points0, self.points1, threshold=threshold, backend=backend, seed=self.seed, **options
        )

    def essential(
        self,
        camera0: CameraInput,
        camera1: CameraInput,
        threshold: float = 1.0,
        *,
        backend: str = "auto",
        **options: Any,
    ) -> EssentialEstimate:
        """Estimate the essential matrix; cameras as for ``relative_pose``."""
        return estimate_essential(
            self.points0,
            self.points1,
            camera0,
            camera1,
            threshold=threshold,
            backend=backend,
            seed=self.seed,
            **options,
        )

    def relative_pose(
        self,
        camera0: CameraInput,
        camera1: CameraInput,
        threshold: float = 1.0,
        *,
        backend: str = "auto",
        **options: Any,
    ) -> RelativePose:
        """Estimate the pose of camera 1 relative to camera 0: x1 = R x0 + t.

        Args:
            camera0: ``Camera`` or (3, 3) calibration matrix of image 0, in pixels of the image as given.
            camera1: The same of image 1.
            threshold: Largest epipolar error of an inlier, in pixels.
            backend: "poselib", "opencv", or "auto" for the first one installed.
            **options: ``confidence`` and ``max_iterations``.

        Returns:
            R (3, 3), t (3,) of unit length (two images do not tell scale), inliers (S,).
        """
        return estimate_relative_pose(
            self.points0,
            self.points1,
            camera0,
            camera1,
            threshold=threshold,
            backend=backend,
            seed=self.seed,
            **options,
        )

    def _given_images(self, images: tuple[ImageInput, ImageInput] | None) -> tuple[ImageInput, ImageInput]:
        found = images or self.images
        if found is None:
            raise InputError("this result comes from features alone; pass images=(image0, image1) to draw it.")
        return found

    def draw(
        self,
        inliers: NDArray[np.bool_] | None = None,
        *,
        images: tuple[ImageInput, ImageInput] | None = None,
        **options: Any,
    ) -> Image:
        """Draw both images side by side with lines between the matches.

        Args:
            inliers: (S,) green where true and red where false; coloured by score unless given.
            images: The images, where the result comes from features alone.
            **options: As for ``keyglue.images.draw.draw_matches``.
        """
        image0, image1 = self._given_images(images)
        return draw_matches(image0, image1, self.points0, self.points1, self.scores, inliers, **options)

    def draw_pruning(self, *, images: tuple[ImageInput, ImageInput] | None = None) -> Image:
        """Draw both images with each keypoint coloured by the layer after which it was dropped."""
        image0, image1 = self._given_images(images)
        return draw_pruning(image0, image1, self.keypoints0, self.keypoints1, self.prune0, self.prune1, self.stop_layer)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists: points, scores, sizes, layers and times."""
        return {
            "points0": self.points0.tolist(),
            "points1": self.points1.tolist(),
            "scores": self.scores.tolist(),
            "matches": self.matches.tolist(),
            "keypoints": [len(self.keypoints0), len(self.keypoints1)],
            "sizes": [list(self.size0), list(self.size1)],
            "stop_layer": self.stop_layer,
            "num_layers": self.num_layers,
            "match_probability": self.match_probability,
            "rotation": self.rotation,
            "zoom": self.zoom,
            "milliseconds": {name: round(value, 3) for name, value in self.milliseconds.items()},
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result atomically, in the format that the suffix names.

        .json holds ``to_dict``; .csv one line a match (x0, y0, x1, y1, score); .npz points, scores, matches, keypoints,
        sizes and layers as arrays.

        Raises:
            InputError: The suffix is another one, or the folder does not exist.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".json":
            atomic_write(path, json.dumps(self.to_dict()) + "\n")
        elif suffix == ".csv":
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["x0", "y0", "x1", "y1", "score"])
            rows = np.column_stack([self.points0, self.points1, self.scores[:, None]])
            writer.writerows([[f"{value:.6g}" for value in row] for row in rows])
            atomic_write(path, text.getvalue())
        elif suffix == ".npz":
            with atomic_path(path) as temporary:
                np.savez_compressed(
                    temporary,
                    points0=self.points0,
                    points1=self.points1,
                    scores=self.scores,
                    matches=self.matches,
                    keypoints0=self.keypoints0,
                    keypoints1=self.keypoints1,
                    sizes=np.array([self.size0, self.size1]),
                    stop_layer=np.array(self.stop_layer),
                )
        else:
            raise InputError(f"cannot save as {suffix or 'a file without suffix'}; use .json, .csv or .npz.")
