"""A picture of a sparse model: its points in their colours and its cameras as small pyramids, drawn with Pillow."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from keyglue.base.errors import InputError
from keyglue.images.canvas import BACKGROUND, TEXT, ramp
from keyglue.images.draw import draw_matches
from keyglue.reconstruction.store import FeatureStore, MatchStore

Array = NDArray[np.float64]

VIEWS = ("oblique", "top", "front")
_SMOOTHING = 2  # drawn so many times larger, then averaged down
_LOOK_DOWN = {"oblique": 28.0, "top": 90.0, "front": 0.0}  # degrees
_TURN = {"oblique": 25.0, "top": 0.0, "front": 0.0}
_MARGIN = 0.06
_KEPT = (4.0, 96.0)  # percentiles of the points that the picture is cut to


@dataclasses.dataclass(frozen=True)
class _Scene:
    points: Array
    colours: NDArray[np.uint8]
    centres: Array
    rotations: Array
    aspects: Array


def draw_model(model: Any, *, size: tuple[int, int] = (900, 1400), view: str = "oblique") -> Image.Image:
    """Draw the points and cameras of a model.

    Up is where the cameras' upper edges point on average; the scene is seen from the side of the cameras.

    Args:
        model: A pycolmap.Reconstruction.
        size: Height and width of the picture.
        view: "oblique" from above, "top", or "front" at the height of the cameras.

    Returns:
        An RGB picture.

    Raises:
        InputError: The model is empty, or the view is another one.
    """
    if view not in VIEWS:
        raise InputError(f"view must be one of {', '.join(VIEWS)}, got {view!r}.")
    scene = _read(model)
    axes = _axes(scene, view)
    height, width = size[0] * _SMOOTHING, size[1] * _SMOOTHING
    strip = 28 * _SMOOTHING
    reach = _camera_size(scene)
    corners = [_pyramid(scene, index, reach) for index in range(len(scene.centres))]
    flat, frame = scene.points @ axes.T, np.concatenate([_inner(scene.points) @ axes.T, *[c @ axes.T for c in corners]])
    low, high = frame[:, :2].min(axis=0), frame[:, :2].max(axis=0)
    span = np.maximum(high - low, 1e-9)
    scale = min(*((np.array([width, height - strip]) * (1 - 2 * _MARGIN)) / span))
    middle = np.array([width, height - strip]) / 2

    def place(points: Array) -> Array:
        return (points[:, :2] - (low + high) / 2) * scale + middle

    picture = np.empty((height, width, 3), dtype=np.uint8)
    picture[:] = BACKGROUND
    _paint_points(picture[: height - strip], place(flat), flat[:, 2], scene.colours)
    sheet = Image.fromarray(picture)
    pen = ImageDraw.Draw(sheet, "RGBA")
    far_first = np.argsort([-(corner @ axes.T)[0, 2] for corner in corners])
    colours = ramp(np.linspace(0.15, 1, max(1, len(corners))))
    for index in far_first:
        _paint_camera(pen, place(corners[index] @ axes.T), colours[index])
    return _labelled(sheet, model, size)


def draw_stored_matches(features: Path, matches: Path, images: Path, name0: str, name1: str) -> Image.Image:
    """Draw the matches of two images of a store, inliers green and outliers red where that is known.

    Args:
        features: Store of features.
        matches: Store of matches.
        images: Folder of the images.
        name0: Name of image 0, relative to the folder.
        name1: Name of image 1.

    Raises:
        InputError: The pair is not in the store.
        ImageError: An image cannot be read.
    """
    with FeatureStore(features) as described, MatchStore(matches) as matched:
        found = matched.load(name0, name1)
        points0, points1 = described.keypoints(name0), described.keypoints(name1)
    return draw_matches(
        images / name0,
        images / name1,
        points0[found.matches[:, 0]],
        points1[found.matches[:, 1]],
        found.scores,
        found.inliers,
        title=f"{name0} and {name1}",
    )


def _read(model: Any) -> _Scene:
    points = list(model.points3D.values())
    images = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)
    if not points or not images:
        raise InputError("the model has no points or no cameras to draw.")
    poses = [image.cam_from_world().matrix() for image in images]
    cameras = [model.cameras[image.camera_id] for image in images]
    return _Scene(
        points=np.array([point.xyz for point in points]),
        colours=np.array([point.color for point in points], dtype=np.uint8),
        centres=np.array([-pose[:, :3].T @ pose[:, 3] for pose in poses]),
        rotations=np.array([pose[:, :3] for pose in poses]),
        aspects=np.array([[c.width / c.mean_focal_length(), c.height / c.mean_focal_length()] for c in cameras]),
    )


def _axes(scene: _Scene, view: str) -> Array:
    """Return right, down and away (3, 3) of the view, in world coordinates."""
    up = -scene.rotations[:, 1].mean(axis=0)
    up = up / max(1e-9, float(np.linalg.norm(up)))
    # From where the cameras are to what they look at; cameras all around have no such side, then it is the first one's.
    away = np.median(scene.points, axis=0) - scene.centres.mean(axis=0)
    spread = np.linalg.norm(scene.centres - scene.centres.mean(axis=0), axis=1).mean()
    if np.linalg.norm(np.cross(away, up)) < 0.3 * spread:
        away = scene.rotations[0, 2]
    away = away - (away @ up) * up
    away = away / max(1e-9, float(np.linalg.norm(away)))
    right = np.cross(away, up)
    turn, tilt = np.radians(_TURN[view]), np.radians(_LOOK_DOWN[view])
    away, right = np.cos(turn) * away + np.sin(turn) * right, np.cos(turn) * right - np.sin(turn) * away
    seen_away = np.cos(tilt) * away - np.sin(tilt) * up
    down = -np.cos(tilt) * up - np.sin(tilt) * away
    return np.stack([right, down, seen_away])


def _inner(points: Array) -> Array:
    """Return the points without the outermost, which are mostly wrong and would shrink the rest."""
    low, high = np.percentile(points, _KEPT, axis=0)
    pad = 0.1 * (high - low)
    kept = points[((points >= low - pad) & (points <= high + pad)).all(axis=1)]
    return kept if len(kept) else points


def _camera_size(scene: _Scene) -> float:
    """Return the depth of the pyramids: a share of the distance between neighbouring cameras, within bounds."""
    extent = float(np.linalg.norm(np.ptp(np.concatenate([_inner(scene.points), scene.centres]), axis=0)))
    if len(scene.centres) < 2:
        return 0.05 * extent
    distances = np.linalg.norm(scene.centres[:, None] - scene.centres[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(np.clip(0.6 * np.median(distances.min(axis=1)), 0.012 * extent, 0.05 * extent))


def _pyramid(scene: _Scene, index: int, depth: float) -> Array:
    """Return the tip and the four corners (5, 3) of a camera's field of view, in world coordinates."""
    half = scene.aspects[index] / 2
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = np.concatenate([signs * half, np.ones((4, 1))], axis=1) * depth
    return np.concatenate([np.zeros((1, 3)), corners]) @ scene.rotations[index] + scene.centres[index]


