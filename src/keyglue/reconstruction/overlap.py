"""A cheap guess at how much two images have in common, for skipping pairs that are not worth a matcher's time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from keyglue.base.errors import InputError
from keyglue.base.types import Features

_STRONGEST = 256
_SIMILAR = 0.7


def overlap_score(features0: Features, features1: Features) -> int:
    """Return how many of the strongest keypoints of two images are each other's nearest, and similar.

    Unrelated images have a few such pairs too; the score only tells hopeless pairs from the others. It costs about
    a hundredth of matching.

    Args:
        features0: Of image 0.
        features1: Of image 1.

    Raises:
        InputError: The descriptors are not of one length.
    """
    first, second = _strongest(features0), _strongest(features1)
    if first.shape[1] != second.shape[1]:
        raise InputError(f"descriptors must be of one length, got {first.shape[1]} and {second.shape[1]}.")
    if not len(first) or not len(second):
        return 0
    similarity = first @ second.T
    best, nearest0 = similarity.max(dim=1)
    nearest1 = similarity.argmax(dim=0)
    mutual = nearest1[nearest0] == torch.arange(len(first), device=first.device)
    return int((mutual & (best > _SIMILAR)).sum())


def _strongest(features: Features) -> Tensor:
    descriptors = features.descriptors
    if features.keypoint_scores is not None and len(features) > _STRONGEST:
        descriptors = descriptors[features.keypoint_scores.topk(_STRONGEST).indices]
    return normalize(descriptors[:_STRONGEST].float(), dim=1)
