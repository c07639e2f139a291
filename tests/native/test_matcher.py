"""The matcher's kernels against their plain PyTorch twins: any width, heads, number of tokens and instruction set."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyglue import LightGlueForKeypointMatching
from keyglue.base import native
from keyglue.matching.lightglue.assignment_blocks import match_in_blocks
from keyglue.matching.lightglue.attention_blocks import Workspace
from keyglue.matching.lightglue.fast import FastPath, FastWeights, ReferencePath, choose_path
from keyglue.matching.lightglue.fast_cpu import CpuBlock
from keyglue.matching.lightglue.fast_native import NativeAssignment, NativeBlock, NativeWorkspace
from keyglue.matching.lightglue.folding import FoldedBlock
from keyglue.matching.lightglue.ragged import Packing, Tokens

keyglue_native = pytest.importorskip("keyglue_native")
FLOAT32 = [name for name in ("avx512", "avx2") if name in keyglue_native.supported()]
EMULATED = "amx-emulated" in keyglue_native.supported()
needs_emulation = pytest.mark.skipif(not EMULATED, reason="the emulation needs AVX-512")


def random_block(heads, head_dim, *, key_value_heads=None, shared=False, sharpness=1.0, seed=0) -> FoldedBlock:
    """Return a block with random weights whose logits grow with ``sharpness`` squared."""
    generator = torch.Generator().manual_seed(seed)
    width, others = heads * head_dim, key_value_heads or heads
    rows = (heads + others * (1 if shared else 2)) * head_dim

    def matrix(outputs, inputs):
        return torch.randn(outputs, inputs, generator=generator) * inputs**-0.5

    def vector(count):
        return torch.randn(count, generator=generator)

    projection = matrix(rows, width)
    projection[: rows - others * head_dim] *= sharpness * head_dim**-0.25
    norm = (1 + 0.1 * vector(2 * width), 0.1 * vector(2 * width), 1e-5)
    return FoldedBlock(
        projection=projection,
        projection_bias=0.1 * vector(rows),
        first=matrix(2 * width, 2 * width),
        first_bias=0.1 * vector(2 * width),
        norm=norm,
        second=matrix(width, 2 * width),
        second_bias=0.1 * vector(width),
        heads=heads,
        key_value_heads=others,
        head_dim=head_dim,
        shared=shared,
    )


def random_tokens(block: FoldedBlock, lengths, seed=0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    angles = 3 * torch.randn(count, block.head_dim // 2, generator=generator)
    x = torch.randn(count, block.heads * block.head_dim, generator=generator)
    pairs = tuple(range(len(lengths) // 2))
    return Tokens(x, (angles.cos(), angles.sin()), torch.arange(count), Packing(tuple(lengths)), pairs)


def plain(block, tokens, *, cross) -> torch.Tensor:
    own = dataclasses.replace(tokens, x=tokens.x.clone())
    CpuBlock(block, "gelu").run(own, Workspace(), cross=cross)
    return own.x


def compiled(block, tokens, isa, *, cross, threads=1) -> torch.Tensor:
    own = dataclasses.replace(tokens, x=tokens.x.clone())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        NativeBlock(block, keyglue_native.kernels(isa), cross=cross).run(own, NativeWorkspace())
    finally:
        torch.set_num_threads(before)
    return own.x


def assert_near(found, expected, tolerance=1e-5):
    assert float((found - expected).abs().max()) < tolerance * float(expected.abs().max())


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    heads=st.integers(1, 5),
    half=st.integers(4, 64),
    lengths=st.lists(st.integers(1, 70), min_size=2, max_size=4).filter(lambda found: len(found) % 2 == 0),
    kind=st.sampled_from(["self", "cross", "shared"]),
    isa=st.sampled_from(FLOAT32 or [""]),
    threads=st.integers(1, 2),
)
def test_any_width_and_number_of_tokens(heads, half, lengths, kind, isa, threads):
    if not isa:
        pytest.skip("this processor runs no kernels")
    block = random_block(heads, 2 * half, shared=kind == "shared")
    tokens = random_tokens(block, lengths)
    cross = kind != "self"
    found = compiled(block, tokens, isa, cross=cross, threads=threads)
    assert_near(found, plain(block, tokens, cross=cross))


@pytest.mark.parametrize("isa", FLOAT32)
@pytest.mark.parametrize("kind", ["self", "cross", "shared"])
@pytest.mark.parametrize(
    ("heads", "head_dim", "lengths"),
    [(4, 64, (700, 601)), (4, 32, (513, 1025)), (2, 8, (1, 1)), (13, 10, (1, 300)), (1, 128, (112, 113, 33, 2))],
)
def test_many_tokens(heads, head_dim, lengths, kind, isa):
    block = random_block(heads, head_dim, shared=kind == "shared")
    tokens = random_tokens(block, lengths)
    expected = plain(block, tokens, cross=kind != "self")
    one, three = (compiled(block, tokens, isa, cross=kind != "self", threads=threads) for threads in (1, 3))
    assert_near(one, expected)
    assert_near(three, expected)


@pytest.mark.parametrize("isa", FLOAT32)
@pytest.mark.parametrize(("heads", "key_value_heads"), [(4, 2), (4, 1), (6, 3)])
@pytest.mark.parametrize("cross", [False, True])
def test_fewer_key_and_value_heads(heads, key_value_heads, cross, isa):
    block = random_block(heads, 18, key_value_heads=key_value_heads)
    tokens = random_tokens(block, (65, 40))
    assert_near(compiled(block, tokens, isa, cross=cross), plain(block, tokens, cross=cross))


@pytest.mark.parametrize("isa", FLOAT32)
@pytest.mark.parametrize("kind", ["self", "cross", "shared"])
def test_logits_of_any_size(kind, isa):
    """Powers that would overflow are computed relative to the largest logit."""
    block = random_block(3, 32, shared=kind == "shared", sharpness=12)
    tokens = random_tokens(block, (150, 133))
    queries = (tokens.x @ block.projection[:32].t()).square().sum(dim=1)
    assert float(queries.max()) > 1000
    expected = plain(block, tokens, cross=kind != "self")
    assert torch.isfinite(expected).all()
    found = compiled(block, tokens, isa, cross=kind != "self", threads=2)
    # Softmax is a choice here; logits in the hundreds have rounding errors of 1e-4 of their own.
    assert_near(found, expected, 1e-3)


@pytest.mark.parametrize("isa", FLOAT32)
@pytest.mark.parametrize("kind", ["self", "shared"])
def test_what_is_not_a_number_spreads_as_in_the_plain_path(kind, isa):
    block = random_block(2, 32, shared=kind == "shared")
    tokens = random_tokens(block, (40, 50, 30, 20))
    tokens.x[45, 3] = torch.nan
    found, expected = (
        run(block, tokens, cross=kind != "self") for run in (plain, lambda *a, **k: compiled(*a, isa, **k))
    )
    assert torch.equal(found.isnan(), expected.isnan())
    assert expected[90:].isfinite().all()
    assert_near(found[90:], expected[90:])


@pytest.mark.parametrize("isa", FLOAT32)
def test_images_without_tokens(isa):
    block = random_block(2, 16, shared=True)
    for lengths in ((0, 0), (0, 7), (5, 0)):
        tokens = random_tokens(block, lengths)
        for cross in (False, True):
            assert compiled(block, tokens, isa, cross=cross).shape == tokens.x.shape


def random_assignment(width, count0, count1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, x1 = (torch.randn(count, width, generator=generator) for count in (count0, count1))
    some = min(count0, count1) // 2
    x1[:some] = x0[:some] + 0.1 * torch.randn(some, width, generator=generator)
    weight = 2.5 * width**-0.25 * torch.eye(width) + 0.05 * torch.randn(width, width, generator=generator)
    bias, z0, z1 = (torch.randn(count, generator=generator) for count in (width, count0, count1))
    return x0, x1, weight, bias, z0 + 2, z1 + 2


def assigned(isa, x0, x1, weight, bias, z0, z1, threads=1):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layer = NativeAssignment(weight, bias, keyglue_native.kernels(isa))
        return layer.matches(x0, x1, z0, z1, 0.1, NativeWorkspace())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("isa", FLOAT32)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1), (57, 64), (300, 211), (1025, 700)])
@pytest.mark.parametrize("width", [256, 18])
def test_assignment(size, width, isa):
    x0, x1, weight, bias, z0, z1 = random_assignment(width, *size)
    expected = match_in_blocks(x0 @ weight.t() + bias, x1 @ weight.t() + bias, z0, z1, 0.1)
    for threads in (1, 2):
        found = assigned(isa, x0, x1, weight, bias, z0, z1, threads)
        assert found is not None
        clear = (expected[2] - 0.1).abs() > 1e-5
        assert torch.equal(found[0][clear], expected[0][clear])
        torch.testing.assert_close(found[2], expected[2], atol=1e-4, rtol=0)
        torch.testing.assert_close(found[3], expected[3], atol=1e-4, rtol=0)
    if min(size) > 50:
        assert (expected[0] >= 0).sum() > min(size) / 4


@pytest.mark.parametrize("isa", FLOAT32[:1])
def test_assignment_whose_similarity_is_not_kept(isa):
    x0, x1, weight, bias, z0, z1 = random_assignment(16, 4200, 4100)
    expected = match_in_blocks(x0 @ weight.t() + bias, x1 @ weight.t() + bias, z0, z1, 0.1)
    found = assigned(isa, x0, x1, weight, bias, z0, z1, 2)
    clear = (expected[2] - 0.1).abs() > 1e-4
    assert (found[0] == expected[0])[clear].float().mean() > 0.999
    torch.testing.assert_close(found[2], expected[2], atol=1e-3, rtol=0)


@pytest.mark.parametrize("isa", FLOAT32)
def test_assignment_of_equals_takes_the_first(isa):
    x = torch.ones(40, 32)
    weight, bias, z = torch.eye(32), torch.zeros(32), torch.zeros(40)
    found = assigned(isa, x, x, weight, bias, z, z)
    expected = match_in_blocks(x, x, z, z, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(found[:2], expected[:2], strict=True))


@pytest.mark.parametrize("isa", FLOAT32)
def test_assignment_leaves_what_is_not_a_number_to_the_plain_path(isa):
    x0, x1, weight, bias, z0, z1 = random_assignment(32, 50, 60)
    for tensor in (x0, x1):
        broken = tensor.clone()
        broken[7, 3] = torch.nan
        pair = (broken, x1) if tensor is x0 else (x0, broken)
        assert assigned(isa, *pair, weight, bias, z0, z1) is None


def test_wrong_shapes_are_refused():
    if not FLOAT32:
        pytest.skip("this processor runs no kernels")
    kernels = keyglue_native.kernels(FLOAT32[0])
    block = random_block(2, 16)
    with pytest.raises(ValueError, match=r"first has to be \(64, 64\), got \(32, 64\)"):
        NativeBlock(dataclasses.replace(block, first=block.first[:32]), kernels, cross=False)
    packed, tokens = NativeBlock(block, kernels, cross=False), random_tokens(block, (3, 4))
    with pytest.raises(ValueError, match="add up"):
        packed.run(dataclasses.replace(tokens, packing=Packing((3, 5))), NativeWorkspace())
    with pytest.raises(ValueError, match="cosine has to be"):
        packed.run(
            dataclasses.replace(tokens, rotation=(tokens.rotation[0][:5], tokens.rotation[1])), NativeWorkspace()
        )


# The whole matcher.


@pytest.fixture(scope="module")
def model():
    loaded = LightGlueForKeypointMatching.from_pretrained("keyglue-small", dtype="float32")
    loaded.keypoint_detector.config = loaded.keypoint_detector.config.replace(max_keypoints=400)
    return loaded


@pytest.fixture(scope="module")
def pair(model, photographs):
    os.environ["KEYGLUE_ISA"] = "off"
    try:
        return tuple(model.extract(photographs[name]) for name in ("motorcycle_left", "motorcycle_right"))
    finally:
        del os.environ["KEYGLUE_ISA"]


@torch.no_grad()
def final_tokens(path, model, pair) -> Tokens:
    tokens = model.embed([pair], path.dtype)
    for index in range(model.config.num_hidden_layers):
        tokens = tokens.updated(path.layer(index, tokens))
    return tokens


@torch.no_grad()
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("isa", FLOAT32)
def test_same_matches_with_each_instruction_set(isa, adaptive, model, pair, monkeypatch):
    monkeypatch.setenv("KEYGLUE_ISA", isa)
    before = model.config
    try:
        if not adaptive:
            model.config = before.replace(depth_confidence=-1, width_confidence=-1)
        path = choose_path(model, model._folded, None)
        assert isinstance(path, FastPath)
        assert path.weights.kernels.name == isa
        found = model.match(*pair)
        expected = model._run([pair], ReferencePath(model))[0]
    finally:
        model.config = before
    assert found.tokens_per_layer == expected.tokens_per_layer
    assert torch.equal(found.matches0, expected.matches0)
    assert len(found) > 50
    torch.testing.assert_close(found.matching_scores0, expected.matching_scores0, atol=1e-4, rtol=0)


@torch.no_grad()
def test_other_activations_stay_with_pytorch(monkeypatch):
    monkeypatch.delenv("KEYGLUE_ISA", raising=False)
    kernels = native.kernels(torch.float32)
    config = {"descriptor_dim": 32, "num_hidden_layers": 1, "hidden_act": "relu"}
    from keyglue import LightGlueConfig

    relu = LightGlueForKeypointMatching(LightGlueConfig(**config)).eval()
    assert all(isinstance(block, CpuBlock) for block in FastWeights(relu, torch.float32, kernels).layers[0])


@needs_emulation
@pytest.mark.parametrize("kind", ["self", "cross", "shared"])
@pytest.mark.parametrize(
    ("heads", "head_dim", "lengths"), [(4, 64, (150, 97)), (2, 18, (33, 64)), (3, 8, (1, 1)), (1, 40, (96, 513))]
)
def test_bfloat16_blocks(heads, head_dim, lengths, kind):
    block = random_block(heads, head_dim, shared=kind == "shared")
    tokens = random_tokens(block, lengths)
    expected = plain(block, tokens, cross=kind != "self")
    for threads in (1, 2):
        found = compiled(block, tokens, "amx-emulated", cross=kind != "self", threads=threads)
        error = (found - expected).norm() / expected.norm()
        assert 1e-6 < float(error) < 5e-3


@needs_emulation
@torch.no_grad()
def test_bfloat16_matcher(model, pair, monkeypatch):
    """With AMX's arithmetic the log assignment has a small error, and the matches are the same."""
    monkeypatch.setenv("KEYGLUE_ISA", "amx-emulated")
    kernels = native.kernels(torch.bfloat16)
    config = model.config.replace(depth_confidence=-1, width_confidence=-1)
    path = FastPath(FastWeights(model, torch.bfloat16, kernels), config.filter_threshold)
    assert all(isinstance(block, NativeBlock) for layer in path.weights.layers for block in layer)
    last = config.num_hidden_layers - 1
    found, expected = (model.assign(last, final_tokens(p, model, pair))[0] for p in (path, ReferencePath(model)))
    assert 1e-6 < float((found - expected).norm() / expected.norm()) < 3e-3
    before = model.config
    try:
        model.config = config
        same, other = model._run([pair], path)[0], model._run([pair], ReferencePath(model))[0]
    finally:
        model.config = before
    own, reference = ({tuple(ij) for ij in matches.indices.tolist()} for matches in (same, other))
    assert len(own & reference) / len(own | reference) >= 0.99


@needs_emulation
@torch.no_grad()
def test_bfloat16_models_take_the_kernels(pair, monkeypatch):
    monkeypatch.setenv("KEYGLUE_ISA", "amx-emulated")
    half = LightGlueForKeypointMatching.from_pretrained("keyglue-small", dtype="bfloat16")
    path = choose_path(half, half._folded, None)
    assert isinstance(path, FastPath)
    assert path.weights.kernels.name == "amx-emulated"
    assert len(half.match(*pair)) > 50
