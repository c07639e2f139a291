"""Sets of pairs with camera poses: folders with a scene.json or a COLMAP model, and the rule that chooses the pairs.

scene.json: {"frames": [{"name", "w", "h", "K", "R", "t", optional "dist", "depth", "depth_scale"}]} with
x_cam = R x_world + t and pixel = K x_cam; "name" and "depth" are paths relative to the file.
"""

from __future__ import annotations

import dataclasses
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keyglue.base.errors import InputError
from keyglue.multiview.arrays import Array, as_array, homogeneous
from keyglue.multiview.cameras import Camera, as_camera
from keyglue.multiview.sparse_model import model_folder, read_sparse_model
from keyglue.scoring.pairs import PairSet, Picture, PoseTruth, ScoredPair

ANGLES = (5.0, 45.0)
LEAST_OVERLAP = 0.3
RULE = (
    f"All pairs of cameras of a scene that see its surface from {ANGLES[0]:.0f} to {ANGLES[1]:.0f} degrees apart and "
    f"share at least {LEAST_OVERLAP:.0%} of their images, by the rule of docs/scoring.md."
)
_GRID = 24


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One image of a scene with its camera.

    Attributes:
        name: Path of the image, relative to the scene.
        camera: With the image's size.
        R: (3, 3) rotation from world to camera.
        t: (3,) translation from world to camera.
        depth: Depth map (16 bit), relative to the scene; None where there is none.
        depth_scale: Factor from the depth map's numbers to the unit of ``t``.
    """

    name: str
    camera: Camera
    R: Array
    t: Array
    depth: Path | None = None
    depth_scale: float = 1.0

    @property
    def centre(self) -> Array:
        """(3,) position of the camera in the world."""
        return -self.R.T @ self.t


def strecha(folder: Path) -> PairSet:
    """Read scenes in folders with a scene.json, such as fountain-P11 and Herz-Jesus-P25; see ``poses``."""
    return dataclasses.replace(poses(folder), name="strecha")


def poses(folder: Path) -> PairSet:
    """Read a scene, or one in each folder, and choose pairs.

    A scene is a scene.json, or images/ with a COLMAP model in sparse/ or sparse/0/. Where a file pairs.txt lies beside
    it, with two image names a line, its pairs are taken. Otherwise it is ``choose_pairs`` that chooses.

    Args:
        folder: Holds a scene, or folders that do.

    Raises:
        InputError: A file is missing or incomplete, or no pair is left.
    """
    scenes = [folder] if _is_scene(folder) else sorted(scene for scene in folder.glob("*") if _is_scene(scene))
    if not scenes:
        raise InputError(
            f"{folder} must hold scene.json, or images/ with a COLMAP model in sparse/, or folders with one of these."
        )
    pairs: list[ScoredPair] = []
    listed = 0
    for scene in scenes:
        frames = _read_scene(scene)
        names = scene / "pairs.txt"
        listed += names.is_file()
        chosen = _listed_pairs(names, frames) if names.is_file() else choose_pairs(frames, scene)
        for index0, index1 in chosen:
            first, second = frames[index0], frames[index1]
            R = second.R @ first.R.T
            pairs.append(
                ScoredPair(
                    name=f"{scene.name}/{Path(first.name).stem}-{Path(second.name).stem}",
                    image0=Picture.of_file(scene / first.name, folder),
                    image1=Picture.of_file(scene / second.name, folder),
                    truth=PoseTruth(R=R, t=second.t - R @ first.t, camera0=first.camera, camera1=second.camera),
                    group=scene.name if len(scenes) > 1 else "",
                )
            )
    if not pairs:
        raise InputError(f"{folder}: the rule for choosing pairs leaves no pairs. List pairs of images in pairs.txt.")
    rule = RULE if not listed else "The pairs of pairs.txt." if listed == len(scenes) else f"pairs.txt, else: {RULE}"
    return PairSet(name="poses", pairs=pairs, rule=rule)


def _is_scene(folder: Path) -> bool:
    return (folder / "scene.json").is_file() or model_folder(folder) is not None


def _read_scene(scene: Path) -> list[Frame]:
    """Read the frames of a scene.json, or of the COLMAP model of a folder."""
    sparse = model_folder(scene)
    if (scene / "scene.json").is_file() or sparse is None:
        return read_frames(scene / "scene.json")
    images = read_sparse_model(sparse)
    return [Frame(name=f"images/{image.name}", camera=image.camera, R=image.R, t=image.t) for image in images]


def read_frames(file: Path) -> list[Frame]:
    """Read the images and cameras of a scene.json.

    Raises:
        InputError: The file is missing or incomplete, or R is no rotation.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["frames"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read as a scene with 'frames': {error}") from error
    frames: list[Frame] = []
    for entry in entries:
        missing = [key for key in ("name", "w", "h", "K", "R", "t") if key not in entry]
        if missing:
            raise InputError(f"{file}: frame {entry.get('name', len(frames))!r} has no {', '.join(missing)}.")
        R = as_array(entry["R"], (3, 3), f"R of {entry['name']}")
        # Files hold rotations rounded to six digits or so; more than that is a mistake.
        if np.abs(R @ R.T - np.eye(3)).max() > 1e-3 or np.linalg.det(R) < 0:
            raise InputError(f"{file}: R of {entry['name']} is not a rotation.")
        left, _, right = np.linalg.svd(R)
        frames.append(
            Frame(
                name=entry["name"],
                camera=as_camera(entry),
                R=left @ right,
                t=as_array(entry["t"], (3,), f"t of {entry['name']}"),
                depth=Path(entry["depth"]) if entry.get("depth") else None,
                depth_scale=float(entry.get("depth_scale", 1.0)),
            )
        )
    return frames


def choose_pairs(frames: list[Frame], scene: Path) -> list[tuple[int, int]]:
    """Choose the pairs that are neither trivial nor hopeless, by the cameras alone.

    Of each image a grid of pixels is put on the scene's surface: at the depth that the frame's depth map says, or, for
    scenes without depth, on the plane through the point that is nearest to all optical axes. The overlap of two images
    is the share of those points that the other camera has in its image, the smaller of both directions; the angle of a
    pair is the median of the angles under which these points see the two cameras. A pair is taken if the overlap is at
    least ``LEAST_OVERLAP`` and the angle within ``ANGLES``. Nothing is known of what hides what.

    Args:
        frames: Of one scene.
        scene: Folder that the frames' paths are relative to.

    Returns:
        Indices of the images of each pair, the smaller first.
    """
    if len(frames) < 2:
        return []
    centre = _centre(frames)
    surfaces = [_surface(frame, scene, centre) for frame in frames]
    chosen: list[tuple[int, int]] = []
    for index0, index1 in combinations(range(len(frames)), 2):
        first, second = frames[index0], frames[index1]
        if not len(surfaces[index0]) or not len(surfaces[index1]):
            continue  # no depth is known
        seen0, seen1 = _seen(surfaces[index0], second), _seen(surfaces[index1], first)
        if min(seen0.mean(), seen1.mean()) < LEAST_OVERLAP:
            continue
        shared = np.concatenate([surfaces[index0][seen0], surfaces[index1][seen1]])
        if ANGLES[0] <= np.median(_angles(shared, first.centre, second.centre)) <= ANGLES[1]:
            chosen.append((index0, index1))
    return chosen


def _listed_pairs(file: Path, frames: list[Frame]) -> list[tuple[int, int]]:
    index = {frame.name: number for number, frame in enumerate(frames)}
    # A COLMAP model names its images without their folder.
    index.update({name.removeprefix("images/"): number for name, number in index.items()})
    chosen: list[tuple[int, int]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        names = line.split()
        if not names or names[0].startswith("#"):
            continue
        if len(names) != 2 or any(name not in index for name in names):
            raise InputError(f"{file}, line {number}: expected two image names of the scene, got {line!r}.")
        chosen.append((index[names[0]], index[names[1]]))
    return chosen


def _centre(frames: list[Frame]) -> Array:
    """Return the point (3,) with the least squared distances to all optical axes."""
    across = [np.eye(3) - np.outer(frame.R[2], frame.R[2]) for frame in frames]
    weighted = sum(matrix @ frame.centre for matrix, frame in zip(across, frames, strict=True))
    return np.asarray(np.linalg.lstsq(sum(across), weighted, rcond=None)[0], dtype=np.float64)


def _surface(frame: Frame, scene: Path, centre: Array) -> Array:
    """Return the points of the world (N, 3) that a grid of the frame's pixels sees; N = 0 where nothing is known."""
    height, width = frame.camera.size or (1, 1)
    steps = (np.arange(_GRID) + 0.5) / _GRID
    columns, rows = (axis.ravel() for axis in np.meshgrid(steps * width - 0.5, steps * height - 0.5))
    depth: Any = np.full(len(columns), float(frame.R[2] @ centre + frame.t[2]))
    if frame.depth is not None:
        depth = _depth_at(scene / frame.depth, rows / height, columns / width) * frame.depth_scale
    usable = np.isfinite(depth) & (depth > 0)
    rays = homogeneous(frame.camera.undistort(np.stack([columns, rows], axis=1)))[usable]
    return (rays * depth[usable, None] - frame.t) @ frame.R


def _depth_at(file: Path, rows: Array, columns: Array) -> Array:
    """Return the raw depths at relative positions (N,), 0 to 1, of the map."""
    try:
        with Image.open(file) as image:
            depth = np.asarray(image, dtype=np.float64)
    except OSError as error:
        raise InputError(f"the depth map {file} cannot be read: {error}") from error
    height, width = depth.shape
    return depth[(rows * height).astype(int).clip(0, height - 1), (columns * width).astype(int).clip(0, width - 1)]


def _seen(points: Array, frame: Frame) -> Any:
    """Tell which points (N, 3) of the world lie in front of a camera and in its image."""
    height, width = frame.camera.size or (0, 0)
    with np.errstate(invalid="ignore"):
        x, y = frame.camera.project(points @ frame.R.T + frame.t).T
        return (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)


def _angles(points: Array, centre0: Array, centre1: Array) -> Array:
    """Return the angles in degrees (N,) under which points see two camera centres."""
    first, second = centre0 - points, centre1 - points
    across = np.linalg.norm(np.cross(first, second), axis=1)
    return np.degrees(np.arctan2(across, (first * second).sum(axis=1)))
