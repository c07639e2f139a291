from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyglue.base.errors import InputError
from keyglue.matching.nearest_neighbor import match_nearest


def brute_force(first, second, ratio, mutual, min_similarity, distance):
    """The definition, one pair at a time, in float64."""
    a, b = first.double().numpy(), second.double().numpy()
    if distance == "cosine":
        a = a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)
        b = b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-12)
    distances = np.linalg.norm(a[:, None] - b[None], axis=2).reshape(len(a), len(b))
    similarity = np.clip(a @ b.T, 0, 1) if distance == "cosine" else 1 / (1 + distances)

    def passes(row, j):
        others = np.delete(row, j)
        return ratio is None or not len(others) or row[j] < ratio * others.min()

    matches = np.full(len(a), -1)
    for i, row in enumerate(distances if len(b) else []):
        j = int(row.argmin())
        column = distances[:, j]
        good = passes(row, j) and (min_similarity is None or similarity[i, j] >= min_similarity)
        if good and (not mutual or (column.argmin() == i and passes(column, i))):
            matches[i] = j
    return matches


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(0, 10**6),
    st.sampled_from([None, 0.7, 0.95]),
    st.booleans(),
    st.sampled_from([None, 0.4]),
    st.sampled_from(["cosine", "l2"]),
    st.integers(1, 40),
)
def test_agrees_with_brute_force_whatever_the_blocks(m, n, seed, ratio, mutual, min_similarity, distance, block):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(m, 5, generator=generator), torch.randn(n, 5, generator=generator)
    common = min(m, n) // 2  # some true partners, so that the ratio test lets something through
    second[:common] = first[:common] + 0.05 * second[:common]
    options = {"ratio": ratio, "mutual": mutual, "min_similarity": min_similarity, "distance": distance}
    found = match_nearest(first, second, **options, block=block)
    assert np.array_equal(found.matches0.numpy(), brute_force(first, second, **options))
    assert np.array_equal(found.matches1.numpy(), brute_force(second, first, **options))


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_mutual_matches_are_mutual_and_swap_with_the_images(distance):
    torch.manual_seed(0)
    first, second = torch.rand(200, 16), torch.rand(150, 16)
    found = match_nearest(first, second, ratio=0.95, distance=distance, block=64)
    swapped = match_nearest(second, first, ratio=0.95, distance=distance, block=64)
    assert 0 < len(found) < 150
    assert torch.equal(found.matches0, swapped.matches1)
    assert torch.equal(found.matches1, swapped.matches0)
    index0, index1 = found.indices.T
    assert torch.equal(found.matches1[index1], index0)
    assert torch.equal(found.matching_scores0[index0], found.matching_scores1[index1])
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert int(found.prune0.sum()) == found.stop_layer == 0


def test_scores_are_the_similarities():
    first = torch.tensor([[2.0, 0], [0, 3]])
    second = torch.tensor([[0.0, 1], [1, 1]])
    found = match_nearest(first, second)
    assert found.matches0.tolist() == [1, 0]
    assert found.matching_scores0.tolist() == pytest.approx([0.5**0.5, 1])
    found = match_nearest(first, second, distance="l2")
    assert found.matches0.tolist() == [1, 0]
    assert found.matching_scores0.tolist() == pytest.approx([1 / (1 + 2**0.5), 1 / 3])
    opposite = match_nearest(first[:1], -first[:1])
    assert opposite.matches0.tolist() == [0]
    assert opposite.matching_scores0.tolist() == [0]


def test_a_match_turned_down_keeps_its_score():
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    second = torch.tensor([[1.0, 0.2], [0.9, -0.2], [0.1, 1.0]])
    found = match_nearest(first, second, ratio=0.8)
    assert found.matches0.tolist() == [-1, 2]
    assert found.matching_scores0[0] > 0.97
    assert match_nearest(first, second, min_similarity=0.99).matches0.tolist() == [-1, 2]
    assert match_nearest(first, second).matches1.tolist() == [0, -1, 1]
    assert match_nearest(first, second, mutual=False).matches1.tolist() == [0, 0, 1]


def test_exact_doubles_never_pass_the_ratio_test():
    torch.manual_seed(1)
    first = torch.randn(64, 128) * 500
    second = torch.cat([first, first])
    for distance in ("cosine", "l2"):
        assert len(match_nearest(first, second, ratio=0.99, distance=distance)) == 0
        assert torch.equal(match_nearest(first, second, distance=distance).matches0, torch.arange(64))


@pytest.mark.parametrize(("m", "n"), [(0, 0), (0, 4), (4, 0)])
def test_empty_images_give_no_matches(m, n):
    found = match_nearest(torch.rand(m, 8), torch.rand(n, 8), ratio=0.8, min_similarity=0.1)
    assert found.matches0.tolist() == [-1] * m
    assert found.matches1.tolist() == [-1] * n
    assert found.matching_scores0.tolist() == [0] * m
    assert found.indices.shape == (0, 2)


def test_one_descriptor_has_no_runner_up_to_fail_against():
    assert match_nearest(torch.ones(1, 4), torch.ones(1, 4), ratio=0.5).matches0.tolist() == [0]


def test_half_precision_descriptors_are_compared_in_float32():
    torch.manual_seed(0)
    first = torch.randn(50, 32)
    second = first[torch.randperm(50)]
    expected = match_nearest(first.half().float(), second.half().float()).matches0
    assert torch.equal(match_nearest(first.half(), second.half()).matches0, expected)


def test_inputs_are_not_changed():
    first, second = torch.rand(9, 4), torch.rand(8, 4)
    copies = first.clone(), second.clone()
    match_nearest(first, second, ratio=0.9, distance="l2")
    assert torch.equal(first, copies[0])
    assert torch.equal(second, copies[1])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.rand(3), torch.rand(3, 4)), {}, "shape"),
        ((torch.rand(3, 4), torch.rand(3, 5)), {}, "same detector"),
        ((torch.full((3, 4), torch.nan), torch.rand(3, 4)), {}, "NaN"),
        ((torch.rand(3, 4), torch.rand(3, 4)), {"ratio": 0}, "ratio"),
        ((torch.rand(3, 4), torch.rand(3, 4)), {"min_similarity": 2}, "min_similarity"),
        ((torch.rand(3, 4), torch.rand(3, 4)), {"distance": "hamming"}, "distance"),
        ((torch.rand(3, 4), torch.rand(3, 4)), {"block": 0}, "block"),
    ],
)
def test_wrong_input_is_refused(arguments, options, message):
    with pytest.raises(InputError, match=message):
        match_nearest(*arguments, **options)
