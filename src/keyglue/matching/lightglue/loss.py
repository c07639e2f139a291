"""The training loss (section 3.4, equation 9): deep supervision of the assignment, and of the confidence heads.

Labels of one pair: for each keypoint the index of its true match in the other image, -1 where it has none, -100 where
nothing is known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.base.errors import InputError
from keyglue.matching.lightglue.assignment import log_assignment

if TYPE_CHECKING:
    from keyglue.matching.lightglue.assignment import MatchAssignment
    from keyglue.matching.lightglue.confidence import TokenConfidence
    from keyglue.matching.lightglue.lightglue import FeaturePair, LightGlueMatcher
    from keyglue.matching.lightglue.ragged import Packing, Tokens

# What similarities of B pairs are products of, (B, M, D) and (B, N, D), and their matchability logits (B, M), (B, N).
Projected = tuple[Tensor, Tensor, Tensor, Tensor]

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


def assignment_loss(
    projected0: Tensor, projected1: Tensor, z0: Tensor, z1: Tensor, labels0: Tensor, labels1: Tensor
) -> Tensor:
    """Return the negative log-likelihood (...) of the labels of each pair; positives and negatives weigh the same.

    0.5 mean(-log P at true matches) + 0.25 mean(-log "no match" at unmatchable points of image 0), and the same for 1,
    with P and "no match" as in ``log_assignment``, which is never formed.

    Args:
        projected0: (B, M, D) whose products with ``projected1`` are the similarity.
        projected1: (B, N, D).
        z0: (B, M) matchability logits of image 0.
        z1: (B, N) those of image 1.
        labels0: (B, M).
        labels1: (B, N).
    """
    matchable = F.logsigmoid(z0) + F.pad(F.logsigmoid(z1), (0, 1)).gather(-1, labels0.clamp(min=0))
    positive = cast("Tensor", _DoubleSoftmax.apply(projected0, projected1, labels0)) + _mean(-matchable, labels0 >= 0)
    negative0 = _mean(-F.logsigmoid(-z0), labels0 == UNMATCHABLE)
    negative1 = _mean(-F.logsigmoid(-z1), labels1 == UNMATCHABLE)
    return 0.5 * positive + 0.25 * (negative0 + negative1)


class _DoubleSoftmax(torch.autograd.Function):
    """Mean of -log softmax_j(S)_ij - log softmax_i(S)_ij at the true matches, with S = Y0 Y1^T.

    S is never kept; the gradients of Y0 and Y1 are formed on the way. On a CPU pairs are computed one by one, so that S
    stays in the cache.
    """

    @staticmethod
    def forward(ctx: Any, projected0: Tensor, projected1: Tensor, labels0: Tensor) -> Tensor:
        gradient0, gradient1 = torch.zeros_like(projected0), torch.zeros_like(projected1)
        dtype = torch.promote_types(projected0.dtype, torch.float32)
        pairs = len(projected0)
        losses = projected0.new_zeros(pairs, dtype=dtype)
        step = 1 if projected0.device.type == "cpu" else max(pairs, 1)
        for start in range(0, pairs if projected0.numel() and projected1.numel() else 0, step):
            part = slice(start, start + step)
            y0, y1, labels = projected0[part], projected1[part], labels0[part]
            column, matched = labels.clamp(min=0), (labels >= 0).to(dtype)
            share = matched / matched.sum(dim=1, keepdim=True).clamp(min=1)
            similarity = (y0 @ y1.mT).to(dtype)
            rows, columns = similarity.logsumexp(dim=2), similarity.logsumexp(dim=1)
            right = similarity.gather(2, column[:, :, None])[:, :, 0]
            losses[part] = ((rows + columns.gather(1, column) - 2 * right) * share).sum(dim=1)
            share1 = torch.zeros_like(columns).scatter_add_(1, column, share)
            gradient = (similarity - rows[:, :, None]).exp_().mul_(share[:, :, None])
            gradient += similarity.sub_(columns[:, None]).exp_().mul_(share1[:, None])
            gradient.scatter_add_(2, column[:, :, None], -2 * share[:, :, None])
            gradient = gradient.to(y0.dtype)
            gradient0[part], gradient1[part] = gradient @ y1, gradient.mT @ y0
        ctx.save_for_backward(gradient0, gradient1)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        gradient0, gradient1 = (part * gradients[0][:, None, None].to(part.dtype) for part in ctx.saved_tensors)
        return gradient0, gradient1, None


def confidence_loss(logits: Tensor, agrees: Tensor) -> Tensor:
    """Return the cross entropy of confidence ``logits`` (T,) with whether each token's answer is already final."""
    return F.binary_cross_entropy_with_logits(logits, agrees.to(logits.dtype))


