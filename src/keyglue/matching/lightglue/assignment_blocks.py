"""Matches of a pair without its assignment matrix: the similarity is worked through in blocks of rows, twice.

The first pass adds up exp(S) over rows and columns, the second finds the best entry of every row and column of

    log P_ij = 2 S_ij - logsumexp_j(S_i.) - logsumexp_i(S_.j) + log sigmoid(z0_i) + log sigmoid(z1_j)

Memory is that of one block and a few numbers for each keypoint. Shapes: M and N keypoints, D width of the matcher.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.matching.lightglue.assignment import mutual_best

# Entries of a block of the similarity: 2 MB on a CPU, where it should stay in the cache, 256 MB elsewhere.
_ENTRIES_CPU, _ENTRIES = 1 << 19, 1 << 26
# Up to this many entries (64 MB) the similarity is kept from the first pass to the second.
_KEPT = 1 << 24


def match_in_blocks(
    projected0: Tensor, projected1: Tensor, z0: Tensor, z1: Tensor, filter_threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the matches of one pair as ``mutual_matches`` does.

    Args:
        projected0: (M, D) float32, M >= 1; the similarity is projected0 projected1^T.
        projected1: (N, D) float32, N >= 1.
        z0: (M,) logits of matchability.
        z1: (N,).
        filter_threshold: Probability that a match must exceed.
    """
    entries = _ENTRIES_CPU if projected0.device.type == "cpu" else _ENTRIES
    rows = max(1, min(len(projected0), entries // len(projected1)))
    starts = range(0, len(projected0), rows)
    parts = [slice(start, min(start + rows, len(projected0))) for start in starts]
    kept = len(projected0) * len(projected1) <= _KEPT
    store = projected0.new_empty(len(projected0) if kept else rows, len(projected1))

    def similarity(part: slice) -> Tensor:
        block = store[part] if kept else store[: part.stop - part.start]
        return torch.mm(projected0[part], projected1.t(), out=block)

    normalizer0 = torch.empty_like(z0)
    normalizer1: Tensor | None = None
    for part in parts:
        block_similarity = similarity(part)
        normalizer0[part] = block_similarity.logsumexp(dim=1)
        of_columns = block_similarity.logsumexp(dim=0)
        normalizer1 = of_columns if normalizer1 is None else torch.logaddexp(normalizer1, of_columns)

    offset0 = F.logsigmoid(z0) - normalizer0
    offset1 = F.logsigmoid(z1) - (torch.zeros_like(z1) if normalizer1 is None else normalizer1)
    best0, index0 = torch.empty_like(z0), torch.empty_like(z0, dtype=torch.long)
    best1, index1 = torch.full_like(z1, -torch.inf), torch.zeros_like(z1, dtype=torch.long)
    for part in parts:
        scores = store[part] if kept else similarity(part)
        torch.add(offset1, scores, alpha=2, out=scores).add_(offset0[part, None])
        torch.max(scores, dim=1, out=(best0[part], index0[part]))
        best, index = scores.max(dim=0)
        better = best > best1
        best1 = torch.where(better, best, best1)
        index1 = torch.where(better, index + part.start, index1)
    return mutual_best(best0, index0, index1, filter_threshold)
