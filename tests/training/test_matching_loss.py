"""The matching loss: the paper's formula, gradients by finite differences, all pairs at once or one by one."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

from keyglue.base.errors import InputError
from keyglue.base.types import Features
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.lightglue.assignment import log_assignment
from keyglue.matching.lightglue.attention import Attention
from keyglue.matching.lightglue.attention_training import attend, suits_training
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.lightglue.lightglue import LightGlueMatcher
from keyglue.matching.lightglue.loss import assignment_loss, best_of, confidence_loss, matching_loss, matching_losses
from keyglue.matching.lightglue.ragged import Packing
from keyglue.training.initialise import start_random

CONFIG = LightGlueConfig(
    descriptor_dim=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    keypoint_detector_config={"model_type": "superpoint", "descriptor_decoder_dim": 16},
)


def _matcher() -> LightGlueMatcher:
    matcher = LightGlueMatcher(CONFIG)
    start_random(matcher, torch.Generator().manual_seed(0))
    return matcher


def _features(count: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    descriptors = torch.nn.functional.normalize(torch.randn(count, 16, generator=generator), dim=1) * 4
    return Features(
        keypoints=torch.rand(count, 2, generator=generator) * 90, descriptors=descriptors, image_size=(100, 100)
    )


LABELS = (torch.tensor([2, -1, 0, -100, -1]), torch.tensor([2, -100, 0, -1]))
SUPPORTED = importlib.import_module("keyglue_native").supported() if importlib.util.find_spec("keyglue_native") else []
STACKED = tuple(torch.stack([label] * 2) for label in LABELS)


Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _parts(*, pairs: int = 2, columns: int = 4, dtype: torch.dtype = torch.float32) -> Parts:
    """Projected descriptors of 5 and 4 keypoints, and their matchabilities."""
    generator = torch.Generator().manual_seed(0)
    y0, y1, z0, z1 = (
        torch.randn(pairs, *shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in ((5, 3), (columns, 3), (5,), (columns,))
    )
    return y0, y1, z0, z1


def test_loss_is_the_formula_of_the_paper() -> None:
    parts = _parts()
    y0, y1, z0, z1 = parts
    la = log_assignment(y0 @ y1.mT, z0, z1)
    positive = -(la[:, 0, 2] + la[:, 2, 0]) / 2
    negative0, negative1 = -(la[:, 1, 4] + la[:, 4, 4]) / 2, -la[:, 5, 3]
    expected = 0.5 * positive + 0.5 * (negative0 + negative1) / 2
    loss = assignment_loss(*parts, *STACKED)
    torch.testing.assert_close(loss, expected)
    weights = torch.tensor([1.0, 3.0])
    for own, other in zip(
        torch.autograd.grad(loss @ weights, parts), torch.autograd.grad(expected @ weights, parts), strict=True
    ):
        torch.testing.assert_close(own, other)


def test_similarities_that_no_exponential_can_hold_have_a_finite_loss() -> None:
    y0, *parts = _parts()
    loss = assignment_loss(y0 * 1000, *parts, *STACKED)
    exact = assignment_loss(y0.double() * 1000, *(part.double() for part in parts), *STACKED)
    torch.testing.assert_close(loss, exact.float())
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss.sum(), (y0, *parts)))


@pytest.mark.parametrize("value", [-1, -100])
@pytest.mark.parametrize("columns", [4, 0])
def test_pairs_without_matches_or_without_negatives_have_a_finite_loss_and_gradient(value: int, columns: int) -> None:
    parts = _parts(columns=columns)
    loss = assignment_loss(*parts, torch.full((2, 5), value), torch.full((2, columns), value)).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(part.grad is not None and torch.isfinite(part.grad).all() for part in parts)


def test_gradients_agree_with_finite_differences() -> None:
    parts = _parts(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *values: assignment_loss(*values, *STACKED), parts)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: confidence_loss(values, torch.arange(7) % 2 == 0), (logits,))


def _heads(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_gradients_of_attention_agree_with_finite_differences() -> None:
    # More heads than are worked on at a time, keys of another number than queries.
    parts = [_heads(3, count, 3, 4, seed=seed) for seed, count in enumerate((5, 6, 6))]
    assert torch.autograd.gradcheck(attend, parts, fast_mode=True)


SHAPES = [(60, 70, 32), (200, 33, 64), (1, 1, 32), (97, 128, 24)]


@pytest.mark.parametrize(
    ("isa", "queries", "keys", "dim", "size"),
    [(isa, *shape, 1) for isa in ("", "off", "amx-emulated") for shape in SHAPES]
    # Without kernels logits are rounded to bfloat16, which large ones do not stand.
    + [(isa, 97, 128, 32, 8) for isa in ("amx", "amx-emulated") if isa in SUPPORTED],
)
def test_attention_in_bfloat16_and_its_gradients_are_those_of_torch(
    isa: str, queries: int, keys: int, dim: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of the last case are beyond what exponentials hold."""
    monkeypatch.setenv("KEYGLUE_ISA", isa)
    half = [(size * _heads(3, n, 3, dim, seed=n)).detach().bfloat16().requires_grad_() for n in (queries, keys, keys)]
    half[2] = _heads(3, keys, 3, dim, seed=8).detach().bfloat16().requires_grad_()
    gradient = _heads(3, queries, 3, dim, seed=9).detach().bfloat16()
    exact = [part.detach().double().requires_grad_() for part in half]
    plain = torch.nn.functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in exact)).transpose(1, 2)
    expected = torch.autograd.grad(plain, exact, gradient.double())
    assert suits_training(half[0], half[1], 0.0)
    assert not suits_training(exact[0], exact[1], 0.0)
    found = attend(*half)
    assert (found - plain).norm() < 0.01 * plain.norm()
    for own, true in zip(torch.autograd.grad(found, half, gradient), expected, strict=True):
        # With one key all weights are 1 and the gradients of queries and keys nothing but rounding.
        assert (own - true).norm() <= 0.02 * true.norm() + 0.05 * (keys == 1)


