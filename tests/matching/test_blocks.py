"""Attention and assignment in blocks, and attention of many images at once, against their formulas."""

from __future__ import annotations

import pytest
import torch

from keyglue.matching.lightglue import assignment_blocks, attention_blocks
from keyglue.matching.lightglue.assignment import MatchAssignment, mutual_matches
from keyglue.matching.lightglue.assignment_blocks import match_in_blocks
from keyglue.matching.lightglue.attention_blocks import Workspace, attend, attend_both_ways
from keyglue.matching.lightglue.attention_packed import attend_image_by_image, attend_packed
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.lightglue.ragged import Packing

# Blocks of the similarity: as they are, and so small that there are many.
BLOCKS = [(512, 512), (7, 16)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def expected_message(query, key, value):
    """Return softmax(query key^T) value for (M, H, d), (N, H', d), computed in float64."""
    groups = query.shape[1] // key.shape[1]
    q, k, v = (x.double().transpose(0, 1) for x in (query, key, value))
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    return ((q @ k.mT).softmax(-1) @ v).transpose(0, 1).float()


@pytest.fixture(params=BLOCKS, ids=str)
def blocks(request, monkeypatch):
    """Sets the size of the blocks."""
    monkeypatch.setattr(attention_blocks, "_ROWS", request.param[0])
    monkeypatch.setattr(attention_blocks, "_COLUMNS", request.param[1])


@pytest.mark.parametrize(("heads", "key_value_heads", "dim"), [(4, 4, 16), (4, 2, 18), (3, 1, 6), (1, 1, 64)])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 33), (50, 3), (70, 97)])
@pytest.mark.usefixtures("blocks")
def test_attention(heads, key_value_heads, dim, m, n):
    packed = normal(m, 3, heads, dim)  # strided views, as in the model
    query, key, value = packed[:, 0], normal(n, key_value_heads, dim, seed=1), normal(n, key_value_heads, dim, seed=2)
    out = torch.full((m, heads, dim), torch.nan)
    assert attend(query, key, value, out, Workspace())
    torch.testing.assert_close(out, expected_message(query, key, value), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 33), (50, 3), (70, 97)])
@pytest.mark.usefixtures("blocks")
def test_attention_both_ways(m, n):
    both0, both1, value0, value1 = (normal(count, 4, 16, seed=s) for s, count in enumerate((m, n, m, n)))
    out0, out1 = torch.full_like(both0, torch.nan), torch.full_like(both1, torch.nan)
    assert attend_both_ways(both0, both1, value0, value1, out0, out1, Workspace())
    torch.testing.assert_close(out0, expected_message(both0, both1, value1), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(out1, expected_message(both1, both0, value0), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("shift", "in_bounds"), [(0.0, True), (60.0, True), (-60.0, True), (90.0, False), (-90.0, False)]
)
def test_sums_out_of_bounds_are_reported(shift, in_bounds):
    """All logits are near ``shift``; with a row of far smaller ones, too, the sums say whether the answer is right."""
    query, key = torch.ones(40, 1, 2), torch.full((30, 1, 2), shift / 2)
    value, out = normal(30, 1, 2), torch.empty(40, 1, 2)
    assert attend(query, key, value, out, Workspace()) is in_bounds
    if in_bounds:
        torch.testing.assert_close(out, expected_message(query, key, value))


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("heads", [(2, 2), (4, 1)])
@pytest.mark.parametrize(
    "lengths", [(5, 5, 5, 5), (7, 130, 200, 5), (129, 131, 140, 250, 1, 1, 3, 300, 128, 256), (1, 400)]
)
def test_attention_of_many_images_at_once(lengths, heads, cross):
    count = sum(lengths)
    query, key, value = (normal(count, h, 8, seed=s) for s, h in enumerate((heads[0], heads[1], heads[1])))
    packing = Packing(lengths)
    expected = torch.cat(
        [
            expected_message(query[own], key[other], value[other])
            for image, own in enumerate(packing.slices)
            for other in [packing.slices[image ^ 1] if cross else own]
        ]
    )
    for attend_all in (attend_packed, attend_image_by_image):
        found = attend_all(query, key, value, packing, cross=cross)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("entries", [None, 64])
@pytest.mark.parametrize("kept", [None, 0])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 40), (40, 1), (37, 90), (90, 37)])
@torch.no_grad()
def test_assignment(monkeypatch, m, n, entries, kept):
    if entries is not None:
        monkeypatch.setattr(assignment_blocks, "_ENTRIES_CPU", entries)
    if kept is not None:
        monkeypatch.setattr(assignment_blocks, "_KEPT", kept)
    layer = MatchAssignment(LightGlueConfig(descriptor_dim=32))
    layer.final_projection.weight.copy_(3 * torch.eye(32))
    layer.matchability.weight.copy_(normal(1, 32))
    x0, x1 = normal(m, 32, seed=1), normal(n, 32, seed=2)
    some = min(m, n) // 2
    x1[:some] = x0[:some] + 0.1 * normal(some, 32, seed=3)
    log_assignment = layer(x0, x1)
    expected = mutual_matches(log_assignment, 0.1)
    projected = [layer.final_projection(x) * layer.scale for x in (x0, x1)]
    logits = [layer.matchability(x)[:, 0] for x in (x0, x1)]
    found = match_in_blocks(*projected, *logits, 0.1)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert some < 2 or int((found[0] >= 0).sum()) > 0


def test_memory_is_that_of_a_block(monkeypatch):
    """No tensor of M times N entries is made when it would be larger than what may be kept."""
    monkeypatch.setattr(assignment_blocks, "_KEPT", 0)
    monkeypatch.setattr(assignment_blocks, "_ENTRIES_CPU", 1000)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                largest = max(largest, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
            return out

    with Watch():
        match_in_blocks(normal(200, 4), normal(150, 4, seed=1), normal(200), normal(150), 0.1)
    assert 800 <= largest <= 1000
