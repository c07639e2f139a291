"""True matches of keypoints, from what is known of a pair of images.

Labels of a pair are as ``keyglue.matching.lightglue.loss`` takes them: for each keypoint of one image the index of its
true match in the other, -1 (``UNMATCHABLE``) where it has none, -100 (``IGNORE``) where nothing is known.

Shapes: M and N keypoints in image 0 and 1; leading dimensions (...) are batches. Frame: pixels of each image, the
centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.base.types import Features
from keyglue.matching.lightglue.loss import IGNORE, UNMATCHABLE
from keyglue.training.geometry import (
    camera_matrix,
    disparity_of_right,
    epipolar_distances,
    fundamental_matrix,
    project_by_depth,
    project_by_disparity,
)
from keyglue.training.homographies import warp

Labels = tuple[Tensor, Tensor]


def labels_from_homography(
    features0: Features, features1: Features, H: Tensor, *, positive: float = 3.0, negative: float = 3.0
) -> Labels:
    """Label the keypoints of two images that are related by a homography.

    Matches are mutually nearest, and closer than ``positive`` in both images. What is further than ``negative`` from
    every keypoint of the other image has no match.

    Args:
        features0: Keypoints of image 0.
        features1: Keypoints of image 1.
        H: (3, 3) homography from pixels of image 0 to pixels of image 1.
        positive: Largest distance of a match in pixels.
        negative: Distance in pixels beyond which a keypoint has no match; in between nothing is said.

    Returns:
        Labels (M,) and (N,).

    Raises:
        InputError: H is not a finite (3, 3) matrix, or ``negative`` is less than ``positive``.
    """
    matrix = torch.as_tensor(H, dtype=torch.float64, device=features0.device)
    if matrix.shape != (3, 3) or not torch.isfinite(matrix).all():
        raise InputError(f"H must be a finite (3, 3) matrix, got shape {tuple(matrix.shape)}.")
    return homography_labels(features0.keypoints, features1.keypoints, matrix, positive=positive, negative=negative)


def homography_labels(
    keypoints0: Tensor, keypoints1: Tensor, H: Tensor, *, positive: float = 3.0, negative: float = 3.0
) -> Labels:
    """Label keypoints (..., M, 2) and (..., N, 2) by homographies (..., 3, 3); see ``labels_from_homography``."""
    _check_distances(positive, negative)
    there = warp(H, keypoints0.to(H.dtype))
    back = warp(torch.linalg.inv(H), keypoints1.to(H.dtype))
    return labels_from_projections(keypoints0, keypoints1, there, back, positive=positive, negative=negative)


def labels_from_depth(
    features0: Features,
    features1: Features,
    depth0: Tensor,
    depth1: Tensor,
    camera0: Any,
    camera1: Any,
    R: Tensor,
    t: Tensor,
    *,
    positive: float = 3.0,
    negative: float = 5.0,
) -> Labels:
    """Label the keypoints of two images with depth and pose.

    Matches are mutually nearest and closer than ``positive`` in both images. A keypoint has no match where it would lie
    further than ``negative`` from every keypoint of the other image, or is hidden there. Without depth it has none
    where its epipolar line passes all of them at more than ``negative``; else nothing is said.

    Args:
        features0: Keypoints of image 0.
        features1: Keypoints of image 1.
        depth0: (h, w) depth along the axis of camera 0; 0, NaN or infinite where it is not known.
        depth1: (h, w) the same for camera 1, in the same unit.
        camera0: Camera or (3, 3) matrix of image 0, without lens distortion.
        camera1: The same for image 1.
        R: (3, 3) rotation from camera 0 to camera 1: x_1 = R x_0 + t.
        t: (3,) translation, in the unit of depth.
        positive: Largest distance of a match in pixels.
        negative: Distance in pixels beyond which a keypoint has no match.

    Returns:
        Labels (M,) and (N,).

    Raises:
        InputError: A depth map is not of its image's size, a camera has lens distortion, or the pose is no pose.
    """
    _check_distances(positive, negative)
    for features, depth, name in ((features0, depth0, "depth0"), (features1, depth1, "depth1")):
        _check_map(depth, features, name)
    device = features0.device
    K0, K1 = camera_matrix(camera0, device), camera_matrix(camera1, device)
    R, t = (torch.as_tensor(value, dtype=torch.float64, device=device) for value in (R, t))
    if R.shape != (3, 3) or t.numel() != 3 or not (torch.isfinite(R).all() and torch.isfinite(t).all()):
        raise InputError("R must be a finite (3, 3) matrix and t a finite vector of 3.")
    t = t.reshape(3)
    points0, points1 = features0.keypoints.double(), features1.keypoints.double()
    there, known0 = project_by_depth(points0, depth0, depth1, K0, K1, R, t)
    back, known1 = project_by_depth(points1, depth1, depth0, K1, K0, R.mT, -R.mT @ t)
    F = fundamental_matrix(K0, K1, R, t)
    passed0 = (epipolar_distances(points0, points1, F) > negative).all(dim=1)
    passed1 = (epipolar_distances(points1, points0, F.mT) > negative).all(dim=1)
    return labels_from_projections(
        points0,
        points1,
        there,
        back,
        positive=positive,
        negative=negative,
        known0=known0 | passed0,
        known1=known1 | passed1,
    )


def labels_from_disparity(
    features0: Features,
    features1: Features,
    disparity0: Tensor,
    disparity1: Tensor | None = None,
    *,
    positive: float = 3.0,
    negative: float = 5.0,
) -> Labels:
    """Label the keypoints of a rectified stereo pair.

    Args:
        features0: Keypoints of the left image.
        features1: Keypoints of the right image.
        disparity0: (h, w) of the left image: x minus disparity is x in the right one. Not finite, or not positive,
            where it is not known.
        disparity1: (h, w) of the right image; made from the left one unless given.
        positive: Largest distance of a match in pixels.
        negative: Distance in pixels beyond which a keypoint has no match.

    Returns:
        Labels (M,) and (N,).

    Raises:
        InputError: A disparity map is not of its image's size.
    """
    _check_distances(positive, negative)
    _check_map(disparity0, features0, "disparity0")
    right = disparity_of_right(disparity0) if disparity1 is None else disparity1
    _check_map(right, features1, "disparity1")
    points0, points1 = features0.keypoints.double(), features1.keypoints.double()
    there, known0 = project_by_disparity(points0, disparity0, right, -1.0)
    back, known1 = project_by_disparity(points1, right, disparity0, 1.0)
    # Epipolar lines are rows.
    apart = (points0[:, None, 1] - points1[None, :, 1]).abs() > negative
    known0, known1 = known0 | apart.all(dim=1), known1 | apart.all(dim=0)
    return labels_from_projections(
        points0, points1, there, back, positive=positive, negative=negative, known0=known0, known1=known1
    )


def labels_from_tracks(
    features0: Features,
    features1: Features,
    points0: Tensor,
    points1: Tensor,
    F: Tensor,
    *,
    positive: float = 3.0,
    negative: float = 5.0,
) -> Labels:
    """Label the keypoints of two images by points of a sparse model that both images see.

    Keypoints match if both are nearest to the same point of the model, and mutually nearest, with distances to it that
    sum to less than ``positive``. A keypoint has no match where its epipolar line passes all keypoints of the other
    image at more than ``negative``. Of all others nothing is known.

    Args:
        features0: Keypoints of image 0.
        features1: Keypoints of image 1.
        points0: (T, 2) points of the model in image 0.
        points1: (T, 2) the same points in image 1.
        F: (3, 3) fundamental matrix, x1^T F x0 = 0.
        positive: Largest sum of distances in pixels.
        negative: Distance in pixels beyond which a keypoint has no match.

    Returns:
        Labels (M,) and (N,).

    Raises:
        InputError: The points don't correspond, or F is no matrix.
    """
    _check_distances(positive, negative)
    if points0.shape != points1.shape or points0.ndim != 2 or points0.shape[1] != 2 or F.shape != (3, 3):
        raise InputError(
            f"points0 and points1 must both be (T, 2) and F (3, 3), got {tuple(points0.shape)}, "
            f"{tuple(points1.shape)} and {tuple(F.shape)}."
        )
    own0, own1 = features0.keypoints.double(), features1.keypoints.double()
    near0, track0 = _nearest(own0, points0.to(own0))
    near1, track1 = _nearest(own1, points1.to(own1))
    total = near0[:, None] + near1[None, :]
    labels0, labels1 = _mutual_nearest(torch.where(track0[:, None] == track1[None, :], total, torch.inf), positive)
    F = F.to(own0)
    passed0 = (epipolar_distances(own0, own1, F) > negative).all(dim=1)
    passed1 = (epipolar_distances(own1, own0, F.mT) > negative).all(dim=1)
    return _judge(labels0, passed0, None), _judge(labels1, passed1, None)


def _nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each point (M, 2) how far the nearest of others (T, 2) is, infinite if there is none, and which."""
    if not len(others):
        return torch.full_like(points[:, 0], torch.inf), torch.zeros(
            len(points), dtype=torch.long, device=points.device
        )
    distance, index = torch.cdist(points, others).min(dim=1)
    return distance, index


