"""Attention in float32 on a CPU, in blocks of the similarity that stay in the cache.

Softmax is exp(s) / sum exp(s). Nothing is subtracted from s before: as long as all sums lie between 1e-30 and 1e30, no
term that counts over- or underflows, and blocks can simply be added up; one block of the similarity then serves
both directions of cross-attention. Where a sum lies outside, the caller computes that image the usual way.

Shapes: M and N keypoints, H heads, H' key and value heads, d width of a head. Tensors of heads are (M, H, d).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Sums of exponentials within these bounds are exact to float32's relative precision.
_LOWEST, _HIGHEST = 1e-30, 1e30
# Rows and columns of a block of the similarity: 1 MB, half the second-level cache that server cores have.
_ROWS, _COLUMNS = 512, 512


class Workspace:
    """Buffers that are used again and again, because fresh memory costs as much as writing it twice."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """Return a float32 tensor with undefined values; it is valid until the name is asked for again."""
        count = 1
        for size in shape:
            count *= size
        flat = self._flat.get(name)
        if flat is None or flat.numel() < count:
            flat = self._flat[name] = torch.empty(count)
        return flat[:count].view(shape)

    def ones(self, count: int) -> Tensor:
        """Return (count,) ones."""
        flat = self._flat.get("ones")
        if flat is None or flat.numel() < count:
            flat = self._flat["ones"] = torch.ones(count)
        return flat[:count]


def attend(query: Tensor, key: Tensor, value: Tensor, out: Tensor, work: Workspace) -> bool:
    """Write softmax(query key^T) value to ``out``; return False where the sums are out of bounds and ``out`` is void.

    Args:
        query: (M, H, d), scaled.
        key: (N, H', d).
        value: (N, H', d).
        out: (M, H, d).
        work: Buffers.
    """
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    sums = work.get("row sums", heads, len(query))
    if groups == 1 and heads * len(query) * len(key) <= _ROWS * _COLUMNS:
        weights = _all_exponentials(query, key, work)
        torch.bmm(weights, value.transpose(0, 1), out=out.transpose(0, 1))
        torch.sum(weights, dim=2, out=sums)
        return _normalize(out, sums)
    blocks = _blocks(len(query), len(key))
    for head in range(heads):
        q, k, v, o = query[:, head], key[:, head // groups], value[:, head // groups], out[:, head]
        for rows, columns in blocks:
            weights = _exponentials(q[rows], k[columns], work)
            _accumulate(weights, v[columns], o[rows], sums[head, rows], work, first=columns.start == 0)
    return _normalize(out, sums)


def attend_both_ways(
    both0: Tensor, both1: Tensor, value0: Tensor, value1: Tensor, out0: Tensor, out1: Tensor, work: Workspace
) -> bool:
    """Write each image's message from the other, from one similarity; return False as ``attend`` does.

    Args:
        both0: (M, H, d), queries and keys of image 0 in one, scaled.
        both1: (N, H, d).
        value0: (M, H, d).
        value1: (N, H, d).
        out0: (M, H, d) softmax(both0 both1^T) value1.
        out1: (N, H, d) softmax(both1 both0^T) value0.
        work: Buffers.
    """
    heads = both0.shape[1]
    sums0 = work.get("row sums", heads, len(both0))
    sums1 = work.get("column sums", heads, len(both1))
    if heads * len(both0) * len(both1) <= _ROWS * _COLUMNS:
        weights = _all_exponentials(both0, both1, work)
        torch.bmm(weights, value1.transpose(0, 1), out=out0.transpose(0, 1))
        torch.bmm(weights.mT, value0.transpose(0, 1), out=out1.transpose(0, 1))
        torch.sum(weights, dim=2, out=sums0)
        torch.sum(weights, dim=1, out=sums1)
        return _normalize(out0, sums0) and _normalize(out1, sums1)
    blocks = _blocks(len(both0), len(both1))
    for head in range(heads):
        q, k, v0, v1 = both0[:, head], both1[:, head], value0[:, head], value1[:, head]
        o0, o1 = out0[:, head], out1[:, head]
        for rows, columns in blocks:
            weights = _exponentials(q[rows], k[columns], work)
            _accumulate(weights, v1[columns], o0[rows], sums0[head, rows], work, first=columns.start == 0)
            _accumulate(weights.t(), v0[rows], o1[columns], sums1[head, columns], work, first=rows.start == 0)
    return _normalize(out0, sums0) and _normalize(out1, sums1)


def _blocks(rows: int, columns: int) -> list[tuple[slice, slice]]:
    """Cut a matrix into blocks, row by row; threads share a block, so that each has its part in its own cache."""
    of_rows, of_columns = parts(rows, _ROWS * torch.get_num_threads()), parts(columns, _COLUMNS)
    return [(some, others) for some in of_rows for others in of_columns]


def parts(count: int, most: int) -> list[slice]:
    """Cut ``count`` into pieces of about the same size, none larger than ``most``."""
    pieces = -(-count // most)
    size = -(-count // max(pieces, 1))
    return [slice(start, min(start + size, count)) for start in range(0, count, max(size, 1))]


def _exponentials(query: Tensor, key: Tensor, work: Workspace) -> Tensor:
    block = work.get("similarity", len(query), len(key))
    return torch.mm(query, key.t(), out=block).exp_()


def _all_exponentials(query: Tensor, key: Tensor, work: Workspace) -> Tensor:
    """Return (H, M, N) for all heads in one block, where they are few: less calls."""
    block = work.get("similarity", query.shape[1], len(query), len(key))
    return torch.bmm(query.transpose(0, 1), key.permute(1, 2, 0), out=block).exp_()


def _accumulate(weights: Tensor, value: Tensor, out: Tensor, sums: Tensor, work: Workspace, *, first: bool) -> None:
    """Add a block's weighted values to ``out`` and its weights to ``sums``, or begin both with them."""
    ones = work.ones(weights.shape[1])
    if first:
        torch.mm(weights, value, out=out)
        torch.mv(weights, ones, out=sums)
    else:
        out.addmm_(weights, value)
        sums.addmv_(weights, ones)


def _normalize(out: Tensor, sums: Tensor) -> bool:
    lowest, highest = torch.aminmax(sums)
    in_bounds = float(lowest) > _LOWEST and float(highest) < _HIGHEST
    if in_bounds:
        out.div_(sums.t()[:, :, None])
    return in_bounds
