"""The fast path gives the reference path's answers, from the weights as they are now, or leaves the work to it."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from agreement import FIELDS, assert_agree, reference
from random_models import enliven, lively_model

from keyglue import Features, LightGlueConfig, LightGlueForKeypointMatching
from keyglue.base import native
from keyglue.matching.lightglue.fast import FastPath, ReferencePath, choose_path

SETTINGS = {
    "plain": {},
    "wide heads": {"num_attention_heads": 2},
    "many heads": {"num_attention_heads": 8},
    "odd head width": {"descriptor_dim": 72, "num_attention_heads": 4},
    "grouped": {"num_key_value_heads": 2},
    "multi-query": {"num_key_value_heads": 1},
    "no bias": {"attention_bias": False},
    "relu": {"hidden_act": "relu"},
    "silu": {"hidden_act": "silu"},
    "other descriptors": {"descriptor_dim": 96, "num_attention_heads": 3},
}


@pytest.fixture(autouse=True, params=["kernels", "off"])
def arithmetic(request, monkeypatch):
    """Run each test with the compiled kernels, where they are installed, and without."""
    if request.param == "off":
        monkeypatch.setenv("KEYGLUE_ISA", "off")
    elif native.kernels(torch.float32) is None:
        pytest.skip("there are no kernels here")


def path_of(model):
    return type(choose_path(model, model._folded, None))


def first(features: Features, count: int) -> Features:
    return features.select(torch.arange(count))


def tie(model):
    """Give queries and keys of the cross blocks the same weights, as published models have them."""
    for layer in model.transformer_layers:
        layer.cross_attention.k_proj.load_state_dict(layer.cross_attention.q_proj.state_dict())
    return model


@pytest.fixture(scope="module")
def pairs(described):
    d = described
    return [
        (d["motorcycle_left"], d["motorcycle_right"]),
        (first(d["astronaut"], 200), d["coffee"]),
        (first(d["coffee"], 1), first(d["coffee"], 90)),
        (first(d["rocket"], 0), d["astronaut"]),
        (d["chelsea"], d["chelsea"]),
    ]


@pytest.mark.parametrize("tied", [True, False], ids=["shared similarity", "two similarities"])
@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_same_answers_whatever_the_settings(name, tied, pairs):
    model = lively_model(**{"descriptor_dim": 64, "num_hidden_layers": 3, **SETTINGS[name]})
    shared = tied and model.config.key_value_heads == model.config.num_attention_heads
    model = tie(model) if shared else model
    assert path_of(model) is FastPath
    for config in (model.config, model.config.replace(depth_confidence=-1, width_confidence=-1)):
        model.config = config
        for found, expected in zip(model.match_pairs(pairs), reference(model, pairs), strict=True):
            assert_agree(found, expected, config.filter_threshold)


@torch.no_grad()
def test_same_answers_when_pairs_stop_and_points_go(pairs):
    model = tie(lively_model(descriptor_dim=64, num_hidden_layers=6))
    enliven(model, pairs)
    found, expected = model.match_pairs(pairs), reference(model, pairs)
    for a, b in zip(found, expected, strict=True):
        assert_agree(a, b, model.config.filter_threshold)
        assert (a.stop_layer, a.tokens_per_layer) == (b.stop_layer, b.tokens_per_layer)
        assert torch.equal(a.prune0, b.prune0)
        assert torch.equal(a.prune1, b.prune1)
    assert 0 < found[0].stop_layer < 6
    assert any(m.tokens_per_layer[-1] < m.tokens_per_layer[0] for m in found if m.stop_layer)
    # A pair's answer is the same bits whatever else is in the batch.
    for pair, together in zip(pairs, found, strict=True):
        alone = model.match(*pair)
        assert all(torch.equal(getattr(alone, name), getattr(together, name)) for name in FIELDS)


@torch.no_grad()
def test_all_points_pruned_gives_an_empty_answer(pairs):
    model = lively_model(descriptor_dim=64, num_hidden_layers=3, depth_confidence=-1)
    for layer in model.match_assignment_layers:
        layer.matchability.weight.zero_()
        layer.matchability.bias.fill_(-50)
    for layer in model.token_confidence:
        layer.token.weight.zero_()
        layer.token.bias.fill_(50)
    assert path_of(model) is FastPath
    found = model.match(*pairs[0])
    assert len(found) == 0
    assert found.stop_layer == 1


@torch.no_grad()
def test_logits_of_any_size(pairs):
    """Exponentials that would overflow are computed another way."""
    model = tie(lively_model(descriptor_dim=64, num_hidden_layers=1, depth_confidence=-1, width_confidence=-1))
    layer = model.transformer_layers[0]
    for attention in (layer.self_attention, layer.cross_attention):
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.mul_(100)
    tokens = model.embed(pairs[:1])
    queries, keys = (projection(tokens.x).split(16, dim=1)[0] for projection in (attention.q_proj, attention.k_proj))
    assert float((queries @ keys.t()).max()) / 4 > 200
    assert path_of(model) is FastPath
    assert_agree(model.match(*pairs[0]), reference(model, pairs[:1])[0], model.config.filter_threshold)


@torch.no_grad()
def test_weights_that_change_are_noticed(pairs):
    model = lively_model(descriptor_dim=64, num_hidden_layers=2)
    before = model.match(*pairs[0])

    def changed_and_right():
        now = model.match(*pairs[0])
        assert path_of(model) is FastPath
        assert_agree(now, reference(model, pairs[:1])[0], model.config.filter_threshold)
        return not torch.equal(now.matching_scores0, before.matching_scores0)

    original = copy.deepcopy(model.state_dict())
    model.load_state_dict(lively_model(1, descriptor_dim=64, num_hidden_layers=2).state_dict())
    assert changed_and_right(), "load_state_dict"
    model.load_state_dict(original)
    assert not changed_and_right()
    model.transformer_layers[0].self_attention.v_proj.weight.mul_(2)
    assert changed_and_right(), "in place"
    model.load_state_dict(original)
    model.transformer_layers[1].cross_mlp.fc2 = torch.nn.Linear(128, 64)
    assert changed_and_right(), "replaced"
    model.load_state_dict(original)
    for parameter in model.parameters():
        parameter.data.mul_(0.9)
    assert changed_and_right(), "through .data"
    model.load_state_dict(original)
    model.to(torch.bfloat16).to(torch.float32)
    assert changed_and_right(), ".to there and back"


def test_training_and_gradients_take_the_reference_path(pairs):
    model = lively_model(descriptor_dim=64, num_hidden_layers=2)
    with torch.no_grad():
        assert path_of(model) is FastPath
        before = model.match(*pairs[0])
        assert path_of(model.train()) is ReferencePath
        model.eval()
    assert path_of(model) is ReferencePath, "gradients may be wanted"
    scores = model.match_pairs(pairs[:1])[0].matching_scores0
    scores.sum().backward()
    gradient = model.transformer_layers[0].self_attention.q_proj.weight.grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    with torch.no_grad():
        after = model.match(*pairs[0])
        assert_agree(after, reference(model, pairs[:1])[0], model.config.filter_threshold)
    assert not torch.equal(before.matching_scores0, after.matching_scores0)


@torch.no_grad()
def test_what_the_fast_path_does_not_know_takes_the_reference_path(pairs):
    model = lively_model(descriptor_dim=64, num_hidden_layers=2)
    out = model(features=pairs[:1], output_attentions=True)
    assert len(out.attentions) == 4
    with torch.autocast("cpu"):
        assert path_of(model) is ReferencePath
    seen = []
    handle = model.transformer_layers[0].register_forward_hook(lambda *_: seen.append(1))
    model.match(*pairs[0])
    assert seen == [1]
    handle.remove()
    assert path_of(model) is FastPath
    assert path_of(copy.deepcopy(model).double()) is ReferencePath

    class Adapted(torch.nn.Linear):
        pass

    model.transformer_layers[0].self_attention.q_proj = Adapted(64, 64)
    assert path_of(model) is ReferencePath


@torch.no_grad()
def test_copies_pickles_and_folders(pairs, tmp_path):
    model = lively_model(descriptor_dim=64, num_hidden_layers=2)
    expected = model.match(*pairs[0])
    size = len(pickle.dumps(lively_model(descriptor_dim=64, num_hidden_layers=2)))
    assert len(pickle.dumps(model)) < 1.01 * size
    model.save_pretrained(tmp_path)
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    others.append(LightGlueForKeypointMatching.from_pretrained(tmp_path, dtype="float32"))
    for other in others:
        found = other.match(*pairs[0])
        assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in FIELDS)
    # A copy goes its own way.
    others[0].transformer_layers[0].self_mlp.fc2.weight.zero_()
    assert not torch.equal(others[0].match(*pairs[0]).matching_scores0, expected.matching_scores0)
    assert torch.equal(model.match(*pairs[0]).matching_scores0, expected.matching_scores0)


def test_inference_mode_and_weights_made_in_it(pairs):
    with torch.inference_mode():
        config = LightGlueConfig(descriptor_dim=64, num_hidden_layers=1)
        model = LightGlueForKeypointMatching(config).eval()
        for _ in range(2):
            assert_agree(model.match(*pairs[0]), reference(model, pairs[:1])[0], config.filter_threshold)
            model.transformer_layers[0].self_mlp.fc2.weight.mul_(-3)
