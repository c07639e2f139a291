"""Keypoints of a model moved to where the photographs themselves agree, and points found in more photographs.

Round one: of each 3D point one image is the reference, the one that looks at it most directly; the patch around its
keypoint is registered to each other image of the point, from what poses and point predict. Where the registration ends
near its start with patches that are alike, the keypoint moves there, and the model is adjusted with a robust loss.
Round two: keypoints that did not fit are tried again, against the nearest view that did; so are keypoints without a
point that lie where the model sees one. Then the model is adjusted anew.

Shapes: n observations. Frame: COLMAP's, in pixels of the picture as its file stores it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyglue.reconstruction.registration import LONGEST, Patches, Pictures, register
from keyglue.reconstruction.verify import import_pycolmap

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_ADJUSTMENTS = 3
_LIKE_DIRECTION = 0.5  # cosine of the largest angle to the mean direction that is tried
_CELL = np.array([1, 1 << 32])
# Farther from a picture than any keypoint, in pixels.
_FAR = 1e7


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """Settings of the refinement, in pixels of the pictures that are compared: 2000 on the longer side at most.

    Attributes:
        radius: Half width of the patches.
        iterations: Number of steps of each registration.
        min_similarity: Smallest normalised cross-correlation of patches that are believed.
        max_shift: Keypoints move no farther than this.
        max_deviation: Where a point has been refined, other keypoints of it come to lie no farther than this from
            where the model sees it.
        max_error: Observations with a larger reprojection error are dropped after the adjustment.
        loss_scale: Errors from which on an observation loses weight.
        principal_point: Whether the cameras' principal points are estimated too, in the last adjustment.
    """

    radius: int = 12
    iterations: int = 12
    min_similarity: float = 0.9
    max_shift: float = 3.0
    max_deviation: float = 1.0
    max_error: float = 4.0
    loss_scale: float = 0.25
    principal_point: bool = False

    def enlarged(self, scale: float) -> RefineOptions:
        """Return the settings in pixels of images that are larger than the pictures."""
        lengths = ("max_shift", "max_deviation", "max_error", "loss_scale")
        return dataclasses.replace(self, **{name: getattr(self, name) * scale for name in lengths})


@dataclasses.dataclass(frozen=True, eq=False)
class _Views:
    """Keypoints that see points, or may do so.

    Attributes:
        point: (n,) COLMAP's number of the point.
        image: (n,) number of the image.
        keypoint: (n,) index of the keypoint in it.
        position: (n, 2) its place.
        predicted: (n, 2) where the model sees the point.
        ray: (n, 3) unit vector from the camera to the point.
        tangent: (n, 2, 2) by how many pixels two unit steps on a plane at the point move it in the image.
        settled: (n,) whether the keypoint has its final place.
    """

    point: Index
    image: Index
    keypoint: Index
    position: Array
    predicted: Array
    ray: Array
    tangent: Array
    settled: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.point)


class _Settled:
    """Which keypoints have their final place."""

    def __init__(self, model: Any) -> None:
        self._of = {number: np.zeros(image.num_points2D(), dtype=bool) for number, image in model.images.items()}

    def add(self, image: Index, keypoint: Index) -> None:
        for number, index in zip(image.tolist(), keypoint.tolist(), strict=True):
            self._of[number][index] = True

    def among(self, image: Index, keypoint: Index) -> NDArray[np.bool_]:
        pairs = zip(image.tolist(), keypoint.tolist(), strict=True)
        return np.array([self._of[number][index] for number, index in pairs], dtype=bool)


def refine_model(
    model: Any,
    images: Path,
    orientations: Mapping[str, int],
    options: RefineOptions | None = None,
    *,
    keep_cameras: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> int:
    """Move the keypoints of a model's points to sub-pixel places, and adjust the model to them, in place.

    Args:
        model: A pycolmap.Reconstruction.
        images: Folder of the images.
        orientations: EXIF orientation of each image.
        options: Settings.
        keep_cameras: Whether the cameras' parameters are known and stay as they are.
        progress: Called with "refine", the number of rounds done and that of all.

    Returns:
        The number of observations that were moved.

    Raises:
        ImageError: An image cannot be read.
    """
    longest = max((max(camera.width, camera.height) for camera in model.cameras.values()), default=1)
    chosen = (options or RefineOptions()).enlarged(max(1.0, longest / LONGEST))
    pictures = Pictures(images, orientations, {number: image.name for number, image in model.images.items()})
    settled, moved = _Settled(model), 0
    for done, work in enumerate((_first_round, _second_round), start=1):
        if model.num_points3D():
            moved += work(model, pictures, settled, chosen)
            _adjust(model, chosen, keep_cameras, chosen.principal_point and work is _second_round)
        if progress is not None:
            progress("refine", done, 2)
    return moved


def _first_round(model: Any, pictures: Pictures, settled: _Settled, options: RefineOptions) -> int:
    views = _views(model, _elements(model), settled)
    towards = _mean_rays(views)
    frontal = (views.ray * towards).sum(axis=1)
    order = np.lexsort((-frontal, views.point))
    _, first, group = np.unique(views.point[order], return_index=True, return_inverse=True)
    reference = np.empty(len(views), dtype=np.int64)
    reference[order] = order[first][group]
    rows = np.flatnonzero(reference != np.arange(len(views)))
    position, similarity = _register(views, rows, reference[rows], views.position[rows], pictures, options)
    shift = np.linalg.norm(position - views.position[rows], axis=1)
    good = (similarity >= options.min_similarity) & (shift <= options.max_shift)
    moved, anchors = rows[good], np.unique(reference[rows[good]])
    _move(model, views, moved, position[good])
    for part in (moved, anchors):
        settled.add(views.image[part], views.keypoint[part])
    return len(moved)


def _second_round(model: Any, pictures: Pictures, settled: _Settled, options: RefineOptions) -> int:
    known = _elements(model)
    views = _views(model, np.concatenate([known, _unused_keypoints(model, known, settled, options)]), settled)
    rows, reference = _nearest_settled(views)
    position, similarity = _register(views, rows, reference, views.predicted[rows], pictures, options)
    good = (
        (similarity >= options.min_similarity)
        & (np.linalg.norm(position - views.predicted[rows], axis=1) <= options.max_deviation)
        & (np.linalg.norm(position - views.position[rows], axis=1) <= options.max_shift)
    )
    moved = rows[good]
    _move(model, views, moved, position[good])
    pycolmap = import_pycolmap()
    for row in moved[moved >= len(known)].tolist():
        element = pycolmap.TrackElement(int(views.image[row]), int(views.keypoint[row]))
        model.add_observation(int(views.point[row]), element)
    return len(moved)


def _move(model: Any, views: _Views, rows: Index, position: Array) -> None:
    for row, place in zip(rows.tolist(), position, strict=True):
        model.images[int(views.image[row])].points2D[int(views.keypoint[row])].xy = place


def _register(
    views: _Views, rows: Index, reference: Index, start: Array, pictures: Pictures, options: RefineOptions
) -> tuple[Array, Array]:
    """Register the patches of ``reference`` in the images of ``rows``."""
    warp = views.tangent[rows] @ np.linalg.pinv(views.tangent[reference])
    patches = Patches(views.image[reference], views.position[reference], views.image[rows], start, warp)
    return register(patches, pictures, options.radius, options.iterations)


def _nearest_settled(views: _Views) -> tuple[Index, Index]:
    """Return the views that are not settled but whose point has settled ones, and of those the nearest in direction."""
    anchors = np.flatnonzero(views.settled)
    anchors = anchors[np.argsort(views.point[anchors], kind="stable")]
    rows = np.flatnonzero(~views.settled)
    start = np.searchsorted(views.point[anchors], views.point[rows])
    count = np.searchsorted(views.point[anchors], views.point[rows], side="right") - start
    rows, start, count = (values[count > 0] for values in (rows, start, count))
    if not len(rows):
        return rows, rows
    left = np.repeat(np.arange(len(rows)), count)
    right = anchors[np.arange(len(left)) + np.repeat(start - np.cumsum(count) + count, count)]
    likeness = (views.ray[rows[left]] * views.ray[right]).sum(axis=1)
    best = np.lexsort((-likeness, left))[np.cumsum(count) - count]
    return rows, right[best]


def _elements(model: Any) -> Index:
    """Return point, image and keypoint (n, 3) of all that the model's tracks hold."""
    elements = [
        (number, element.image_id, element.point2D_idx)
        for number, point in model.points3D.items()
        for element in point.track.elements
    ]
    return np.array(elements, dtype=np.int64).reshape(-1, 3)


