"""Training the matcher: where it starts, how scales fold, what batches hold, and what is exported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from keyglue.base.errors import ConfigError, InputError
from keyglue.base.types import Features, Matches
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.lightglue.attention import Attention
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.lightglue.lightglue import LightGlueMatcher
from keyglue.matching.lightglue.loss import check_labels, matching_losses
from keyglue.matching.nearest_neighbor import match_nearest
from keyglue.training.export import write_joint_model
from keyglue.training.homographies import ViewSettings
from keyglue.training.initialise import close_projection, start_as_nearest_neighbours
from keyglue.training.lightglue import MatcherSettings, MatcherTask
from keyglue.training.photos import Photos, load_photos
from keyglue.training.precision import autocast
from keyglue.training.recipes import find_recipe, matcher_config
from keyglue.training.validation import score_pairs

VIEWS = ViewSettings(size=(96, 128), difficulty=0.3, max_angle=15, overhang=0)
SETTINGS = MatcherSettings(
    config=LightGlueConfig(descriptor_dim=64, num_hidden_layers=2, num_attention_heads=2),
    pairs=4,
    keypoints=(48, 64),
    views=VIEWS,
    scene_views=VIEWS,
    views_per_group=3,
    unrelated=0.25,
)


@pytest.fixture(scope="module")
def detector() -> SuperPointForKeypointDetection:
    return SuperPointForKeypointDetection.from_pretrained()


@pytest.fixture(scope="module")
def photos(assets: Path) -> Photos:
    return load_photos([assets / name for name in ("chelsea.png", "coffee.png", "astronaut.png")], long_side=320)


@pytest.fixture(scope="module")
def task(detector: SuperPointForKeypointDetection, photos: Photos) -> MatcherTask:
    return MatcherTask(SETTINGS, detector, *photos.split())


def attention_of(task: MatcherTask) -> Attention:
    return task.module.transformer_layers[0].cross_attention


def _started(detector: SuperPointForKeypointDetection, sample: torch.Tensor, width: int) -> LightGlueMatcher:
    config = LightGlueConfig(
        descriptor_dim=width, num_hidden_layers=3, keypoint_detector_config=detector.config, filter_threshold=0.0
    )
    matcher = LightGlueMatcher(config).eval()
    start_as_nearest_neighbours(matcher, sample, torch.Generator().manual_seed(0))
    close_projection(matcher)
    return matcher


@pytest.mark.parametrize(("width", "share"), [(256, 0.97), (128, 0.93)])
def test_step_zero_equals_mutual_nearest_neighbours(
    detector: SuperPointForKeypointDetection, described: dict[str, Features], width: int, share: float
) -> None:
    first, second = described["motorcycle_left"], described["motorcycle_right"]
    sample = torch.cat([features.descriptors for features in described.values()])
    found = _started(detector, sample, width).match(first, second)
    nearest = match_nearest(first.descriptors, second.descriptors)
    assert len(nearest) > 100
    both = (found.matches0 == nearest.matches0) & (nearest.matches0 >= 0)
    assert both.sum() >= share * len(nearest)
    assert len(found) <= 1.1 * len(nearest)
    assert found.stop_layer == 3  # untrained confidence stops nothing
    assert (found.prune0 == 3).all()


def test_step_zero_is_the_double_softmax_of_the_similarity(
    detector: SuperPointForKeypointDetection, described: dict[str, Features]
) -> None:
    first, second = described["motorcycle_left"], described["motorcycle_right"]
    matcher = _started(detector, first.descriptors, 256)
    S = 20 * first.descriptors @ second.descriptors.T
    expected = S.log_softmax(1) + S.log_softmax(0) + 2 * torch.nn.functional.logsigmoid(torch.tensor(3.0))
    with torch.no_grad():
        for log_assignment in matcher.log_assignments(first, second):
            torch.testing.assert_close(log_assignment[:-1, :-1], expected, rtol=0, atol=2e-4)


def test_queries_and_keys_of_cross_attention_stay_one_map(
    detector: SuperPointForKeypointDetection, photos: Photos, tmp_path: Path
) -> None:
    task = MatcherTask(SETTINGS, detector, *photos.split())
    loss, _ = task.loss(task.module, task.batch(0, 0))
    loss.backward()
    with torch.no_grad():
        for parameter in task.module.parameters():
            parameter.sub_(0.1 * torch.randn_like(parameter))
    task.export(task.module, tmp_path)
    trained = LightGlueForKeypointMatching.from_pretrained(tmp_path)
    for layer in trained.transformer_layers:
        attention = layer.cross_attention
        assert attention.k_proj is not attention.q_proj
        assert torch.equal(attention.k_proj.weight, attention.q_proj.weight)
        assert torch.equal(attention.k_proj.bias, attention.q_proj.bias)
        assert not torch.equal(layer.self_attention.k_proj.weight, layer.self_attention.q_proj.weight)
    # Going on from it keeps them one; weights that were trained apart stay apart.
    further = MatcherTask(SETTINGS, detector, *photos.split(), start=trained)
    assert attention_of(further).k_proj is attention_of(further).q_proj
    with torch.no_grad():
        apart = LightGlueForKeypointMatching.from_pretrained(tmp_path)
        apart.transformer_layers[0].cross_attention.k_proj.bias += 1
    kept = MatcherTask(SETTINGS, detector, *photos.split(), start=apart)
    assert attention_of(kept).k_proj is not attention_of(kept).q_proj


def test_batches_depend_on_their_place_alone(detector: SuperPointForKeypointDetection, photos: Photos) -> None:
    """A run that begins at batch 9 sees what a run that came there from 0 sees."""
    tasks = [MatcherTask(SETTINGS, detector, *photos.split()) for _ in range(2)]
    for index in range(9):
        tasks[0].batch(0, index)
    first, second = (task.batch(0, 9) for task in tasks)
    for one, other in zip(first.pairs, second.pairs, strict=True):
        assert torch.equal(one[0].keypoints, other[0].keypoints)
        assert torch.equal(one[1].descriptors, other[1].descriptors)
    for one, other in zip(first.labels, second.labels, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_batches_hold_consistent_labels_unrelated_pairs_and_fresh_views(task: MatcherTask) -> None:
    unrelated = matched = 0
    seen: set[float] = set()
    for index in range(8):
        batch = task.batch(0, index)
        assert len(batch.pairs) == 4
        for (first, second), labels in zip(batch.pairs, batch.labels, strict=True):
            check_labels(*labels)
            assert 48 <= len(first) == len(second) <= 64
            unrelated += bool((torch.cat(labels) == -1).all())
            matched += int((labels[0] >= 0).sum())
            seen.add(float(first.descriptors.sum()))
    assert 2 <= unrelated <= 16
    assert matched > 200
    assert len(seen) > 12


def test_a_random_start_is_worse_than_the_nearest_one_and_both_learn(
    detector: SuperPointForKeypointDetection, photos: Photos
) -> None:
    losses: dict[str, list[float]] = {}
    for start in ("nearest", "random"):
        settings = dataclasses.replace(SETTINGS, start=start, unrelated=0.0)
        task = MatcherTask(settings, detector, *photos.split())
        optimizer = torch.optim.AdamW((p for p in task.module.parameters() if p.requires_grad), lr=1e-3)
        losses[start] = []
        for index in range(30):
            loss, _ = task.loss(task.module, task.batch(0, index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[start].append(loss.item())
    for values in losses.values():
        assert sum(values[-5:]) < 0.8 * sum(values[:5])
    assert losses["nearest"][0] < losses["random"][0]


def test_all_streams_have_as_many_keypoints_in_a_step(task: MatcherTask) -> None:
    counts = []
    for index in range(8):
        sizes = {max(len(f) for pair in task.batch(stream, index).pairs for f in pair) for stream in (0, 1)}
        assert len(sizes) == 1, "processes that wait for each other have as much to do"
        counts.append(sizes.pop())
    assert 48 <= min(counts) < max(counts) <= 64


def test_confidence_stage_trains_the_heads_alone(detector: SuperPointForKeypointDetection, photos: Photos) -> None:
    task = MatcherTask(dataclasses.replace(SETTINGS, stage="confidence"), detector, *photos.split())
    trained = {name for name, p in task.module.named_parameters() if p.requires_grad}
    assert trained == {"token_confidence.0.token.weight", "token_confidence.0.token.bias"}
    loss, parts = task.loss(task.module, task.batch(0, 0))
    loss.backward()
    assert "assignment" in parts
    assert task.module.token_confidence[0].token.weight.grad is not None
    deeper = dataclasses.replace(SETTINGS.config, num_hidden_layers=4)
    late = dataclasses.replace(SETTINGS, stage="confidence", config=deeper, first_stop=3)
    heads = MatcherTask(late, detector, *photos.split()).module.token_confidence
    assert [head.token.weight.requires_grad for head in heads] == [False, False, True]
    assert all(head(torch.randn(100, 64)).max() < 0.01 for head in heads[:2]), "no pair stops after these layers"
    with pytest.raises(ConfigError, match="from layer 4 on"):
        MatcherTask(dataclasses.replace(late, first_stop=4), detector, *photos.split())
    single = dataclasses.replace(SETTINGS.config, num_hidden_layers=1)
    with pytest.raises(ConfigError, match="confidence heads"):
        MatcherTask(dataclasses.replace(SETTINGS, stage="confidence", config=single), detector, *photos.split())


def test_validation_of_the_start_is_that_of_the_double_softmax(
    detector: SuperPointForKeypointDetection, photos: Photos
) -> None:
    config = SETTINGS.config.replace(filter_threshold=0.0, descriptor_dim=256, num_attention_heads=4)
    task = MatcherTask(dataclasses.replace(SETTINGS, config=config), detector, *photos.split())
    pairs, features = task.held_out
    described = iter(features)

    def double_softmax(first: Features, second: Features) -> Matches:
        S = 20 * first.descriptors @ second.descriptors.T
        P = S.log_softmax(1) + S.log_softmax(0)
        best = [P.argmax(1), P.argmax(0)]
        mutual = [best[1 - i][best[i]] == torch.arange(len(best[i])) for i in (0, 1)]
        matches = [torch.where(mutual[i], best[i], -1) for i in (0, 1)]
        scores, layers = [each.float() for each in mutual], [torch.ones_like(each) for each in matches]
        return Matches(
            matches0=matches[0],
            matches1=matches[1],
            matching_scores0=scores[0],
            matching_scores1=scores[1],
            prune0=layers[0],
            prune1=layers[1],
        )

    found = task.validate(task.module)
    assert found == pytest.approx(score_pairs(pairs, lambda _: list(next(described)), double_softmax), abs=0.01)
    # Close to nearest neighbours, whose descriptors alone find part of the matches.
    baseline = task.baseline()
    assert 0.2 < baseline["precision"] < 1
    assert found == pytest.approx(baseline, abs=0.1)


@pytest.mark.parametrize("width", [64, 256])
def test_exported_folder_loads_here_and_in_transformers(
    task: MatcherTask,
    detector: SuperPointForKeypointDetection,
    photos: Photos,
    tmp_path: Path,
    photographs: dict[str, torch.Tensor],
    width: int,
) -> None:
    transformers = pytest.importorskip("transformers")
    if width != 64:
        config = SETTINGS.config.replace(descriptor_dim=width, num_attention_heads=4)
        task = MatcherTask(dataclasses.replace(SETTINGS, config=config), detector, *photos.split())
    task.export(task.module, tmp_path)
    loaded = LightGlueForKeypointMatching.from_pretrained(tmp_path, hf_compatible=True)
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
    pixel_values = torch.stack([photographs["motorcycle_left"], photographs["motorcycle_right"]])
    pixel_values = pixel_values.expand(-1, 3, -1, -1)[None]
    with torch.no_grad():
        ours, other = loaded(pixel_values), theirs(pixel_values)
    agree = (ours.matches == other.matches).float().mean()
    assert (ours.matches >= 0).sum() > 20
    assert agree > 0.99
    # The exported matcher is the trained one.
    plain = task.plain(task.module)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


def test_large_models_are_written_in_files_under_16_mb(
    detector: SuperPointForKeypointDetection, tmp_path: Path
) -> None:
    matcher = LightGlueMatcher(matcher_config("base").replace(keypoint_detector_config=detector.config))
    write_joint_model(tmp_path, detector, matcher)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert max(sizes.values()) < 16_000_000
    assert sum(name.endswith(".safetensors") for name in sizes) == 4
    assert len(sizes) <= 8
    loaded = LightGlueForKeypointMatching.from_pretrained(tmp_path)
    for name, value in matcher.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    # A small model written over it leaves nothing of it behind.
    small = LightGlueMatcher(matcher_config("small").replace(keypoint_detector_config=detector.config))
    write_joint_model(tmp_path, detector, small)
    assert not list(tmp_path.glob("model-*"))
    assert LightGlueForKeypointMatching.from_pretrained(tmp_path).config.descriptor_dim == 128
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"longest_edge": 1024}


def test_recipes_are_found_by_name_and_size() -> None:
    assert find_recipe("lightglue_homography", "base").task.config.num_hidden_layers == 9
    assert find_recipe("lightglue_homography").task.config.descriptor_dim == 128
    with pytest.raises(InputError, match="there are superpoint_scratch"):
        find_recipe("no_such")
    with pytest.raises(InputError, match="no size"):
        find_recipe("tiny_cpu", "base")
    with pytest.raises(InputError, match="size"):
        matcher_config("huge")  # type: ignore[arg-type]


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"keypoints": (10, 5)}, {"pairs": 0}, {"views_per_group": 1}, {"scene_views": ViewSettings()}):
        with pytest.raises(ConfigError):
            dataclasses.replace(SETTINGS, **wrong)


def test_loss_of_a_batch_is_the_matching_loss(task: MatcherTask) -> None:
    batch = task.batch(0, 0)
    loss, _ = task.loss(task.module, batch)
    with autocast(task.module.device):
        expected = matching_losses(task.module, batch.pairs, batch.labels, confidence=False).assignment
    torch.testing.assert_close(loss, expected)
