"""Adaptive depth and width: each pair by itself, work that shrinks, and proper empty answers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from random_models import enliven, lively_model

from keyglue import Features, InputError
from keyglue.matching.lightglue.confidence import confidence_threshold, stops_early
from keyglue.matching.lightglue.pruning import points_to_keep

FIELDS = ("matches0", "matches1", "prune0", "prune1")


@pytest.fixture(scope="module")
def pairs(described):
    """Eight ragged pairs, easy and hard, of 40 to 300 keypoints."""
    d = described

    def first(name, count):
        return d[name].select(torch.arange(count))

    return [
        (d["motorcycle_left"], d["motorcycle_right"]),
        (d["astronaut"], d["coffee"]),
        (first("motorcycle_left", 120), d["motorcycle_right"]),
        (d["chelsea"], d["chelsea"]),
        (first("coffee", 40), first("coffee", 90)),
        (d["rocket"], d["astronaut"]),
        (first("astronaut", 200), first("astronaut", 150)),
        (d["motorcycle_right"], d["motorcycle_left"]),
    ]


@pytest.fixture(scope="module")
def model(pairs):
    model = lively_model(descriptor_dim=64, num_hidden_layers=6)
    enliven(model, pairs)
    return model


def variant(model, **changes):
    other = type(model)(model.config.replace(**changes)).eval()
    other.load_state_dict(model.state_dict())
    return other


def assert_same(a, b):
    for name in FIELDS:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    torch.testing.assert_close(a.matching_scores0, b.matching_scores0, atol=1e-5, rtol=0)
    assert (a.stop_layer, a.tokens_per_layer) == (b.stop_layer, b.tokens_per_layer)


@torch.inference_mode()
def test_batch_of_eight_is_eight_singles(model, pairs):
    batch = model.match_pairs(pairs)
    singles = [model.match_pairs([pair])[0] for pair in pairs]
    for a, b in zip(batch, singles, strict=True):
        assert_same(a, b)
    assert len({m.stop_layer for m in batch}) > 1, "the pairs should stop at different layers"
    assert min(m.stop_layer for m in batch) < model.config.num_hidden_layers
    assert any(m.tokens_per_layer[-1] < m.tokens_per_layer[0] for m in batch)


@torch.inference_mode()
def test_work_shrinks(model, pairs):
    adaptive = model(features=pairs)
    everything = variant(model, depth_confidence=-1, width_confidence=-1)(features=pairs)
    points = sum(len(image) for pair in pairs for image in pair)
    assert everything.tokens_per_layer == (points,) * 6
    assert adaptive.tokens_per_layer[0] == points
    assert list(adaptive.tokens_per_layer) == sorted(adaptive.tokens_per_layer, reverse=True)
    assert sum(adaptive.tokens_per_layer) < 0.95 * sum(everything.tokens_per_layer)
    # prune says for each point how many layers it was processed in; its sum is the work that was done.
    assert int(adaptive.prune.sum()) == sum(adaptive.tokens_per_layer)


@pytest.mark.parametrize("depth", [0.95, -1, 0, 1])
@pytest.mark.parametrize("width", [0.99, -1, 0, 1])
@torch.inference_mode()
def test_all_combinations_of_depth_and_width(model, pairs, depth, width):
    found = variant(model, depth_confidence=depth, width_confidence=width).match_pairs(pairs[:3])
    for matches in found:
        if not 0 < depth < 1:
            assert matches.stop_layer == 6
        if not 0 < width < 1:
            assert len(set(matches.tokens_per_layer)) == 1
        assert len(matches) > 0


@torch.inference_mode()
def test_swapping_the_images_transposes_the_matches(model, pairs):
    for first, second in pairs[:3]:
        a, b = model.match(first, second), model.match(second, first)
        assert torch.equal(a.matches0, b.matches1)
        assert torch.equal(a.prune0, b.prune1)
        assert a.stop_layer == b.stop_layer


@torch.inference_mode()
def test_the_order_of_keypoints_does_not_matter(model, pairs):
    first, second = pairs[0]
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(3))
    a, b = model.match(first, second), model.match(first.select(order), second)
    assert torch.equal(a.matches0[order], b.matches0)
    assert torch.equal(a.prune0[order], b.prune0)


def nothing_like(features: Features, count: int = 0) -> Features:
    return features.select(torch.arange(count))


@pytest.mark.parametrize("counts", [(0, 0), (0, 5), (5, 0), (1, 1), (1, 50)])
@torch.inference_mode()
def test_few_or_no_keypoints(model, pairs, counts):
    first, second = pairs[0]
    found = model.match(nothing_like(first, counts[0]), nothing_like(second, counts[1]))
    assert found.matches0.shape == (counts[0],)
    assert found.matches1.shape == (counts[1],)
    if 0 in counts:
        assert len(found) == 0
        assert found.stop_layer == 0
    output = model(features=[(nothing_like(first, counts[0]), nothing_like(second, counts[1])), pairs[0]])
    assert_same_rows = model(features=[pairs[0]])
    assert torch.equal(output.matches[1], assert_same_rows.matches[0])


@torch.inference_mode()
def test_all_points_pruned_gives_an_empty_answer(model, pairs):
    drops = variant(model, depth_confidence=-1)
    for layer in drops.match_assignment_layers:
        layer.matchability.weight.zero_()
        layer.matchability.bias.fill_(-50)
    for layer in drops.token_confidence:
        layer.token.weight.zero_()
        layer.token.bias.fill_(50)
    output = drops(features=[pairs[0], pairs[1]])
    assert (output.matches == -1).all()
    assert output.tokens_per_layer == (sum(len(i) for p in pairs[:2] for i in p),)
    assert output.stop_layers.tolist() == [1, 1]


@torch.inference_mode()
def test_pruning_starts_at_the_number_of_keypoints_that_is_set(model, pairs):
    settings = {"depth_confidence": -1, "pruning_min_keypoints": 400}
    large, small = variant(model, **settings).match_pairs([pairs[0], pairs[4]])
    assert large.tokens_per_layer[-1] < large.tokens_per_layer[0]
    assert len(set(small.tokens_per_layer)) == 1


@torch.inference_mode()
def test_records_keep_order_and_number_of_points(model, pairs):
    batch = [pairs[0], pairs[4], (nothing_like(pairs[0][0]), pairs[1][1])]
    out = model(features=batch, output_hidden_states=True, output_attentions=True)
    steps = len(out.tokens_per_layer)
    most = out.mask.shape[-1]
    assert len(out.hidden_states) == 7 * steps
    assert len(out.attentions) == 2 * steps
    for step, state in enumerate(out.hidden_states):
        assert state.shape == (3, 2, 128 if step % 7 in (2, 5) else 64, most)
        gone = out.prune <= step // 7
        assert (state.transpose(2, 3)[gone] == 0).all()
        assert (state.transpose(2, 3)[~gone].abs().sum(-1) > 0).all()
    for step, attention in enumerate(out.attentions):
        assert attention.shape == (3, 2, 4, most, most)
        present = (out.prune > step // 2)[:, :, None].expand(-1, -1, 4, -1)
        torch.testing.assert_close(attention.sum(-1), present.float())


def test_formulas_of_the_paper():
    assert confidence_threshold(0, 9) == pytest.approx(0.9)
    assert confidence_threshold(9, 9) == pytest.approx(0.8 + 0.1 * 0.0183156, abs=1e-6)
    assert stops_early(4, 100, 0.95)
    assert not stops_early(5, 100, 0.95)
    keep = points_to_keep(torch.tensor([0.005, 0.005, 0.02]), torch.tensor([0.95, 0.85, 0.95]), 0.9, 0.99)
    assert keep.tolist() == [False, True, True]


def test_features_of_another_width_are_refused(model, pairs):
    first, second = pairs[0]
    wrong = Features(keypoints=first.keypoints, descriptors=first.descriptors[:, :128], image_size=first.image_size)
    with pytest.raises(InputError, match="256 values, got 128"):
        model.match(wrong, second)


def test_scale_and_orientation_are_needed_where_they_are_read(pairs):
    model = lively_model(descriptor_dim=64, num_hidden_layers=1, add_scale_ori=True)
    with pytest.raises(InputError, match="scales and orientations"):
        model.match(*pairs[0])
