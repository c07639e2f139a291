"""Keypoints of a model moved to where the photographs themselves agree: patches of a point's images laid over another.

For each 3D point one image is the reference, the one that looks at it most directly. The patch around its keypoint is
registered to each other image by inverse compositional Gauss-Newton (Baker and Matthews, IJCV 2004) over an affine
warp that starts from what poses and point predict, with brightness and contrast free. Where that ends near its start
with patches that are alike, the keypoint moves there. Then the model is adjusted anew, with a robust loss.

Shapes: n observations, s samples of a patch. Frame: COLMAP's, in pixels of the picture as its file stores it.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from keyglue.images.coordinates import EXIF_UPRIGHT
from keyglue.images.read import read_image
from keyglue.images.resize import to_grayscale
from keyglue.reconstruction.verify import import_pycolmap

_CHUNK = 16_384  # points whose patches are held at once
_PICTURES = 128 << 20  # bytes of pictures that are kept
_LARGEST_WARP = 0.5  # change of the affine warp beyond which a registration has gone astray
_ADJUSTMENTS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """Settings of the refinement.

    Attributes:
        radius: Half width of the patches in pixels.
        iterations: Number of steps of each registration.
        max_shift: Keypoints move by no more than this many pixels.
        min_similarity: Smallest normalised cross-correlation of patches that are believed.
        max_error: Observations with a larger reprojection error in pixels are dropped after the adjustment.
        loss_scale: Errors in pixels from which on an observation loses weight.
    """

    radius: int = 9
    iterations: int = 12
    max_shift: float = 3.0
    min_similarity: float = 0.9
    max_error: float = 4.0
    loss_scale: float = 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class _Tracks:
    """The observations of a model's points: (n,) arrays, and positions (n, 2)."""

    point: NDArray[np.int64]
    image: NDArray[np.int64]
    keypoint: NDArray[np.int64]
    position: NDArray[np.float64]
    reference: NDArray[np.int64]  # index of the observation that is its point's reference
    warp: NDArray[np.float64]  # (n, 2, 2) from offsets in the reference image to offsets in this one


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
        progress: Called with "refine", the number of points done and that of all.

    Returns:
        The number of observations that were moved.

    Raises:
        ImageError: An image cannot be read.
    """
    chosen = options or RefineOptions()
    if not model.num_points3D():
        return 0
    tracks = _read_tracks(model)
    pictures = _Pictures(images, orientations, {number: image.name for number, image in model.images.items()})
    others = np.flatnonzero(tracks.reference != np.arange(len(tracks.point)))
    # Points of one reference image together, so that few pictures are needed at a time.
    others = others[np.lexsort((tracks.point[others], tracks.image[tracks.reference[others]]))]
    moved = 0
    for start in range(0, len(others), _CHUNK):
        part = others[start : start + _CHUNK]
        position, good = _register(tracks, part, pictures, chosen)
        for index, place in zip(part[good].tolist(), position[good], strict=True):
            model.images[int(tracks.image[index])].points2D[int(tracks.keypoint[index])].xy = place
        moved += int(good.sum())
        if progress is not None:
            progress("refine", start + len(part), len(others))
    _adjust(model, chosen, keep_cameras)
    return moved


def _adjust(model: Any, options: RefineOptions, keep_cameras: bool) -> None:
    """Adjust poses, points and cameras with a robust loss, and drop what does not fit."""
    pycolmap = import_pycolmap()
    settings = pycolmap.BundleAdjustmentOptions()
    settings.refine_focal_length = settings.refine_extra_params = not keep_cameras
    settings.print_summary = False
    # Keypoints that were not moved are several times less exact than those that were.
    settings.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    settings.ceres.loss_function_scale = options.loss_scale
    settings.ceres.auto_select_solver_type = True
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


def _read_tracks(model: Any) -> _Tracks:
    points = list(model.points3D.values())
    rows = [
        (index, element.image_id, element.point2D_idx)
        for index, point in enumerate(points)
        for element in point.track.elements
    ]
    point, image, keypoint = np.array(rows, dtype=np.int64).T
    poses = {number: item.cam_from_world().matrix() for number, item in model.images.items() if item.has_pose}
    focal = {number: model.cameras[model.images[number].camera_id].mean_focal_length() for number in poses}
    position = np.array(
        [model.images[i].points2D[k].xy for i, k in zip(image.tolist(), keypoint.tolist(), strict=True)]
    )
    places = np.array([item.xyz for item in points])
    pose = np.array([poses[number] for number in image.tolist()])
    ray = places[point] + np.einsum("nji,nj->ni", pose[:, :, :3], pose[:, :, 3])  # from the camera to the point
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    towards = np.zeros_like(places)
    np.add.at(towards, point, ray)
    towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-12)
    frontal = (ray * towards[point]).sum(axis=1)
    order = np.lexsort((-frontal, point))
    reference = order[np.unique(point[order], return_index=True)[1]][point]
    lengths = np.array([focal[number] for number in image.tolist()])
    tangent = _tangent_images(places[point], pose, towards[point], lengths)
    return _Tracks(point, image, keypoint, position, reference, tangent @ np.linalg.pinv(tangent[reference]))


def _tangent_images(
    places: NDArray[np.float64], pose: NDArray[np.float64], normal: NDArray[np.float64], focal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (n, 2, 2) how far two unit steps along a plane at each point move its image, in pixels.

    The plane faces the mean of the viewing directions. Lens distortion bends so small a patch too little to matter.
    """
    helper = np.eye(3)[np.abs(normal).argmin(axis=1)]
    first = np.cross(normal, helper)
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12)
    steps = np.stack([first, np.cross(normal, first)], axis=2)
    seen = np.einsum("nij,nj->ni", pose[:, :, :3], places) + pose[:, :, 3]
    moved = pose[:, :, :3] @ steps
    # Derivative of (x / z, y / z) along the steps.
    slope = moved[:, :2] - seen[:, :2, None] / seen[:, 2, None, None] * moved[:, 2:]
    return focal[:, None, None] * slope / seen[:, 2, None, None]