def _unused_keypoints(model: Any, known: Index, settled: _Settled, options: RefineOptions) -> Index:
    """Return point, image and keypoint (m, 3) where a keypoint without a point lies close to where a point is seen.

    Points are those that two settled keypoints see at least, in images that look at them from a like direction.
    """
    numbers, index, count = np.unique(
        known[settled.among(known[:, 1], known[:, 2]), 0], return_inverse=True, return_counts=True
    )
    views = _views(model, known[settled.among(known[:, 1], known[:, 2])], settled)
    towards = np.zeros((len(numbers), 3))
    towards[index] = _mean_rays(views)
    numbers, towards = numbers[count > 1], towards[count > 1]
    places = np.array([model.points3D[number].xyz for number in numbers.tolist()]).reshape(-1, 3)
    found: list[tuple[float, int, int, int]] = []
    for image in model.reg_image_ids():
        item = model.images[image]
        points2D = item.points2D
        free = np.array([k for k, point in enumerate(points2D) if not point.has_point3D()], dtype=np.int64)
        used = [point.point3D_id for point in points2D if point.has_point3D()]
        if not len(free):
            continue
        pose, camera = item.cam_from_world().matrix(), model.cameras[item.camera_id]
        seen = places @ pose[:, :3].T + pose[:, 3]
        likeness = (seen @ pose[:, :3] * towards).sum(axis=1) / np.maximum(np.linalg.norm(seen, axis=1), 1e-12)
        rows = np.flatnonzero((seen[:, 2] > 0) & (likeness > _LIKE_DIRECTION) & ~np.isin(numbers, used))
        predicted = camera.img_from_cam(seen[rows], check_cheirality=False)
        nearest, distance = nearest_within(
            predicted, np.array([points2D[k].xy for k in free.tolist()]), options.max_shift
        )
        near = np.flatnonzero(nearest >= 0)
        wanted = zip(distance[near], free[nearest[near]].tolist(), numbers[rows[near]].tolist(), strict=True)
        found.extend((length, image, keypoint, number) for length, keypoint, number in wanted)
    # A keypoint goes to the nearest of the points that want it.
    best: dict[tuple[int, int], int] = {}
    for _, image, keypoint, number in sorted(found):
        best.setdefault((image, keypoint), number)
    return np.array([(number, *where) for where, number in best.items()], dtype=np.int64).reshape(-1, 3)