def labels_from_projections(
    keypoints0: Tensor,
    keypoints1: Tensor,
    projected0: Tensor,
    projected1: Tensor,
    *,
    positive: float = 3.0,
    negative: float = 5.0,
    known0: Tensor | None = None,
    known1: Tensor | None = None,
) -> Labels:
    """Label keypoints by where each would lie in the other image.

    Args:
        keypoints0: (..., M, 2) keypoints of image 0.
        keypoints1: (..., N, 2) keypoints of image 1.
        projected0: (..., M, 2) where the keypoints of image 0 lie in image 1; NaN for nowhere.
        projected1: (..., N, 2) where the keypoints of image 1 lie in image 0.
        positive: Largest distance of a match in pixels, in both images.
        negative: Distance in pixels beyond which a keypoint has no match.
        known0: (..., M) booleans, false where nothing is known of a keypoint; all known unless given.
        known1: (..., N) the same for image 1.

    Returns:
        Labels (..., M) and (..., N).
    """
    distance0 = _distances(projected0, keypoints1)
    distance1 = _distances(projected1, keypoints0).mT
    labels0, labels1 = _mutual_nearest(torch.maximum(distance0, distance1), positive)
    unmatched0 = _no_closer(distance0, negative)
    unmatched1 = _no_closer(distance1.mT, negative)
    return _judge(labels0, unmatched0, known0), _judge(labels1, unmatched1, known1)


