"""Nearest neighbours of descriptors: the classical matcher, and the baseline that every other one has to beat."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from keyglue.base.errors import InputError
from keyglue.base.types import Matches


def match_nearest(
    descriptors0: Tensor,
    descriptors1: Tensor,
    *,
    ratio: float | None = None,
    mutual: bool = True,
    min_similarity: float | None = None,
    distance: Literal["cosine", "l2"] = "cosine",
    block: int = 4096,
) -> Matches:
    """Match each descriptor with its nearest one in the other image.

    The score of a pair is its cosine similarity, 0 where that is negative, for "cosine", and 1 / (1 + distance) for
    "l2". Each keypoint keeps its score where the ratio test or ``min_similarity`` turns its match down. Memory is
    bounded by ``block`` squared beside the descriptors.

    Args:
        descriptors0: (M, D) descriptors of image 0.
        descriptors1: (N, D) descriptors of image 1.
        ratio: Lowe's ratio test: the distance to the nearest must be less than this share of the distance to the second
            nearest. With ``mutual`` it has to hold in both directions. None for no test.
        mutual: Whether a pair must be nearest in both directions. If not, ``matches0`` and ``matches1`` each hold the
            nearest neighbours seen from their own image.
        min_similarity: Scores below it are no matches. None for no bound.
        distance: "cosine" compares directions, "l2" the descriptors as they are.
        block: Number of descriptors of either image that are compared at once.

    Returns:
        Matches; ``prune0`` and ``prune1`` are 0, as there are no layers.

    Raises:
        InputError: A shape or value is not as described.
    """
    _check(descriptors0, descriptors1, ratio, min_similarity, distance, block)
    if not len(descriptors0) or not len(descriptors1):
        return _no_matches(descriptors0, descriptors1)
    first, second = descriptors0.float(), descriptors1.float()
    if distance == "cosine":
        first, second = normalize(first, dim=1), normalize(second, dim=1)
    nearest0, runner_up0 = _two_nearest(first, second, block)
    nearest1, runner_up1 = _two_nearest(second, first, block)
    scores0, keep0 = _judge(first, second, nearest0, runner_up0, ratio, min_similarity, distance)
    scores1, keep1 = _judge(second, first, nearest1, runner_up1, ratio, min_similarity, distance)
    if mutual:
        paired0, paired1 = _comes_back(nearest0, nearest1), _comes_back(nearest1, nearest0)
        scores0, scores1 = scores0.where(paired0, 0), scores1.where(paired1, 0)
        keep0, keep1 = keep0 & paired0, keep1 & paired1
        # A test that fails in one direction turns the pair down in both.
        keep0, keep1 = keep0 & keep1[nearest0], keep1 & keep0[nearest1]
    return Matches(
        matches0=nearest0.where(keep0, -1),
        matches1=nearest1.where(keep1, -1),
        matching_scores0=scores0,
        matching_scores1=scores1,
        prune0=torch.zeros_like(nearest0),
        prune1=torch.zeros_like(nearest1),
    )


def _two_nearest(queries: Tensor, database: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return the indices (M,) of the nearest and second nearest in the database, -1 where there is none.

    Of equally near ones the first in the database wins.
    """
    shape = (2, len(queries))
    indices = torch.full(shape, -1, dtype=torch.int64, device=queries.device)
    values = torch.full(shape, -torch.inf, device=queries.device)
    squares = (database * database).sum(dim=1)
    for top in range(0, len(queries), block):
        rows = slice(top, top + block)
        for left in range(0, len(database), block):
            part = database[left : left + block]
            # The query's own square is the same for a whole row: leaving it out changes no order.
            nearness = torch.addmm(-squares[left : left + block], queries[rows], part.T, beta=0.5)
            for _ in range(2):
                value, index = nearness.max(dim=1)
                _insert(values[:, rows], indices[:, rows], value, index + left)
                nearness.scatter_(1, index[:, None], -torch.inf)
    return indices[0], indices[1]


def _insert(values: Tensor, indices: Tensor, value: Tensor, index: Tensor) -> None:
    """Put one candidate for each query into its sorted list of two, in place; earlier ones win ties."""
    first, second = value > values[0], value > values[1]
    values[1] = torch.where(first, values[0], value.where(second, values[1]))
    indices[1] = torch.where(first, indices[0], index.where(second, indices[1]))
    values[0] = value.where(first, values[0])
    indices[0] = index.where(first, indices[0])


def _judge(
    queries: Tensor,
    database: Tensor,
    nearest: Tensor,
    runner_up: Tensor,
    ratio: float | None,
    min_similarity: float | None,
    distance: str,
) -> tuple[Tensor, Tensor]:
    """Return scores (M,) of the nearest neighbours and whether (M,) they pass the tests."""
    # Differences are taken anew: the matrix product of the search cancels digits where descriptors are nearly equal.
    near = database[nearest]
    length = (queries - near).square().sum(dim=1).sqrt()
    scores = (queries * near).sum(dim=1).clamp(0, 1) if distance == "cosine" else 1 / (1 + length)
    keep = torch.ones_like(nearest, dtype=torch.bool)
    if ratio is not None:
        further = (queries - database[runner_up]).square().sum(dim=1).sqrt()
        keep &= (length < ratio * further) | (runner_up < 0)
    if min_similarity is not None:
        keep &= scores >= min_similarity
    return scores, keep


def _comes_back(there: Tensor, back: Tensor) -> Tensor:
    """Tell which keypoints (M,) are the nearest neighbours of their own nearest neighbours."""
    return back[there] == torch.arange(len(there), device=there.device)


def _no_matches(descriptors0: Tensor, descriptors1: Tensor) -> Matches:
    """Return the answer for a pair of which one image has no keypoints."""
    none = [torch.full((len(d),), -1, dtype=torch.int64, device=d.device) for d in (descriptors0, descriptors1)]
    return Matches(
        matches0=none[0],
        matches1=none[1],
        matching_scores0=torch.zeros_like(none[0], dtype=torch.float32),
        matching_scores1=torch.zeros_like(none[1], dtype=torch.float32),
        prune0=torch.zeros_like(none[0]),
        prune1=torch.zeros_like(none[1]),
    )


def _check(
    descriptors0: Tensor,
    descriptors1: Tensor,
    ratio: float | None,
    min_similarity: float | None,
    distance: str,
    block: int,
) -> None:
    for name, value in (("descriptors0", descriptors0), ("descriptors1", descriptors1)):
        if value.ndim != 2:
            raise InputError(f"{name} must have shape (N, D), got {tuple(value.shape)}.")
        if not torch.isfinite(value).all():
            raise InputError(f"{name} holds NaN or infinite values.")
    if descriptors0.shape[1] != descriptors1.shape[1]:
        raise InputError(
            f"descriptors must be of one length, got {descriptors0.shape[1]} and {descriptors1.shape[1]}: "
            "were both images described by the same detector?"
        )
    if descriptors0.device != descriptors1.device:
        raise InputError(f"descriptors must be on one device, got {descriptors0.device} and {descriptors1.device}.")
    if ratio is not None and not 0 < ratio <= 1:
        raise InputError(f"ratio must lie between 0 and 1, got {ratio}.")
    if min_similarity is not None and not 0 <= min_similarity <= 1:
        raise InputError(f"min_similarity must lie between 0 and 1, got {min_similarity}.")
    if distance not in ("cosine", "l2"):
        raise InputError(f"distance must be 'cosine' or 'l2', got {distance!r}.")
    if block < 1:
        raise InputError(f"block must be at least 1, got {block}.")
