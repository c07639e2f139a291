"""The training loss (section 3.4, equation 9): deep supervision of the assignment, and of the confidence heads.

Labels of one pair: for each keypoint the index of its true match in the other image, -1 where it has none, -100 where
nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.base.errors import InputError

if TYPE_CHECKING:
    from keyglue.matching.lightglue.confidence import TokenConfidence
    from keyglue.matching.lightglue.lightglue import FeaturePair, LightGlueMatcher

UNMATCHABLE = -1
IGNORE = -100


def check_labels(labels0: Tensor, labels1: Tensor) -> None:
    """Check the labels of one pair.

    Args:
        labels0: (M,) for image 0.
        labels1: (N,) for image 1.

    Raises:
        InputError: A label is out of range, or the two images contradict each other.
    """
    for labels, others, name in ((labels0, labels1, "image 0"), (labels1, labels0, "image 1")):
        wrong = (labels >= len(others)) | ((labels < 0) & (labels != UNMATCHABLE) & (labels != IGNORE))
        if wrong.any():
            raise InputError(
                f"labels of {name} must be indices below {len(others)}, -1 (no match) or -100 (unknown); "
                f"got {int(labels[wrong][0])}."
            )
        index = (labels >= 0).nonzero().squeeze(1)
        if (others[labels[index]] != index).any():
            raise InputError(f"labels contradict each other: a match of {name} is not the match of its match.")


def assignment_loss(log_assignment: Tensor, labels0: Tensor, labels1: Tensor) -> Tensor:
    """Return the negative log-likelihood of the labels under one assignment; positives and negatives weigh the same.

    0.5 mean(-log P at true matches) + 0.25 mean(-log "no match" at unmatchable points), the latter for each image

    Args:
        log_assignment: (M + 1, N + 1).
        labels0: (M,).
        labels1: (N,).
    """
    positive0 = (labels0 >= 0).nonzero().squeeze(1)
    positive = _mean(-log_assignment[positive0, labels0[positive0]])
    negative0 = _mean(-log_assignment[:-1, -1][labels0 == UNMATCHABLE])
    negative1 = _mean(-log_assignment[-1, :-1][labels1 == UNMATCHABLE])
    return 0.5 * positive + 0.25 * (negative0 + negative1)


def confidence_loss(logits: Tensor, agrees: Tensor) -> Tensor:
    """Return the cross entropy of confidence ``logits`` (T,) with whether each token's answer is already final."""
    return F.binary_cross_entropy_with_logits(logits, agrees.to(logits.dtype))


def best_of(log_assignment: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each point of image 0 (M,) and image 1 (N,) its best column or row, "no match" being the last."""
    return log_assignment[:-1].argmax(dim=1), log_assignment[:, :-1].argmax(dim=0)


def matching_loss(
    model: LightGlueMatcher, pairs: Sequence[FeaturePair], labels: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of pairs of Features: the mean over layers and pairs, every layer supervised alike.

    Args:
        model: The matcher; it runs all layers and drops no points.
        pairs: B pairs of Features.
        labels: Labels of both images of each pair.

    Returns:
        The loss () and each pair's log assignment after the last layer.

    Raises:
        InputError: The labels do not fit the features or contradict each other.
    """
    labels = [(labels0.to(model.device), labels1.to(model.device)) for labels0, labels1 in labels]
    for labels0, labels1 in labels:
        check_labels(labels0, labels1)
    assignments: list[list[Tensor]] = []
    confidences: list[Tensor] = []
    for index, tokens in enumerate(model.tokens_per_layer(pairs)):
        assignments.append(model.assign(index, tokens))
        if index < len(model.token_confidence):
            confidences.append(cast("TokenConfidence", model.token_confidence[index]).logits(tokens.x))
    losses = [
        assignment_loss(log_assignment, *label)
        for row in assignments
        for log_assignment, label in zip(row, labels, strict=True)
    ]
    loss = torch.stack(losses).mean()
    if confidences:
        final = torch.cat([best for last in assignments[-1] for best in best_of(last)])
        terms = [
            confidence_loss(logits, torch.cat([best for la in row for best in best_of(la)]) == final)
            for logits, row in zip(confidences, assignments, strict=False)
        ]
        loss = loss + torch.stack(terms).mean()
    return loss, assignments[-1]


def _mean(values: Tensor) -> Tensor:
    """Return the mean, or zero of no values (with a gradient of zero)."""
    return values.sum() / max(values.numel(), 1)
