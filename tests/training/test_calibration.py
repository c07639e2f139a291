"""The probability that two images show the same thing: its arithmetic, its fit, and its way into a result."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from keyglue.base.errors import ConfigError, InputError
from keyglue.base.types import Matches
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.probability import evidence, match_probability
from keyglue.pipelines.matcher import Matcher
from keyglue.training.calibration import calibrate, fit_logistic, reliability_table
from keyglue.ui.cli import app

BUNDLED = Path(__file__).parent.parent.parent / "src" / "keyglue" / "weights" / "keyglue-small"
PICTURES = ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "rocket.jpg")


def _found(scores: list[float], others: int) -> Matches:
    matches0 = torch.arange(len(scores))
    matches1 = torch.full((others,), -1)
    matches1[: len(scores)] = matches0
    ones = torch.ones(others, dtype=torch.long)
    return Matches(
        matches0=matches0,
        matches1=matches1,
        matching_scores0=torch.tensor(scores),
        matching_scores1=torch.zeros(others),
        prune0=ones[: len(scores)],
        prune1=ones,
    )


def test_the_probability_is_the_logistic_function_of_the_evidence() -> None:
    found = _found([0.9, 0.6, 0.0, 0.0], 8)
    assert evidence(found) == pytest.approx((math.log(2.5 / 4), math.log(4)))
    expected = 1 / (1 + math.exp(-(-1 + 2 * math.log(2.5 / 4) + 3 * math.log(4))))
    assert match_probability(found, (-1.0, 2.0, 3.0)) == pytest.approx(expected)
    assert match_probability(found, None) is None
    assert match_probability(_found([], 0), (-2.0, 1.0, 1.0)) == pytest.approx(1 / (1 + math.exp(2 - math.log(0.5))))


def test_the_fit_finds_the_weights_that_pairs_were_drawn_with() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    logits = -0.5 + values @ torch.tensor([2.0, -1.0], dtype=torch.float64)
    truth = (torch.rand(len(values), generator=generator, dtype=torch.float64) < torch.sigmoid(logits)).double()
    torch.testing.assert_close(
        fit_logistic(values, truth), torch.tensor([-0.5, 2.0, -1.0], dtype=torch.float64), rtol=0, atol=0.08
    )
    # Kinds that are far apart have no best weights; the fit ends all the same.
    apart = torch.tensor([[-5.0, 0], [-4, 0], [4, 0], [5, 0]], dtype=torch.float64)
    weights = fit_logistic(apart, torch.tensor([0.0, 0, 1, 1], dtype=torch.float64))
    assert torch.isfinite(weights).all()
    assert weights[1] > 0.5


def test_reliability_counts_pairs_by_tenths() -> None:
    table = reliability_table(torch.tensor([0.05, 0.08, 0.95, 1.0]), torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert table == [(2, pytest.approx(0.065), 0.5), (2, pytest.approx(0.975), 1.0)]


def test_a_calibrated_folder_gives_probabilities(assets: Path, tmp_path: Path) -> None:
    folder, photos = tmp_path / "model", tmp_path / "photos"
    shutil.copytree(BUNDLED, folder)
    photos.mkdir()
    # Names that the rule holds out of training.
    for number, name in enumerate(PICTURES):
        (photos / f"{_held_out_stem(number)}{Path(name).suffix}").symlink_to(assets / name)
    (photos / f"trained{Path(PICTURES[0]).suffix}").symlink_to(assets / PICTURES[0])
    done = CliRunner().invoke(app, ["calibrate", str(folder), "--data", str(photos), "--pairs", "16"])
    assert done.exit_code == 0, done.output
    assert "Brier score" in done.output
    weights = LightGlueConfig.from_pretrained(folder).match_probability
    assert weights is not None
    assert len(weights) == 3
    matcher = Matcher.from_pretrained(folder, max_keypoints=300, resize=320)
    related = matcher.match(assets / "motorcycle_left.png", assets / "motorcycle_right.png").match_probability
    unrelated = matcher.match(assets / "motorcycle_left.png", assets / "chelsea.png").match_probability
    assert related is not None
    assert unrelated is not None
    assert 0 <= unrelated < related <= 1  # of pairs that 16 others tell apart without fail it may be sure


def _held_out_stem(number: int) -> str:
    from keyglue.scoring.held_out import is_held_out

    suffix = Path(PICTURES[number]).suffix
    return next(f"p{number}_{trial}" for trial in range(1000) if is_held_out(f"p{number}_{trial}{suffix}"))


def test_bad_calibrations_are_refused(assets: Path, small: LightGlueForKeypointMatching) -> None:
    for wrong in ((1.0, 2.0), (1.0, 2.0, math.nan), "yes"):
        with pytest.raises(ConfigError, match="match_probability"):
            LightGlueConfig(match_probability=wrong)
    with pytest.raises(InputError, match="at least 8 pairs"):
        calibrate(small, [assets], pairs=2)
    with pytest.raises(InputError, match="two photographs"):
        calibrate(small, [assets / "chelsea.png"], pairs=8)