def _register(
    tracks: _Tracks, part: NDArray[np.int64], pictures: _Pictures, options: RefineOptions
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return new positions (n, 2) of some observations and whether (n,) they are to be believed."""
    reach = torch.arange(-options.radius, options.radius + 1, dtype=torch.float32)
    offsets = torch.stack(torch.meshgrid(reach, reach, indexing="xy"), dim=-1).flatten(0, 1)  # (s, 2)
    weight = torch.exp(-3 * (offsets / (options.radius + 1)).square().sum(dim=1))
    template = torch.zeros(len(part), 3, len(offsets))  # brightness and its slopes along x and y
    reference = tracks.reference[part]
    for image, rows in _by_image(tracks.image[reference]):
        centres = torch.from_numpy(tracks.position[reference[rows]]).float()
        samples = centres[:, None] + offsets
        picture = pictures.take(image)
        half = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
        slopes = [_sample(picture, samples + step) - _sample(picture, samples - step) for step in half]
        template[rows] = torch.stack([_sample(picture, samples), *slopes], dim=1)
    position, good = torch.from_numpy(tracks.position[part]).clone(), torch.zeros(len(part), dtype=torch.bool)
    for image, rows in _by_image(tracks.image[part]):
        start = torch.from_numpy(tracks.position[part[rows]]).float()
        warp = torch.from_numpy(tracks.warp[part[rows]]).float()
        shift, similarity, change = _align(
            pictures.take(image), template[rows], start, warp, offsets, weight, options.iterations
        )
        fine = (similarity >= options.min_similarity) & (shift.norm(dim=1) <= options.max_shift)
        good[rows] = fine & (change <= _LARGEST_WARP) & shift.isfinite().all(dim=1)
        position[rows] += shift.double()
    return position.numpy(), good.numpy()


def _align(
    picture: Tensor, template: Tensor, start: Tensor, warp: Tensor, offsets: Tensor, weight: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Register patches to one picture.

    Args:
        picture: (h, w).
        template: (n, 3, s) brightness of the reference patch and its slopes.
        start: (n, 2) where the patches are expected.
        warp: (n, 2, 2) expected warp of the offsets.
        offsets: (s, 2) places of the samples.
        weight: (s,) weights of the samples.
        iterations: Number of steps.

    Returns:
        Shift (n, 2) in pixels, similarity (n,), and largest change (n,) of the warp.
    """
    radius = offsets.max()
    wanted, deviation = _standardised(template[:, 0], weight)
    slopes = template[:, 1:].transpose(1, 2) / deviation[..., None]  # (n, s, 2)
    scaled = offsets / radius
    columns = [slopes, slopes[..., :1] * scaled, slopes[..., 1:] * scaled]
    steepest = torch.cat(columns, dim=-1)  # (n, s, 6): shift, then rows of the linear part
    weighted = steepest * weight[:, None]
    hessian = weighted.transpose(1, 2) @ steepest
    ridge = 1e-3 * hessian.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-9)
    inverse = torch.linalg.pinv(hessian + ridge[:, None, None] * torch.eye(6), hermitian=True)
    shift = torch.zeros(len(start), 2)
    linear = torch.eye(2).repeat(len(start), 1, 1)
    for _ in range(iterations):
        found, _ = _standardised(_sample(picture, _places(start, warp, linear, shift, offsets)), weight)
        step = (inverse @ (weighted.transpose(1, 2) @ (found - wanted)[..., None]))[..., 0]
        step = step.nan_to_num().clamp(-2, 2)
        change = step[:, 2:].unflatten(1, (2, 2)).clamp(-0.3, 0.3) / radius
        # The step warps the reference patch; its inverse is put before the warp so far.
        undo = torch.linalg.inv(torch.eye(2) + change)
        linear = linear @ undo
        shift = shift - (linear @ step[:, :2, None])[..., 0]
    found, _ = _standardised(_sample(picture, _places(start, warp, linear, shift, offsets)), weight)
    similarity = (found * wanted * weight).sum(dim=1) / weight.sum()
    return (warp @ shift[..., None])[..., 0], similarity, (linear - torch.eye(2)).abs().amax(dim=(1, 2))


