"""Which matches of two photographs agree with one rigid scene, as COLMAP judges it.

Frame: COLMAP's, that is the picture as its file stores it, the centre of the top-left pixel at (0.5, 0.5).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyglue.base.errors import MissingDependencyError
from keyglue.base.types import Features
from keyglue.images.coordinates import to_colmap, to_stored_frame
from keyglue.reconstruction.record import ImageRecord
from keyglue.reconstruction.store import PairMatches

# COLMAP's guess where EXIF does not know the focal length: this times the longer side.
_DEFAULT_FOCAL_FACTOR = 1.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Settings of the geometric verification.

    Attributes:
        max_error: Largest epipolar error of an inlier, in pixels of the images as the model saw them (of the full
            images where those are smaller).
        min_inliers: Pairs with fewer inliers have no geometry.
        max_trials: Most samples that are tried. Hopeless pairs are the ones that take so many: with COLMAP's own 10,000
            they take longer to verify than to match.
        seed: Start of the random numbers.
    """

    max_error: float = 4.0
    min_inliers: int = 15
    max_trials: int = 2000
    seed: int = 0


def import_pycolmap() -> Any:
    """Return the module pycolmap.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise MissingDependencyError("pycolmap", "sfm", "a 3D model") from error
    return pycolmap


def colmap_camera(record: ImageRecord, model: str = "SIMPLE_RADIAL") -> Any:
    """Return a COLMAP camera for an image file, its focal length from EXIF where EXIF has it.

    Args:
        record: What is known of the file.
        model: Name of COLMAP's camera model.
    """
    height, width = record.stored_size
    focal = record.focal_length or _DEFAULT_FOCAL_FACTOR * max(record.size)
    camera = import_pycolmap().Camera.create_from_model_name(1, model, focal, width, height)
    camera.has_prior_focal_length = record.focal_length is not None
    return camera


def colmap_keypoints(keypoints: NDArray[np.float32], record: ImageRecord) -> NDArray[np.float32]:
    """Return keypoints (N, 2) of an upright image in COLMAP's frame of its file."""
    return to_colmap(to_stored_frame(keypoints, record.orientation, record.size))


def pixel_scale(features: Features) -> float:
    """Return how many pixels of the full image go into one of what the model saw, 1 at the least.

    Keypoints of a large photograph are no more exact than the pixels of its smaller copy that they were found in.
    """
    if features.original_size is None:
        return 1.0
    return max(1.0, max(features.original_size) / max(features.image_size))


def verify_pair(
    keypoints0: NDArray[np.float32],
    keypoints1: NDArray[np.float32],
    found: PairMatches,
    record0: ImageRecord,
    record1: ImageRecord,
    options: VerifyOptions,
    pixel_scale: float = 1.0,
) -> PairMatches:
    """Return matches with their inliers and two-view geometry.

    Args:
        keypoints0: (M, 2) all keypoints of image 0, upright.
        keypoints1: (N, 2) all keypoints of image 1, upright.
        found: The matches.
        record0: What is known of image 0.
        record1: What is known of image 1.
        options: Settings.
        pixel_scale: From ``pixel_scale``, where the model saw the images smaller than they are.

    Returns:
        The same matches with ``inliers``, and ``geometry`` as JSON values: COLMAP's name of the configuration, and the
        matrices E, F and H where it has them.
    """
    inliers = np.zeros(len(found), dtype=bool)
    if len(found) < options.min_inliers:
        return dataclasses.replace(found, inliers=inliers, geometry={"config": "DEGENERATE"})
    pycolmap = import_pycolmap()
    settings = pycolmap.TwoViewGeometryOptions()
    settings.min_num_inliers = options.min_inliers
    settings.ransac.max_error = options.max_error * pixel_scale
    settings.ransac.max_num_trials = options.max_trials
    settings.ransac.random_seed = options.seed
    index = np.arange(len(found), dtype=np.uint32)
    geometry = pycolmap.estimate_two_view_geometry(
        colmap_camera(record0),
        colmap_keypoints(keypoints0[found.matches[:, 0]], record0).astype(np.float64),
        colmap_camera(record1),
        colmap_keypoints(keypoints1[found.matches[:, 1]], record1).astype(np.float64),
        np.stack([index, index], axis=1),
        settings,
    )
    inliers[np.asarray(geometry.inlier_matches)[:, 0]] = True
    note: dict[str, Any] = {"config": pycolmap.TwoViewGeometryConfiguration(int(geometry.config)).name}
    for name in ("E", "F", "H") if inliers.any() else ():
        matrix = getattr(geometry, name)
        if matrix is not None and np.isfinite(matrix).all():
            note[name] = np.asarray(matrix).tolist()
    return dataclasses.replace(found, inliers=inliers, geometry=note)