def nearest_within(places: Array, others: Array, reach: float) -> tuple[Index, Array]:
    """Return for each place (m, 2) the nearest of the others (k, 2) no farther than ``reach``, and its distance.

    Places that are not numbers, as where a camera's distortion has no inverse, have none.

    Returns:
        Indices (m,), -1 where there is none, and distances (m,).
    """
    nearest, distance = np.full(len(places), -1, dtype=np.int64), np.full(len(places), float(reach))
    cells = np.floor(others / reach).astype(np.int64) @ _CELL
    order = np.argsort(cells, kind="stable")
    cells = cells[order]
    within = np.nan_to_num(places, nan=_FAR).clip(-_FAR, _FAR)
    own = np.floor(within / reach).astype(np.int64)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            wanted = (own + np.array([dx, dy])) @ _CELL
            start, stop = np.searchsorted(cells, wanted), np.searchsorted(cells, wanted, side="right")
            for step in range(int((stop - start).max(initial=0))):
                rows = np.flatnonzero(start + step < stop)
                candidates = order[start[rows] + step]
                length = np.linalg.norm(others[candidates] - places[rows], axis=1)
                closer = length <= distance[rows]
                nearest[rows[closer]], distance[rows[closer]] = candidates[closer], length[closer]
    return nearest, distance