def _judge(labels: Tensor, unmatched: Tensor, known: Tensor | None) -> Tensor:
    """Fill in labels where there is no match: -1 where that is certain, -100 elsewhere."""
    certain = unmatched if known is None else unmatched & known
    return torch.where(labels >= 0, labels, torch.where(certain, UNMATCHABLE, IGNORE))


def _distances(projected: Tensor, keypoints: Tensor) -> Tensor:
    """Return (..., M, N) distances from projected points (..., M, 2) to keypoints (..., N, 2), infinite for NaN."""
    # One axis after the other: a third of the time of a sum over a last dimension of two.
    x, y = (
        (a[..., :, None] - b[..., None, :]).square_()
        for a, b in zip(projected.unbind(-1), keypoints.to(projected).unbind(-1), strict=True)
    )
    return x.add_(y).sqrt_().nan_to_num_(torch.inf, posinf=torch.inf)


def _no_closer(distance: Tensor, radius: float) -> Tensor:
    """Tell for each row (..., M, N) whether nothing is within the radius; true where there are no columns."""
    return (distance > radius).all(dim=-1)


def _mutual_nearest(distance: Tensor, positive: float) -> Labels:
    """Return for rows and columns of (..., M, N) their mutual nearest one below a distance, -1 where there is none."""
    rows, columns = distance.shape[-2:]
    if not rows or not columns:
        shape, none = distance.shape[:-2], torch.tensor(UNMATCHABLE, device=distance.device)
        return none.expand(*shape, rows).clone(), none.expand(*shape, columns).clone()
    best, index0 = distance.min(dim=-1)
    index1 = distance.argmin(dim=-2)
    own = torch.arange(rows, device=distance.device)
    matched = (index1.gather(-1, index0) == own) & (best < positive)
    labels0 = torch.where(matched, index0, -1)
    back = index0.gather(-1, index1) == torch.arange(columns, device=distance.device)
    labels1 = torch.where(back & matched.gather(-1, index1), index1, -1)
    return labels0, labels1


def _check_distances(positive: float, negative: float) -> None:
    if not 0 < positive <= negative:
        raise InputError(f"distances must be 0 < positive <= negative, got {positive} and {negative}.")


def _check_map(values: Tensor, features: Features, name: str) -> None:
    if tuple(values.shape) != features.image_size:
        raise InputError(
            f"{name} must have its image's size {features.image_size} (height, width), got {tuple(values.shape)}."
        )