def best_of(log_assignment: Tensor, filter_threshold: float) -> tuple[Tensor, Tensor]:
    """Return for each point of image 0 (..., M) and 1 (..., N) its best column or row, the last meaning "no match".

    A point has no match where its best probability does not exceed ``filter_threshold``: the answer of a point of two
    unrelated images is only final once its chance matches are below it, however probable "no match" was before.
    """
    limit = math.log(max(filter_threshold, torch.finfo(log_assignment.dtype).tiny))
    inner = log_assignment[..., :-1, :-1]
    return F.pad(inner, (0, 1), value=limit).argmax(dim=-1), F.pad(inner, (0, 0, 0, 1), value=limit).argmax(dim=-2)


@dataclasses.dataclass(frozen=True)
class MatchingLosses:
    """The losses of some pairs, means over layers and pairs.

    Attributes:
        assignment: () loss of the assignments, every layer supervised alike.
        confidence: () loss of the confidence heads; None where it was not asked for or there are no heads.
        last: What the assignments after the last layer are made from, of all pairs at once or of one pair each.
    """

    assignment: Tensor
    confidence: Tensor | None
    last: list[Projected]

    def log_assignments(self) -> list[Tensor]:
        """Return each pair's (M + 1, N + 1) log assignment after the last layer, without gradients."""
        return [one for together in _log_assignments(self.last) for one in together]


def matching_losses(
    model: LightGlueMatcher,
    pairs: Sequence[FeaturePair],
    labels: Sequence[tuple[Tensor, Tensor]],
    *,
    confidence: bool = True,
) -> MatchingLosses:
    """Compute the losses of pairs of Features; the model runs all layers and drops no points.

    Args:
        model: The matcher.
        pairs: B pairs of Features.
        labels: Labels of both images of each pair, on the model's device; ``check_labels`` is for the caller to call.
        confidence: Whether to compute the loss of the confidence heads.
    """
    losses: list[Tensor] = []
    logits: list[Tensor] = []
    bests: list[Tensor] = []
    rows: list[Projected] = []
    targets: list[tuple[Tensor, Tensor]] | None = None
    for index, tokens in enumerate(model.tokens_per_layer(pairs)):
        if targets is None:
            targets = _stack_labels(labels, tokens.packing)
        rows = _projected(model.assignment(index), tokens)
        losses.append(torch.cat([assignment_loss(*row, *target) for row, target in zip(rows, targets, strict=True)]))
        if confidence and len(model.token_confidence):
            answers = [best_of(assigned, model.config.filter_threshold) for assigned in _log_assignments(rows)]
            bests.append(torch.cat([_token_order(*answer) for answer in answers]))
            if index < len(model.token_confidence):
                logits.append(cast("TokenConfidence", model.token_confidence[index]).logits(tokens.x))
    terms = [confidence_loss(logit, best == bests[-1]) for logit, best in zip(logits, bests, strict=False)]
    return MatchingLosses(torch.stack(losses).mean(), torch.stack(terms).mean() if terms else None, rows)


def matching_loss(
    model: LightGlueMatcher, pairs: Sequence[FeaturePair], labels: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """Return the whole loss of pairs of Features: assignments and confidence heads.

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
    losses = matching_losses(model, pairs, labels)
    total = losses.assignment if losses.confidence is None else losses.assignment + losses.confidence
    return total, losses.log_assignments()


def _projected(layer: MatchAssignment, tokens: Tokens) -> list[Projected]:
    """Project the tokens of all pairs at once where they have as many keypoints, else one by one."""
    y, z = layer.project(tokens.x)
    count = tokens.packing.uniform
    if count is None:
        images = [(y[None, part], z[None, part]) for part in tokens.packing.slices]
    else:
        pairs, logits = y.unflatten(0, (-1, 2, count)), z.unflatten(0, (-1, 2, count))
        images = [(pairs[:, image], logits[:, image]) for image in (0, 1)]
    return [(y0, y1, z0, z1) for (y0, z0), (y1, z1) in zip(images[::2], images[1::2], strict=True)]


def _log_assignments(rows: list[Projected]) -> list[Tensor]:
    """Return log assignments (b, M + 1, N + 1), without gradients."""
    with torch.no_grad():
        return [log_assignment((y0 @ y1.mT).float(), z0, z1) for y0, y1, z0, z1 in rows]


def _stack_labels(labels: Sequence[tuple[Tensor, Tensor]], packing: Packing) -> list[tuple[Tensor, Tensor]]:
    if packing.uniform is None:
        return [(labels0[None], labels1[None]) for labels0, labels1 in labels]
    return [(torch.stack([row[0] for row in labels]), torch.stack([row[1] for row in labels]))]


def _token_order(best0: Tensor, best1: Tensor) -> Tensor:
    """Bring (b, M) and (b, N) into the order of tokens: pair by pair, image 0 before image 1."""
    return torch.cat([best0, best1], dim=1).flatten()


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the means over the last dimension where ``mask`` is true, zero (with a gradient of zero) where nowhere."""
    return torch.where(mask, values, 0).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)
