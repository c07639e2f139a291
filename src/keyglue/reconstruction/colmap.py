"""Stores to a COLMAP database, a database to a sparse model, a model to files and numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keyglue.base.errors import InputError, KeyglueError
from keyglue.base.files import atomic_path
from keyglue.reconstruction.pairs import Pairs
from keyglue.reconstruction.record import ImageRecord
from keyglue.reconstruction.store import FeatureStore, MatchStore, PairMatches
from keyglue.reconstruction.verify import colmap_camera, colmap_keypoints, import_pycolmap

CAMERA_SHARING = ("auto", "single", "folder", "image")
MAPPERS = ("incremental", "global")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapOptions:
    """Settings of the mapping.

    Attributes:
        mapper: "incremental", or "global" for COLMAP's global mapper.
        camera_model: Name of COLMAP's camera model.
        camera_params: The camera's parameters where they are known, in COLMAP's order and frame, for all images; they
            are then kept. PINHOLE has fx, fy, cx, cy.
        cameras: Which images share a camera: "auto" those of one maker, model and focal length, or without EXIF
            those of one size in one folder; "single" all of one size; "folder" those of one folder; "image" none.
        max_error: Largest reprojection error of what becomes a part of the model, in pixels of the images as the
            detector saw them; the global mapper has limits of its own.
        refine: Whether keypoints are moved to where the photographs agree, once there is a model.
        principal_point: Whether the refinement estimates the cameras' principal points too. They are taken to be in the
            middle otherwise; with few images, or all from one side, that is often better.
        min_images: Models of fewer images are given up.
        seed: Start of the random numbers.
        threads: Number of threads; -1 for as many as there are cores.
    """

    mapper: str = "incremental"
    camera_model: str = "SIMPLE_RADIAL"
    camera_params: tuple[float, ...] | None = None
    cameras: str = "auto"
    max_error: float = 4.0
    refine: bool = True
    principal_point: bool = False
    min_images: int = 3
    seed: int = 0
    threads: int = -1

    def __post_init__(self) -> None:
        if self.mapper not in MAPPERS:
            raise InputError(f"mapper must be one of {', '.join(MAPPERS)}, got {self.mapper!r}.")
        if self.cameras not in CAMERA_SHARING:
            raise InputError(f"cameras must be one of {', '.join(CAMERA_SHARING)}, got {self.cameras!r}.")


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """Numbers of a sparse model.

    Attributes:
        images: Number of images that it was made from.
        registered: Number of images with a pose.
        points: Number of 3D points.
        observations: Number of keypoints that see a point.
        track_length: Mean number of images that see a point.
        error: Mean reprojection error in pixels.
        cameras: Number of cameras.
    """

    images: int
    registered: int
    points: int
    observations: int
    track_length: float
    error: float
    cameras: int


def write_database(
    path: Path,
    names: Sequence[str],
    pairs: Pairs,
    features: FeatureStore,
    matches: MatchStore,
    options: MapOptions | None = None,
) -> None:
    """Write a COLMAP database: cameras from EXIF, keypoints in COLMAP's frame, matches, two-view geometries.

    Args:
        path: File to write, atomically.
        names: The images.
        pairs: (P, 2) pairs of indices into ``names``; those without matches in the store are passed over.
        features: Features of the images.
        matches: Matches of the pairs.
        options: Camera model and sharing.

    Raises:
        InputError: The folder is not there, or an image is not in the store.
        StoreError: A store is damaged.
    """
    pycolmap, chosen = import_pycolmap(), options or MapOptions()
    with _temporary_folder(path.parent) as folder:
        unfinished = folder / "database.db"
        with pycolmap.Database.open(unfinished) as database, pycolmap.DatabaseTransaction(database):
            _write_images(pycolmap, database, names, features, chosen)
            for first, second in pairs:
                name0, name1 = names[int(first)], names[int(second)]
                if matches.stamp(name0, name1) is not None:
                    _write_pair(pycolmap, database, int(first) + 1, int(second) + 1, matches.load(name0, name1))
        with atomic_path(path) as temporary:
            unfinished.replace(temporary)


def _write_images(
    pycolmap: Any, database: Any, names: Sequence[str], features: FeatureStore, options: MapOptions
) -> None:
    cameras: dict[Any, Any] = {}
    for number, name in enumerate(names, start=1):
        record = features.record(name)
        key = _camera_key(name, record, options.cameras)
        if key not in cameras:
            camera = _camera(record, options)
            camera.camera_id = database.write_camera(camera)
            rig = pycolmap.Rig()
            rig.add_ref_sensor(camera.sensor_id)
            rig.rig_id = database.write_rig(rig)
            cameras[key] = camera, rig
        camera, rig = cameras[key]
        image = pycolmap.Image(name=name, camera_id=camera.camera_id, image_id=number)
        database.write_image(image, use_image_id=True)
        frame = pycolmap.Frame()
        frame.rig_id = rig.rig_id
        frame.add_data_id(image.data_id)
        database.write_frame(frame)
        database.write_keypoints(number, colmap_keypoints(features.keypoints(name), record))


def _camera(record: ImageRecord, options: MapOptions) -> Any:
    camera = colmap_camera(record, options.camera_model)
    if options.camera_params is not None:
        if len(options.camera_params) != len(camera.params):
            raise InputError(
                f"the camera model {options.camera_model} has the parameters {camera.params_info}, got "
                f"{len(options.camera_params)} values."
            )
        camera.params = options.camera_params
        camera.has_prior_focal_length = True
    return camera


def _write_pair(pycolmap: Any, database: Any, first: int, second: int, found: PairMatches) -> None:
    matches = found.matches.astype(np.uint32)
    database.write_matches(first, second, matches)
    if found.inliers is None or found.geometry is None or not found.inliers.any():
        return
    geometry = pycolmap.TwoViewGeometry()
    geometry.config = pycolmap.TwoViewGeometryConfiguration.__members__[found.geometry["config"]]
    geometry.inlier_matches = matches[found.inliers]
    for name in ("E", "F", "H"):
        if name in found.geometry:
            setattr(geometry, name, np.array(found.geometry[name]))
    database.write_two_view_geometry(first, second, geometry)


def _camera_key(name: str, record: ImageRecord, sharing: str) -> Any:
    """Return what images of one camera have in common; images of different sizes never share one."""
    folder = name.rpartition("/")[0]
    if sharing == "image":
        return name
    if sharing == "single":
        return record.stored_size
    if sharing == "folder" or not record.camera:
        return folder, record.stored_size
    return record.camera, record.focal_length, record.stored_size


def build_model(
    database: Path, images: Path, output: Path, options: MapOptions | None = None, pixel_scale: float = 1.0
) -> list[Path]:
    """Map a database to sparse models, the one with most images first.

    Args:
        database: COLMAP database with two-view geometries.
        images: Folder of the images, which the points take their colours from.
        output: Folder for the models, "0", "1" and so on, in COLMAP's binary format; replaced if it is there.
        options: Settings.
        pixel_scale: How many pixels of the images go into one of what the detector saw.

    Returns:
        The models' folders.

    Raises:
        KeyglueError: No model came about.
    """
    pycolmap, chosen = import_pycolmap(), options or MapOptions()
    pycolmap.set_random_seed(chosen.seed)
    with _temporary_folder(output.parent) as folder, _quiet(pycolmap):
        working = folder / "models"
        working.mkdir()
        if chosen.mapper == "global":
            found = pycolmap.global_mapping(database, images, working, _global_options(pycolmap, chosen))
        else:
            found = pycolmap.incremental_mapping(
                database, images, working, _incremental_options(pycolmap, chosen, pixel_scale)
            )
        models = sorted(found.values(), key=lambda model: (-model.num_reg_images(), -model.num_points3D()))
        models = [model for model in models if model.num_reg_images() >= 2]
        if not models:
            raise KeyglueError(
                "no model came about: too few images see the same points. More matches help: photographs that overlap "
                "more, more keypoints, a larger --resize, or exhaustive pairs."
            )
        finished = folder / "sparse"
        for number, model in enumerate(models):
            target = finished / str(number)
            target.mkdir(parents=True)
            model.write_binary(target)
        if output.exists():
            shutil.rmtree(output)
        finished.replace(output)
    return [output / str(number) for number in range(len(models))]


def _incremental_options(pycolmap: Any, options: MapOptions, pixel_scale: float) -> Any:
    settings = pycolmap.IncrementalPipelineOptions()
    settings.ba_refine_focal_length = settings.ba_refine_extra_params = options.camera_params is None
    settings.min_model_size = options.min_images
    settings.num_threads = options.threads
    settings.random_seed = options.seed
    error = options.max_error * pixel_scale
    settings.mapper.init_max_error = settings.mapper.filter_max_reproj_error = error
    settings.mapper.abs_pose_max_error = 3 * error
    settings.triangulation.merge_max_reproj_error = settings.triangulation.complete_max_reproj_error = error
    return settings


def _global_options(pycolmap: Any, options: MapOptions) -> Any:
    settings = pycolmap.GlobalPipelineOptions()
    adjustment = settings.mapper.bundle_adjustment
    adjustment.refine_focal_length = adjustment.refine_extra_params = options.camera_params is None
    settings.min_model_size = options.min_images
    settings.num_threads = options.threads
    settings.random_seed = options.seed
    return settings


def read_model(folder: Path) -> Any:
    """Read a sparse model as a pycolmap.Reconstruction.

    Args:
        folder: Holds cameras, images and points3D, or is an output folder of ``reconstruct``.

    Raises:
        InputError: There is no model.
    """
    pycolmap = import_pycolmap()
    for candidate in (folder, folder / "sparse" / "0", folder / "0", folder / "sparse"):
        if any((candidate / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            try:
                return pycolmap.Reconstruction(candidate)
            except (ValueError, RuntimeError, IndexError) as error:
                raise InputError(f"{candidate} cannot be read as a COLMAP model: {error}") from error
    raise InputError(f"{folder} holds no COLMAP model (cameras, images and points3D, .bin or .txt).")


def summarize(model: Any, images: int) -> ModelSummary:
    """Return the numbers of a model.

    Args:
        model: A pycolmap.Reconstruction.
        images: Number of images that it was made from.
    """
    return ModelSummary(
        images=images,
        registered=model.num_reg_images(),
        points=model.num_points3D(),
        observations=model.compute_num_observations(),
        track_length=round(float(model.compute_mean_track_length()), 3),
        error=round(float(model.compute_mean_reprojection_error()), 4),
        cameras=model.num_cameras(),
    )


def write_ply(model: Any, path: Path) -> None:
    """Write the points of a model, with their colours, as PLY."""
    with atomic_path(path) as temporary:
        model.export_PLY(temporary)


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Generator[Path]:
    """Yield a folder on the file system of the result, so that moving the result there is one step."""
    if not parent.is_dir():
        raise InputError(f"the folder {parent} does not exist. Create it first.")
    with tempfile.TemporaryDirectory(prefix=".keyglue-", dir=parent) as name:
        yield Path(name)


@contextlib.contextmanager
def _quiet(pycolmap: Any) -> Generator[None]:
    """Keep COLMAP's log to warnings while it maps."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = max(before, pycolmap.logging.Level.ERROR.value)
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before