def _places(start: Tensor, warp: Tensor, linear: Tensor, shift: Tensor, offsets: Tensor) -> Tensor:
    """Return (n, s, 2) where the samples of each patch lie in the picture."""
    moved = offsets @ linear.transpose(1, 2) + shift[:, None]
    return start[:, None] + moved @ warp.transpose(1, 2)


def _standardised(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (n, s) values of mean zero and deviation one, and their deviation (n, 1)."""
    total = weight.sum()
    centred = values - (values * weight).sum(dim=1, keepdim=True) / total
    deviation = ((centred.square() * weight).sum(dim=1, keepdim=True) / total).sqrt().clamp(min=1e-3)
    return centred / deviation, deviation


def _sample(picture: Tensor, places: Tensor) -> Tensor:
    """Return (n, s) brightness at places (n, s, 2) in COLMAP's frame; outside, that of the edge."""
    height, width = picture.shape
    grid = places / torch.tensor([width, height]) * 2 - 1
    return F.grid_sample(picture[None, None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[
        0, 0
    ]


def _by_image(images: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Return each image with the rows that belong to it."""
    order = np.argsort(images, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(images[order]) != 0]) if len(order) else []
    return [(int(images[rows[0]]), rows) for rows in np.split(order, starts[1:])] if len(order) else []


class _Pictures:
    """Gray pictures as their files store them, a little smoothed, the last used ones kept."""

    def __init__(self, folder: Path, orientations: Mapping[str, int], names: Mapping[int, str]) -> None:
        self._folder, self._orientations, self._names = folder, orientations, names
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def take(self, image: int) -> Tensor:
        if image not in self._kept:
            name = self._names[image]
            self._kept[image] = _smooth(_stored(read_image(self._folder / name), self._orientations[name]))
        self._kept.move_to_end(image)
        while len(self._kept) > 1 and sum(picture.nbytes for picture in self._kept.values()) > _PICTURES:
            self._kept.popitem(last=False)
        return self._kept[image]


def _stored(upright: Tensor, orientation: int) -> Tensor:
    """Return an upright image (C, h, w) as its file stores it, gray, (h, w)."""
    swap, flip_y, flip_x = EXIF_UPRIGHT.get(orientation, (False, False, False))
    gray = to_grayscale(upright)[0]
    gray = gray.flip([axis for axis, wanted in ((0, flip_y), (1, flip_x)) if wanted])
    return gray.T if swap else gray


def _smooth(picture: Tensor) -> Tensor:
    """Return a picture filtered by a Gaussian of 0.8 pixels, so that it may be interpolated and its slopes are calm."""
    kernel = torch.exp(-torch.arange(-2, 3).float().square() / (2 * 0.8**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(picture[None, None], (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, 5)), kernel.view(1, 1, 5, 1))[0, 0].contiguous()