def _views(model: Any, elements: Index, settled: _Settled) -> _Views:
    """Return views of points, images and keypoints (n, 3)."""
    point, image, keypoint = elements.T
    position, predicted = np.zeros((2, len(point), 2))
    ray, slopes = np.zeros((len(point), 3)), np.zeros((len(point), 2, 3))
    numbers, index = np.unique(point, return_inverse=True)
    places = np.array([model.points3D[number].xyz for number in numbers.tolist()]).reshape(-1, 3)[index]
    for number in np.unique(image).tolist():
        rows = np.flatnonzero(image == number)
        item = model.images[number]
        camera, pose = model.cameras[item.camera_id], item.cam_from_world().matrix()
        position[rows] = np.array([item.points2D[k].xy for k in keypoint[rows].tolist()])
        seen = places[rows] @ pose[:, :3].T + pose[:, 3]
        predicted[rows] = camera.img_from_cam(seen, check_cheirality=False)
        ray[rows] = seen @ pose[:, :3]
        # Derivative of focal length times (x / z, y / z); lens distortion bends so small a patch too little to matter.
        slope = (pose[None, :2, :3] - (seen[:, :2] / seen[:, 2:])[:, :, None] * pose[2, :3]) / seen[:, 2, None, None]
        slopes[rows] = camera.mean_focal_length() * slope
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    views = _Views(
        point, image, keypoint, position, predicted, ray, np.zeros((0, 2, 2)), settled.among(image, keypoint)
    )
    return dataclasses.replace(views, tangent=slopes @ _plane(views))


def _plane(views: _Views) -> Array:
    """Return two unit steps (n, 3, 2) along the plane at each view's point that faces the mean of its rays."""
    normal = _mean_rays(views)
    helper = np.eye(3)[np.abs(normal).argmin(axis=1)]
    first: Array = np.cross(normal, helper)
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12)
    second: Array = np.cross(normal, first)
    return np.stack([first, second], axis=2)


def _mean_rays(views: _Views) -> Array:
    """Return the mean direction (n, 3) in which the images look at each view's point."""
    _, group = np.unique(views.point, return_inverse=True)
    sums = np.zeros((group.max(initial=-1) + 1, 3))
    np.add.at(sums, group, views.ray)
    return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12))[group]


def _adjust(model: Any, options: RefineOptions, keep_cameras: bool, principal_point: bool = False) -> None:
    """Adjust poses, points and cameras with a robust loss, and drop what does not fit."""
    pycolmap = import_pycolmap()
    settings = pycolmap.BundleAdjustmentOptions()
    settings.refine_focal_length = settings.refine_extra_params = not keep_cameras
    settings.refine_principal_point = principal_point and not keep_cameras
    settings.print_summary = False
    # Keypoints that were not moved are several times less exact than those that were.
    settings.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    settings.ceres.loss_function_scale = options.loss_scale
    settings.ceres.auto_select_solver_type = True
    # COLMAP's own value, zero, takes three times as long for the last thousandth of a degree.
    settings.ceres.solver_options.function_tolerance = 1e-6
    config = pycolmap.BundleAdjustmentConfig()
    for number in model.reg_image_ids():
        config.add_image(number)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    manager = pycolmap.ObservationManager(model)
    smallest_angle = pycolmap.IncrementalMapperOptions().filter_min_tri_angle
    for _ in range(_ADJUSTMENTS):
        pycolmap.create_default_bundle_adjuster(settings, config, model).solve()
        manager.filter_all_points3D(options.max_error, smallest_angle)
    model.update_point_3d_errors()
