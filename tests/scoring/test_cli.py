"""``keyglue score`` with the bundled model, small."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from keyglue.scoring.run import SETS
from keyglue.ui.cli import app
from keyglue.ui.score import Set, _parts

QUICK = ("--limit", "1", "--resize", "256", "--max-keypoints", "128", "--device", "cpu")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="keyglue")


def test_every_set_has_a_name_on_the_command_line() -> None:
    assert {name.value for name in Set} == set(SETS)


def test_tables_and_files(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("--json", tmp_path / "scores.json", "--markdown", tmp_path / "scores.md")
    arguments = ("score", "warps", "--data", assets, *QUICK, "--baselines", *files)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/keyglue", *map(str, arguments)])
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert saved["dataset"] == "warps"
    assert saved["settings"]["max_keypoints"] == 128
    assert saved["environment"]["command"] == shlex.join(["keyglue", *map(str, arguments)])
    assert len(saved["pairs"]) == 1
    summary = next(m["summary"] for m in saved["methods"] if m["name"] == "SIFT, ratio 0.85")
    assert f"{100 * summary['precision@3px']:.1f}" in result.stdout
    assert "1 of 9 pairs only" in result.stderr
    assert (tmp_path / "scores.md").read_text().startswith("# Scores on warps")
    for name in ("keyglue-small", "ORB, ratio 0.8", "repeatability"):
        assert name in result.stdout


def test_files_that_could_not_be_written_are_refused_before_any_work(assets: Path, tmp_path: Path) -> None:
    for option, file in (("--json", "scores.txt"), ("--markdown", "scores.json"), ("--json", "no/scores.json")):
        result = run("score", "warps", "--data", assets, *QUICK, option, tmp_path / file)
        assert result.exit_code == 2
        assert option in result.stderr


def test_a_folder_of_another_layout_is_one_line(assets: Path) -> None:
    result = run("score", "hpatches", "--data", assets, *QUICK)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("width", [20, 60, 1000])
def test_columns_are_split_so_that_each_part_fits(width: int) -> None:
    widths = [10, 8, 8, 30, 5, 5]
    parts = _parts(widths, width)
    assert [column for part in parts for column in part] == [1, 2, 3, 4, 5]
    assert all(len(part) == 1 or sum(widths[c] + 3 for c in (0, *part)) <= width for part in parts)
