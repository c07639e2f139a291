"""Whole runs: the recipes, ``python -m keyglue.training`` with the core libraries only, ``keyglue train``, ``fit``."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import keyglue
from keyglue.base.errors import InputError
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.training.__main__ import main
from keyglue.training.recipes import RECIPES, find_recipe
from keyglue.training.run import RunOptions, run_recipe
from keyglue.ui.cli import app
from keyglue.ui.train import RecipeName, train

ROOT = Path(__file__).parent.parent.parent

# Runs the module with everything but the core libraries looking as if it were not installed.
BLOCKED = """
import runpy, sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        optional = {"typer", "rich", "huggingface_hub", "tensorboard", "cv2", "poselib", "transformers"}
        if name.partition(".")[0] in optional:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
runpy.run_module("keyglue.training", run_name="__main__", alter_sys=True)
"""


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_tiny_cpu_learns_to_match_from_plain_random_weights(assets: Path, tmp_path: Path) -> None:
    recipe = find_recipe("tiny_cpu")
    assert recipe.task.start == "random"
    lines: list[str] = []
    outcome = run_recipe(recipe, [assets], tmp_path, RunOptions(device="cpu"), show=lines.append)
    assert outcome.finished
    assert outcome.scores["recall"] >= 0.5
    assert outcome.scores["precision"] >= 0.7
    first = next(line for line in _lines(tmp_path) if line["step"] == 0)
    assert first["held_out_recall"] < 0.4
    text = "\n".join(lines)
    for word in ("photographs", "to beat", "loss", "pairs/s", "data", "held out: precision", "finished"):
        assert word in text
    result = keyglue.match(assets / "motorcycle_left.png", assets / "motorcycle_right.png", model=str(outcome.model))
    assert len(result) > 100


def test_the_module_trains_with_the_core_libraries_alone_and_resumes(assets: Path, tmp_path: Path) -> None:
    arguments = ["tiny_cpu", "--data", str(assets), "--out", str(tmp_path), "--pairs", "2", "--device", "cpu"]
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    for more in (["--steps", "2"], ["--steps", "3", "--resume"]):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", BLOCKED, *arguments, *more],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
    assert "resumed at step 2" in done.stdout
    assert "finished at step 3" in done.stdout
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 16_000_000 for path in files)
    assert (tmp_path / "model" / "config.json").exists()


@pytest.mark.parametrize("recipe", ["superpoint_scratch", "superpoint_further"])
def test_the_command_trains_a_detector_for_some_minutes(recipe: str, assets: Path, tmp_path: Path) -> None:
    out = tmp_path / "detector"
    arguments = [
        "train",
        recipe,
        "--data",
        str(assets / "chelsea.png"),
        "--data",
        str(assets / "coffee.png"),
    ]
    arguments += ["--out", str(out), "--minutes", "0.01", "--pairs", "1", "--device", "cpu"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "precision" in done.stdout
    detector = SuperPointForKeypointDetection.from_pretrained(out / "model")
    assert detector.config.max_keypoints == 1024
    with torch.no_grad():
        assert len(detector.extract(torch.rand(1, 96, 128))) > 0
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "holds a run already" in again.stderr


def test_fit_fine_tunes_and_returns_the_model(assets: Path, tmp_path: Path) -> None:
    model = keyglue.fit(assets / "coffee.png", tmp_path, steps=2, pairs=2, device="cpu")
    assert isinstance(model, keyglue.LightGlueForKeypointMatching)
    start = keyglue.LightGlueForKeypointMatching.from_pretrained()
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, start.state_dict()[name].float())
    }
    assert any(name.startswith("transformer_layers") for name in changed)
    assert not any(name.startswith(("keypoint_detector", "token_confidence")) for name in changed)
    # A fine-tuned model begins where its start was.
    assert _lines(tmp_path)[0]["held_out_precision"] > 0.3


def test_command_and_module_know_the_same_recipes() -> None:
    assert [recipe.value for recipe in RecipeName] == list(RECIPES)


def test_command_and_options_are_the_same() -> None:
    of_command = set(inspect.signature(train).parameters) - {"recipe", "data", "out", "size"}
    assert of_command == {field.name for field in dataclasses.fields(RunOptions)}
    assert RunOptions(learning_rate=1e-5).applied(find_recipe("finetune")).loop.learning_rate == 1e-5


def test_mistakes_end_in_one_line(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny_cpu", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["tiny_cpu", "--data", str(assets), "--out", str(tmp_path), "--minutes", "-1"]) == 1
    assert "minutes must be positive" in capsys.readouterr().err
    assert main(["tiny_cpu", "--data", str(assets), "--out", str(tmp_path), "--learning-rate", "-1"]) == 1
    assert "learning_rate and clip must be positive" in capsys.readouterr().err
    assert main(["tiny_cpu", "--data", str(assets), "--out", str(tmp_path), "--size", "base"]) == 1
    assert "no size" in capsys.readouterr().err
    with pytest.raises(InputError, match="nothing to train on"):
        run_recipe(find_recipe("tiny_cpu"), [], tmp_path)
