"""True matches of keypoints, from what is known of a pair of images.

Labels of a pair are as ``keyglue.matching.lightglue.loss`` takes them: for each keypoint of one image the index of its
true match in the other, -1 (``UNMATCHABLE``) where it has none, -100 (``IGNORE``) where nothing is known.

Shapes: M and N keypoints in image 0 and 1; leading dimensions (...) are batches. Frame: pixels of each image, the centre
of the top-left pixel at (0, 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.base.types import Features
from keyglue.matching.lightglue.loss import IGNORE, UNMATCHABLE
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
    difference = projected[..., :, None, :] - keypoints.to(projected)[..., None, :, :]
    return difference.square().sum(-1).sqrt().nan_to_num(torch.inf, posinf=torch.inf)


def _no_closer(distance: Tensor, radius: float) -> Tensor:
    """Tell for each row (..., M, N) whether nothing is within the radius; true where there are no columns."""
    return (distance > radius).all(dim=-1)


def _mutual_nearest(distance: Tensor, positive: float) -> Labels:
    """Return for rows and columns of (..., M, N) their mutual nearest one below a distance, -1 where there is none."""
    rows, columns = distance.shape[-2:]
    if not rows or not columns:
        shape, options = distance.shape[:-2], {"dtype": torch.long, "device": distance.device}
        return torch.full((*shape, rows), -1, **options), torch.full((*shape, columns), -1, **options)
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