def test_gradient_of_the_whole_model_points_where_the_loss_falls() -> None:
    """Along the gradient the loss changes by its squared length, as finite differences say."""
    matcher, pair = _matcher(), (_features(5, 1), _features(4, 2))
    losses = matching_losses(matcher, [pair], [LABELS], confidence=False)
    losses.assignment.backward()
    gradients = {name: p.grad for name, p in matcher.named_parameters() if p.grad is not None}
    assert len(gradients) > 30
    square = sum(float(g.double().square().sum()) for g in gradients.values())
    step = 2e-3 / square**0.5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, parameter in matcher.named_parameters():
                if name in gradients:
                    parameter.add_(sign * step * gradients[name])
            values.append(float(matching_losses(matcher, [pair], [LABELS], confidence=False).assignment))
            for name, parameter in matcher.named_parameters():
                if name in gradients:
                    parameter.sub_(sign * step * gradients[name])
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(square, rel=0.02)


def test_pairs_of_one_size_are_computed_together_with_the_same_result() -> None:
    matcher = _matcher()
    pairs = [(_features(6, seed), _features(6, seed + 10)) for seed in range(3)]
    label = torch.tensor([1, 0, -1, -1, -100, 5])
    labels = [(label, label)] * 3
    together = matching_losses(matcher, pairs, labels)
    apart = [matching_losses(matcher, [pair], [one]) for pair, one in zip(pairs, labels, strict=True)]
    torch.testing.assert_close(together.assignment, torch.stack([loss.assignment for loss in apart]).mean())
    assert together.confidence is not None
    torch.testing.assert_close(together.confidence, torch.stack([loss.confidence for loss in apart]).mean())
    for one, other in zip(together.log_assignments(), apart, strict=True):
        torch.testing.assert_close(one, other.log_assignments()[0])
    ragged = [pairs[0], (_features(5, 7), _features(4, 8))]
    mixed = matching_losses(matcher, ragged, [labels[0], LABELS])
    alone = matching_losses(matcher, ragged[1:], [LABELS])
    torch.testing.assert_close(mixed.assignment, (apart[0].assignment + alone.assignment) / 2)


