"""Scenes of several images with ground truth: posed images with depth, sparse models, and rectified stereo pairs.

All labels are computed in pixels of the frames as they are kept: shrunk to the long side of training photographs and,
in effect, without lens distortion.
"""

from __future__ import annotations

import dataclasses
import json
import os
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from keyglue.base.errors import InputError, KeyglueError
from keyglue.base.types import Features
from keyglue.images.coordinates import resize_keypoints
from keyglue.multiview.cameras import Camera, as_camera
from keyglue.multiview.sparse_model import PosedImage, model_folder, read_sparse_model
from keyglue.training.geometry import disparity_of_right, fundamental_matrix, shared_view
from keyglue.training.labels import Labels, labels_from_depth, labels_from_disparity, labels_from_tracks
from keyglue.training.photos import Photos, read_gray

# Pairs of frames are trained on if each sees this share of what the other does, or more.
FEWEST_SHARED = 0.1
FEWEST_TRACKS = 15
# Overlap by depth is looked at for so many pairs of frames at most.
MOST_PAIRS = 4000


class Scene(ABC):
    """Frames with ground truth.

    Attributes:
        name: Name of the scene.
        frames: Their images.
        pairs: Frames (i, j) that see enough of the same things, i < j.
    """

    name: str
    frames: Photos
    pairs: list[tuple[int, int]]

    @abstractmethod
    def labels(
        self, first: int, second: int, features0: Features, features1: Features, positive: float, negative: float
    ) -> Labels:
        """Label keypoints of two frames.

        Args:
            first: Number of frame 0.
            second: Number of frame 1.
            features0: Keypoints in pixels of frame 0; they may lie outside.
            features1: Keypoints in pixels of frame 1.
            positive: Largest distance of a match in pixels.
            negative: Distance in pixels beyond which a keypoint has no match.
        """


class DepthScene(Scene):
    """Posed frames with depth, as a scene.json describes them.

    Args:
        folder: With scene.json: {"frames": [{"name", "w", "h", "K", "R", "t", "depth", "depth_scale"}]}, x_camera =
            R x_world + t; frames without depth are left out.
        long_side: Larger frames are shrunk to this many pixels.

    Raises:
        InputError: scene.json is not as described, or a frame cannot be read.
    """

    def __init__(self, folder: Path, long_side: int) -> None:
        self.name = folder.name
        frames = [frame for frame in _read_frames(folder) if frame.get("depth")]
        if len(frames) < 2:
            raise InputError(f"{folder / 'scene.json'} needs two or more frames with depth.")
        images = _read_images([folder / frame["name"] for frame in frames], long_side)
        self.frames = Photos.of_images([f"{self.name}/{frame['name']}" for frame in frames], images)
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        self.depths = [_read_depth(folder, frame, size) for frame, size in zip(frames, sizes, strict=True)]
        self.cameras = [as_camera(frame).scaled(size) for frame, size in zip(frames, sizes, strict=True)]
        self.rotations = [torch.tensor(frame["R"], dtype=torch.float64) for frame in frames]
        self.translations = [torch.tensor(frame["t"], dtype=torch.float64).reshape(3) for frame in frames]
        self.pairs = [pair for pair in _some_pairs(len(frames)) if self._overlap(*pair) >= FEWEST_SHARED]

    def labels(
        self, first: int, second: int, features0: Features, features1: Features, positive: float, negative: float
    ) -> Labels:
        """Label keypoints by depth and pose."""
        R, t = self._motion(first, second)
        return labels_from_depth(
            features0,
            features1,
            self.depths[first],
            self.depths[second],
            self.cameras[first],
            self.cameras[second],
            R,
            t,
            positive=positive,
            negative=negative,
        )

    def _motion(self, first: int, second: int) -> tuple[Tensor, Tensor]:
        R = self.rotations[second] @ self.rotations[first].mT
        return R, self.translations[second] - R @ self.translations[first]

    def _overlap(self, first: int, second: int) -> float:
        K0, K1 = (torch.from_numpy(self.cameras[frame].matrix) for frame in (first, second))
        return shared_view((self.depths[first], self.depths[second]), (K0, K1), *self._motion(first, second))


class TrackScene(Scene):
    """Images of a sparse model of COLMAP.

    Args:
        folder: With the images in images/ and the model in sparse/ or sparse/0/.
        long_side: Larger images are shrunk to this many pixels.

    Raises:
        InputError: The model or an image cannot be read.
    """

    def __init__(self, folder: Path, long_side: int) -> None:
        self.name = folder.name
        model = read_sparse_model(model_folder(folder) or folder)
        images = _read_images([folder / "images" / image.name for image in model], long_side)
        self.frames = Photos.of_images([f"{self.name}/{image.name}" for image in model], images)
        self.images = [_shrunk(posed, tuple(image.shape)) for posed, image in zip(model, images, strict=True)]
        shared = _shared_tracks(self.images)
        own = shared.diagonal()
        share = shared / torch.minimum(own[:, None], own[None, :]).clamp(min=1)
        good = (shared >= FEWEST_TRACKS) & (share >= FEWEST_SHARED)
        self.pairs = [(int(i), int(j)) for i, j in good.triu(1).nonzero().tolist()]

    def labels(
        self, first: int, second: int, features0: Features, features1: Features, positive: float, negative: float
    ) -> Labels:
        """Label keypoints by the points of the model that both images see."""
        image0, image1 = self.images[first], self.images[second]
        _, own, other = np.intersect1d(image0.tracks, image1.tracks, return_indices=True)
        points0, points1 = (_undistorted(image, image.points) for image in (image0, image1))
        R = image1.R @ image0.R.T
        t = image1.t - R @ image0.t
        matrices = [torch.from_numpy(np.asarray(value)) for value in (image0.camera.matrix, image1.camera.matrix, R, t)]
        return labels_from_tracks(
            _moved(features0, _undistorted(image0, features0.keypoints.double().cpu().numpy())),
            _moved(features1, _undistorted(image1, features1.keypoints.double().cpu().numpy())),
            torch.from_numpy(points0[own]),
            torch.from_numpy(points1[other]),
            fundamental_matrix(*matrices),
            positive=positive,
            negative=negative,
        )


