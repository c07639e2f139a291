"""The commands of docs/training.md, each run at tiny size."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from keyglue.scoring.held_out import is_held_out
from keyglue.ui.cli import app

PAGE = Path(__file__).parent.parent.parent / "docs" / "training.md"
SMALL = ["--steps", "1", "--pairs", "2", "--limit", "2", "--device", "cpu"]


def _commands() -> list[list[str]]:
    blocks = re.findall(r"^```bash norun\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [words[1:] for words in lines if words[0] == "keyglue"]


def _shortened(command: list[str]) -> list[str]:
    """Take away how long to train and add how little."""
    if command[0] == "calibrate":
        return [*command, "--pairs", "8"]
    if command[0] != "train":
        return command
    if "--minutes" in command:
        place = command.index("--minutes")
        command = command[:place] + command[place + 2 :]
    return [*command, *SMALL]


def test_the_commands_of_the_guide_run_one_after_the_other(
    tmp_path: Path, assets: Path, depth_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photographs").mkdir()
    pictures = {"a.jpg": "motorcycle_left.png", "b.jpg": "motorcycle_right.png"}
    # Names that are held out of training.
    names = (f"held{number}.png" for number in range(1000))
    pictures |= dict(zip(filter(is_held_out, names), ("coffee.png", "chelsea.png"), strict=False))
    for name, source in pictures.items():
        (tmp_path / "photographs" / name).symlink_to(assets / source)
    Path("scenes").mkdir()
    (tmp_path / "scenes" / "office").symlink_to(depth_folder)
    commands = _commands()
    assert len(commands) == 9
    for command in commands:
        done = CliRunner().invoke(app, _shortened(command))
        assert done.exit_code == 0, f"{command}\n{done.output}"
    assert (tmp_path / "released" / "model" / "config.json").exists()