@pytest.mark.parametrize("heads", [None, 1])
def test_attention_of_all_images_at_once_is_that_of_each(heads: int | None) -> None:
    attention = Attention(CONFIG.replace(num_key_value_heads=heads))
    packing = Packing((7,) * 6)
    query = torch.randn(42, 2, 8)
    key, value = (torch.randn(42, heads or 2, 8) for _ in range(2))
    for cross in (False, True):
        rows = [
            attention._attend(query[own], key[other], value[other], False)[0]
            for image, own in enumerate(packing.slices)
            for other in [packing.slices[image ^ 1] if cross else own]
        ]
        torch.testing.assert_close(attention._attend_uniform(query, key, value, 7, cross), torch.cat(rows))


def test_confidence_heads_learn_without_changing_anything_else() -> None:
    matcher, pair = _matcher(), (_features(5, 1), _features(4, 2))
    losses = matching_losses(matcher, [pair], [LABELS])
    assert losses.confidence is not None
    losses.confidence.backward()
    touched = {name for name, p in matcher.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert touched
    assert all(name.startswith("token_confidence") for name in touched)


def _joint(**detector: object) -> LightGlueForKeypointMatching:
    values = {"model_type": "superpoint", "encoder_hidden_sizes": (8, 8, 8, 8), "descriptor_decoder_dim": 16}
    model = LightGlueForKeypointMatching(CONFIG.replace(keypoint_detector_config={**values, **detector}))
    start_random(model, torch.Generator().manual_seed(0))
    return model.train()


def test_images_with_labels_give_a_loss_and_the_detector_no_gradient(photographs: dict[str, torch.Tensor]) -> None:
    model = _joint(keypoint_threshold=0.0, max_keypoints=20)
    images = torch.stack([photographs["chelsea"][:, :120, :160]] * 2)[None]
    output = model(images, labels=torch.arange(20).expand(1, 2, 20))
    output.loss.backward()
    assert all(p.grad is None for p in model.keypoint_detector.parameters())
    assert any(p.grad is not None for p in model.transformer_layers.parameters())
    assert output.matches.shape == (1, 2, 20)
    assert (output.stop_layers == 3).all()
    with pytest.raises(InputError, match="labels must have shape"):
        model(images, labels=torch.zeros(1, 2, 7))


def test_features_with_labels_train_the_matcher() -> None:
    model = _joint()
    first, second = _features(20, 1), _features(20, 2)
    # The same descriptors in another order, with noise.
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    second = dataclasses.replace(second, descriptors=first.descriptors[order] + 0.3 * second.descriptors)
    labels = torch.stack([order.argsort(), order])[None]
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=5e-3)
    losses = []
    for _ in range(100):
        output = model(features=[(first, second)], labels=labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(output.matches, labels)


def test_impossible_labels_are_told() -> None:
    matcher, pair = _matcher(), (_features(5, 1), _features(4, 2))
    for labels, message in (
        ((torch.tensor([4, -1, -1, -1, -1]), LABELS[1]), "image 0"),
        ((torch.tensor([0, -1, -1, -1, -1]), torch.tensor([-1, -1, -1, -1])), "contradict"),
    ):
        with pytest.raises(InputError, match=message):
            matching_loss(matcher, [pair], [labels])


@pytest.mark.parametrize(("threshold", "answers"), [(0.1, [1, 2]), (0.2, [2, 2]), (0.0, [1, 0])])
def test_an_answer_is_a_match_only_above_the_filter_threshold(threshold, answers):
    # Two points against two; the last row and column are "no match", which the threshold does not look at.
    probability = torch.tensor([[0.05, 0.15, 0.7], [0.02, 0.01, 0.9], [0.8, 0.8, 0.0]])
    best0, best1 = best_of((probability + 1e-20).log()[None], threshold)
    assert best0.tolist() == [answers]
    assert best1.tolist() == [[2 if threshold >= 0.05 else 0, 2 if threshold >= 0.15 else 0]]


def test_answers_of_an_image_without_points():
    best0, best1 = best_of(torch.zeros(1, 1, 4), 0.1)
    assert best0.shape == (1, 0)
    assert best1.tolist() == [[0, 0, 0]]