def _paint_points(picture: NDArray[np.uint8], places: Array, depth: Array, colours: NDArray[np.uint8]) -> None:
    """Paint square dots, far ones first and darker."""
    height, width = picture.shape[:2]
    count = len(places)
    radius = int(np.clip(round(400 / max(1, count) ** 0.5), 1, 6))
    order = np.argsort(-depth)
    near, far = np.percentile(depth, _KEPT)
    light = np.clip(1.15 - 0.45 * (depth - near) / max(1e-9, far - near), 0.6, 1.15)
    # Dark points would vanish in the dark background.
    shown = np.clip((colours * 0.9 + 30) * light[:, None], 0, 255).astype(np.uint8)
    whole = np.rint(places).astype(np.int64)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dx * dx + dy * dy > radius * radius + 1:
                continue
            x, y = (whole[order] + (dx, dy)).T
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            picture[y[inside], x[inside]] = shown[order][inside]


def _paint_camera(pen: ImageDraw.ImageDraw, corners: Array, colour: tuple[int, int, int]) -> None:
    tip, *rim = [(float(x), float(y)) for x, y in corners]
    pen.polygon(rim, fill=(*colour, 60))
    for index, corner in enumerate(rim):
        pen.line([tip, corner], fill=(*colour, 220), width=_SMOOTHING)
        pen.line([corner, rim[(index + 1) % 4]], fill=(*colour, 255), width=_SMOOTHING + 1)


def _labelled(sheet: Image.Image, model: Any, size: tuple[int, int]) -> Image.Image:
    picture = sheet.resize((size[1], size[0]), Image.Resampling.BOX)
    text = (
        f"{model.num_reg_images()} cameras, {model.num_points3D():,} points, mean track "
        f"{model.compute_mean_track_length():.1f}, mean reprojection error "
        f"{model.compute_mean_reprojection_error():.2f} px"
    )
    ImageDraw.Draw(picture).text((12, size[0] - 14), text, fill=TEXT, font=ImageFont.load_default(14), anchor="lm")
    return picture
