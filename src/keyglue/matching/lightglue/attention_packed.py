"""Attention of all images of a ragged batch in few calls, for the device that gains from large calls (a GPU).

Images of about the same number of tokens are put together and padded to the longest of them; masked attention leaves
the padding out. Where all have the same number, nothing is padded or masked, and the quickest kernels apply.

Shapes: T tokens of all images, H heads, H' key and value heads, d width of a head, G images of a group, Q and K their
most query and key tokens.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.base.devices import to_device
from keyglue.matching.lightglue.ragged import Packing

# Images whose numbers of tokens round up to the same multiples of this share a call.
_BUCKET = 128


@dataclasses.dataclass(frozen=True)
class _Group:
    """Images that share a call: where their tokens are, and which places are padding.

    Attributes:
        queries: (G, Q) index of each query token; padding points at some token.
        keys: (G, K) likewise for the keys.
        mask: (G, 1, 1, K) true for tokens, false for padding; None without padding among the keys.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Groups of all images, and for each token its row in the groups' answers, one behind the other (T,)."""

    groups: tuple[_Group, ...]
    rows: Tensor


def attend_packed(query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, cross: bool) -> Tensor:
    """Return (T, H, d) softmax(query key^T) value, each image attending to itself or to its partner.

    Args:
        query: (T, H, d), scaled.
        key: (T, H', d).
        value: (T, H', d).
        packing: Which token belongs to which image; none is empty.
        cross: Attend to the partner.
    """
    if packing.uniform is not None:
        return _attend_uniform(query, key, value, packing.uniform, cross=cross)
    plan = _plan(packing.lengths, cross, query.device)
    answers: list[Tensor] = []
    for group in plan.groups:
        q, k, v = query[group.queries], key[group.keys], value[group.keys]
        answers.append(_attend(q, k, v, group.mask).flatten(0, 1))
    return torch.cat(answers)[plan.rows]


def _attend_uniform(query: Tensor, key: Tensor, value: Tensor, count: int, *, cross: bool) -> Tensor:
    """Attend as ``attend_packed`` in images of ``count`` tokens each, without gathering and padding."""
    q, k, v = (part.unflatten(0, (-1, count)) for part in (query, key, value))
    if cross:
        k, v = (part.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for part in (k, v))
    return _attend(q, k, v, None).flatten(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from (G, Q, H, d) to (G, K, H', d); return (G, Q, H, d)."""
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))
    grouped = q.shape[1] != k.shape[1]
    message = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=grouped)
    return message.transpose(1, 2)


def attend_image_by_image(query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, cross: bool) -> Tensor:
    """Return the same as ``attend_packed``, one call for each image, for a CPU."""
    slices = packing.slices
    message = torch.empty_like(query)
    for image, own in enumerate(slices):
        other = slices[image ^ 1] if cross else own
        message[own] = _attend(query[own][None], key[other][None], value[other][None], None)[0]
    return message


@functools.lru_cache(maxsize=8)
def _plan(lengths: tuple[int, ...], cross: bool, device: torch.device) -> _Plan:
    """Return the plan of a packing; all layers use the same one until points or pairs go."""
    offsets = torch.tensor(Packing(lengths).offsets[:-1])
    counts = torch.tensor(lengths)
    together: dict[tuple[int, int], list[int]] = {}
    for image, length in enumerate(lengths):
        other = lengths[image ^ 1] if cross else length
        together.setdefault((-(-length // _BUCKET), -(-other // _BUCKET)), []).append(image)
    groups: list[_Group] = []
    rows = torch.empty(sum(lengths), dtype=torch.long)
    first_row = 0
    for images in together.values():
        own = torch.tensor(images)
        other = own ^ 1 if cross else own
        most = int(counts[own].max())
        queries, valid = _places(offsets[own], counts[own], most)
        keys, mask = _places(offsets[other], counts[other], int(counts[other].max()))
        rows[queries[valid]] = first_row + valid.flatten().nonzero().squeeze(1)
        first_row += len(images) * most
        masked = None if mask.all() else to_device(mask[:, None, None], device)
        groups.append(_Group(to_device(queries, device), to_device(keys, device), masked))
    return _Plan(tuple(groups), to_device(rows, device))


def _places(offsets: Tensor, counts: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return (G, most) token indices, padding pointing at the image's first token, and which of them are tokens."""
    steps = torch.arange(most)
    valid = steps < counts[:, None]
    return offsets[:, None] + steps * valid, valid
