"""Training SuperPoint: losses, gradients, the fold into plain convolutions, and that a few steps teach something."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from keyglue.keypoints.sampling import sample_descriptors
from keyglue.keypoints.superpoint import SuperPointConfig, SuperPointForKeypointDetection
from keyglue.training.homographies import ViewSettings
from keyglue.training.photometric import PhotometricSettings
from keyglue.training.photos import load_photos
from keyglue.training.superpoint import (
    ScaledStandardisation,
    SuperPointNetwork,
    SuperPointSettings,
    SuperPointTask,
    descriptor_loss,
    sample_map,
)

TINY = SuperPointConfig(encoder_hidden_sizes=(8, 8, 16, 16), decoder_hidden_size=32, descriptor_decoder_dim=32)
SETTINGS = SuperPointSettings(
    config=TINY,
    pairs=2,
    views=ViewSettings(size=(96, 128), difficulty=0.3, max_angle=10, overhang=0.2),
    light=PhotometricSettings(rare=0.1),
    points=96,
    detector_first=0,
    settling=0,
)


@pytest.fixture(scope="module")
def task(assets: Path) -> SuperPointTask:
    photos = load_photos([assets / name for name in ("chelsea.png", "astronaut.png", "coffee.png")], long_side=320)
    return SuperPointTask(SETTINGS, *photos.split(), seed=1)


def _network(seed: int = 0) -> SuperPointNetwork:
    torch.manual_seed(seed)
    return SuperPointNetwork.from_scratch(TINY, 20.0)


def test_folded_network_computes_what_was_trained(photographs: dict[str, torch.Tensor]) -> None:
    network = _network()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("bias", "gain")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    image = photographs["chelsea"][None, :, :200, :304]
    plain = network.folded()
    assert type(plain) is SuperPointForKeypointDetection
    assert not any("parametrizations" in name for name in plain.state_dict())
    with torch.no_grad():
        logits, descriptors = network(image)
        encoded = plain.encoder(image)[-1]
        torch.testing.assert_close(plain.keypoint_decoder.logits(encoded), logits, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            plain.descriptor_decoder(encoded), torch.nn.functional.normalize(descriptors, dim=1), rtol=0, atol=1e-6
        )


def test_standardised_filters_have_mean_zero_and_the_size_of_their_gain() -> None:
    filters = ScaledStandardisation(4)(torch.randn(4, 6, 3, 3) * 5 + 2)
    torch.testing.assert_close(filters.mean(dim=(1, 2, 3)), torch.zeros(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(filters.square().sum(dim=(1, 2, 3)), torch.ones(4), rtol=1e-4, atol=0)


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    standardisation = ScaledStandardisation(2).double()
    assert torch.autograd.gradcheck(standardisation, (weight,))
    descriptors = [torch.randn(2, 7, 5, dtype=torch.float64) for _ in range(2)]
    descriptors = [torch.nn.functional.normalize(d, dim=2).requires_grad_() for d in descriptors]
    points = [torch.rand(2, 7, 2, dtype=torch.float64) * 30 for _ in range(2)]
    valid = torch.rand(2, 7) < 0.8
    temperature = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda d0, d1, t: descriptor_loss(d0, d1, *points, valid, t, 6.0)[0], (*descriptors, temperature)
    )


def test_descriptor_loss_is_the_double_softmax_of_all_that_may_be_told_apart() -> None:
    torch.manual_seed(0)
    d0, d1 = (torch.nn.functional.normalize(torch.randn(1, 4, 8), dim=2) for _ in range(2))
    # Points 0 and 1 lie 2 px apart in the second view; point 3 does not count.
    points0 = torch.tensor([[[0.0, 0], [50, 0], [0, 50], [90, 90]]])
    points1 = torch.tensor([[[0.0, 0], [2, 0], [0, 50], [90, 90]]])
    valid = torch.tensor([[True, True, True, False]])
    loss, accuracy = descriptor_loss(d0, d1, points0, points1, valid, torch.tensor(5.0), 6.0)
    S = 5 * d0[0] @ d1[0].T
    allowed = {0: [0, 2], 1: [1, 2], 2: [0, 1, 2]}
    terms, hits = [], 0
    for i, others in allowed.items():
        rows = torch.logsumexp(S[i, others], 0)
        columns = torch.logsumexp(S[others, i], 0)
        terms.append(0.5 * (rows + columns) - S[i, i])
        hits += others[int(S[i, others].argmax())] == i
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    assert float(accuracy) == pytest.approx(hits / 3)


def test_descriptors_are_sampled_as_the_model_samples_them() -> None:
    torch.manual_seed(0)
    descriptors = torch.randn(2, 16, 12, 16)
    points = torch.rand(2, 20, 2) * torch.tensor([127.0, 95.0])
    found = sample_map(descriptors, points)
    for row in range(2):
        unit = torch.nn.functional.normalize(descriptors[row], dim=0)
        torch.testing.assert_close(found[row], sample_descriptors(points[row], unit, 8))


def test_black_pictures_have_bounded_gradients() -> None:
    network = _network()
    points = torch.rand(1, 30, 2) * 60 + 2
    _, descriptors = network(torch.zeros(2, 1, 64, 64))
    descriptors = descriptors * 1e-6
    first, second = sample_map(descriptors[:1], points), sample_map(descriptors[1:], points)
    loss, _ = descriptor_loss(first, second, points, points, torch.ones(1, 30).bool(), torch.tensor(20.0), 6.0)
    loss.backward()
    lengths = [float(p.grad.norm()) for p in network.parameters() if p.grad is not None]
    assert max(lengths) < 1e3


def test_batches_depend_on_their_place_alone_and_hold_matching_points(task: SuperPointTask) -> None:
    first, again, other = task.batch(0, 3), task.batch(0, 3), task.batch(1, 3)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.points1, again.points1)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (4, 1, 96, 128)
    assert first.valid.float().mean() > 0.8
    inside = (first.points1 >= 0) & (first.points1 < torch.tensor([128.0, 96.0]))
    assert inside.all(dim=2)[first.valid].float().mean() > 0.95
    share = ((first.cells.classes >= 0) & (first.cells.classes < 64)).float().mean()
    assert 0.02 < share < 0.5


def test_the_detector_learns_alone_at_first_and_the_light_changes_later(assets: Path) -> None:
    settings = dataclasses.replace(SETTINGS, detector_first=2, settling=10, light=PhotometricSettings())
    photos = load_photos([assets / "chelsea.png"], long_side=320)
    task = SuperPointTask(settings, photos, photos)
    assert [settings.settled(index) for index in (0, 1, 2, 7, 12, 99)] == [-1, -1, 0, 0.5, 1, 1]
    loss, _ = task.loss(task.module, task.batch(0, 0))
    loss.backward()
    assert task.module.model.descriptor_decoder.conv_descriptor_b.weight.grad is None
    loss, _ = task.loss(task.module, task.batch(0, 2))
    loss.backward()
    assert task.module.model.descriptor_decoder.conv_descriptor_b.weight.grad is not None
    same = SuperPointTask(dataclasses.replace(settings, detector_first=99), photos, photos)
    # Only the light of the settled batch differs from that of the first ones.
    assert torch.equal(task.batch(0, 2).images, same.batch(0, 2).images)
    assert not torch.equal(task.batch(0, 99).images, same.batch(0, 98).images)


def test_points_of_both_views_look_alike_before_the_light_changes(assets: Path) -> None:
    settings = SuperPointSettings(config=TINY, pairs=2, views=SETTINGS.views, light=PhotometricSettings(changed=0))
    photos = load_photos([assets / "chelsea.png"])
    batch = SuperPointTask(settings, photos, photos).batch(0, 0)
    size = batch.points0.new_tensor([128, 96])
    values = [
        torch.nn.functional.grid_sample(images, ((2 * points + 1) / size - 1)[:, None], align_corners=False)[:, 0, 0]
        for images, points in ((batch.images[:2], batch.points0), (batch.images[2:], batch.points1))
    ]
    difference = (values[0] - values[1]).abs()[batch.valid]
    assert difference.median() < 0.02
    assert difference.median() < 0.2 * (values[0] - values[1].flip(1)).abs()[batch.valid].median()


def test_a_few_steps_teach_detector_and_descriptor(task: SuperPointTask) -> None:
    network = task.module
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    history: list[dict[str, float]] = []
    for index in range(40):
        loss, parts = task.loss(network, task.batch(0, index))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        history.append({name: value.item() for name, value in parts.items()})
    early, late = (
        {name: sum(h[name] for h in rows) / len(rows) for name in rows[0]} for rows in (history[:5], history[-5:])
    )
    assert late["detector"] < 0.6 * early["detector"]
    assert late["descriptor"] < early["descriptor"] - 0.3
    assert late["accuracy"] > 1.5 * early["accuracy"]


def test_exported_detector_loads_and_scores_as_the_trained_one(task: SuperPointTask, tmp_path: Path) -> None:
    task.export(task.module, tmp_path)
    loaded = SuperPointForKeypointDetection.from_pretrained(tmp_path, dtype="float32")
    image = torch.rand(1, 96, 128)
    with torch.no_grad():
        one, other = loaded.extract(image), task.module.folded().extract(image)
    assert torch.equal(one.keypoints, other.keypoints)
    torch.testing.assert_close(one.descriptors, other.descriptors)
    scores = task.validate(task.module)
    assert set(scores) == {"precision", "recall", "precision_1px", "repeatability"}
    assert all(0 <= value <= 1 for value in scores.values())