class StereoScene(Scene):
    """A rectified stereo pair with the disparity of its left image.

    Args:
        left: Left image.
        right: Right image.
        disparity: (h, w) of the left image at its full size; not finite where it is not known.
        long_side: Larger images are shrunk to this many pixels.
    """

    def __init__(self, left: Path, right: Path, disparity: NDArray[Any], long_side: int) -> None:
        self.name = left.stem
        images = _read_images([left, right], long_side)
        self.frames = Photos.of_images([left.name, right.name], images)
        full = torch.from_numpy(np.asarray(disparity, dtype=np.float64))
        size = tuple(images[0].shape)
        shrunk = _resize_nearest(full, (size[0], size[1])) * (size[1] / full.shape[1])
        self.disparities = (shrunk, disparity_of_right(shrunk))
        self.pairs = [(0, 1)]

    def labels(
        self, first: int, second: int, features0: Features, features1: Features, positive: float, negative: float
    ) -> Labels:
        """Label keypoints by disparity."""
        if (first, second) == (1, 0):
            labels1, labels0 = self.labels(0, 1, features1, features0, positive, negative)
            return labels0, labels1
        return labels_from_disparity(features0, features1, *self.disparities, positive=positive, negative=negative)


def load_scene(folder: str | os.PathLike[str], long_side: int = 640) -> Scene | None:
    """Read the scene in a folder: a scene.json with depth, or images/ with a COLMAP model; None where there is none.

    Raises:
        InputError: There is one, but it cannot be read.
    """
    path = Path(folder)
    try:
        if (path / "scene.json").is_file():
            return DepthScene(path, long_side)
        if model_folder(path) is not None:
            return TrackScene(path, long_side)
    except KeyglueError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"the scene in {path} cannot be read: {type(error).__name__}: {error}.") from error
    return None


def _read_images(paths: list[Path], long_side: int) -> list[Tensor]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: read_gray(path, long_side), paths))


def _read_frames(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "scene.json").read_text(encoding="utf-8"))["frames"])


def _read_depth(folder: Path, frame: dict[str, Any], size: tuple[int, ...]) -> Tensor:
    """Return depth (h, w) at the size of the kept image, zero where it is not known."""
    with Image.open(folder / frame["depth"]) as image:
        values = torch.from_numpy(np.asarray(image).astype(np.float64)) * float(frame.get("depth_scale", 1.0))
    return _resize_nearest(values, (size[0], size[1]))


def _resize_nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map by taking the nearest value: means across an edge would be depths where nothing is."""
    rows, columns = (
        ((torch.arange(length) + 0.5) * (full / length) - 0.5).round().long().clamp(0, full - 1)
        for length, full in zip(size, values.shape, strict=True)
    )
    return values[rows][:, columns]


def _shrunk(image: PosedImage, size: tuple[int, ...]) -> PosedImage:
    camera = image.camera
    if camera.size is None:
        raise InputError(f"the camera of {image.name} has no size.")
    points = resize_keypoints(image.points, camera.size, (size[0], size[1]))
    return dataclasses.replace(image, camera=camera.scaled((size[0], size[1])), points=points)


def _undistorted(image: PosedImage, points: NDArray[Any]) -> NDArray[Any]:
    """Return points (N, 2) as the same camera without lens distortion would see them."""
    camera: Camera = image.camera
    if not camera.distortion or not len(points):
        return points
    ideal = camera.undistort(points)
    return ideal * (camera.fx, camera.fy) + (camera.cx, camera.cy)


def _shared_tracks(images: list[PosedImage]) -> Tensor:
    """Return the number of points (n, n) that each two images both see."""
    _, numbers = np.unique(np.concatenate([image.tracks for image in images]), return_inverse=True)
    sees = torch.zeros(len(images), int(numbers.max(initial=-1)) + 1)
    of_image = np.repeat(np.arange(len(images)), [len(image.tracks) for image in images])
    sees[torch.from_numpy(of_image), torch.from_numpy(numbers)] = 1
    return sees @ sees.mT


def _moved(features: Features, points: NDArray[Any]) -> Features:
    return dataclasses.replace(features, keypoints=torch.from_numpy(points).to(features.device))


def _some_pairs(count: int) -> list[tuple[int, int]]:
    """Return all pairs of frames, or of many frames some: the same ones each time."""
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    if len(pairs) <= MOST_PAIRS:
        return pairs
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(count))
    return [pairs[i] for i in sorted(order[:MOST_PAIRS].tolist())]
