"""The command line around its verbs: help, versions, errors, exit codes, how long help takes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import keyglue
from keyglue.base.bundled import MODELS
from keyglue.base.errors import CheckpointError, InputError, LicenceWarning
from keyglue.ui.cli import app

COMMAND: Any = typer.main.get_command(app)
VERBS = tuple(COMMAND.commands)
PROGRAM = [sys.executable, "-m", "keyglue"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments, prog_name="keyglue")


def test_help_lists_every_verb() -> None:
    result = run("--help")
    assert result.exit_code == 0
    listed = re.findall(r"^  (\w+)  ", result.stdout, flags=re.MULTILINE)
    assert listed == list(VERBS)
    assert {"match", "extract", "convert", "models", "version"} <= set(listed)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_explains_every_option(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: keyglue {verb} ")
    parameters = COMMAND.commands[verb].params
    assert [parameter.name for parameter in parameters if not parameter.help] == []
    assert "--help" in result.stdout


def test_help_imports_neither_torch_nor_rich_and_is_quick() -> None:
    code = (
        "import sys\n"
        "from keyglue.ui.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

    # Time of the processor, which other work on the machine does not stretch.
    before = os.times()
    for _ in range(5):
        subprocess.run([*PROGRAM, "--help"], capture_output=True, check=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used / 5 < 0.3


def test_no_arguments_shows_help_and_is_a_usage_error() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.output


def test_version() -> None:
    assert run("--version").stdout == f"keyglue {keyglue.__version__}\n"
    assert keyglue.__version__ in run("version").stdout
    assert re.search(r"torch +\d+\.\d+", run("version").stdout)


def test_models_lists_names_whole_with_their_licences_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "keyglue", "models"], capture_output=True, text=True, check=True
    )
    for entry in MODELS:
        assert entry.name in done.stdout
    assert "Apache-2.0" in done.stdout
    assert "bundled" in done.stdout
    assert "| torch" not in done.stderr


def test_an_error_of_keyglue_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    result = run("match", "--pairs", str(tmp_path / "none.txt"), "-o", str(tmp_path))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert "none.txt" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_debug_shows_the_error_itself(tmp_path: Path) -> None:
    result = run("--debug", "match", "--pairs", str(tmp_path / "none.txt"), "-o", str(tmp_path))
    assert isinstance(result.exception, InputError)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nonsense"], "nonsense"),
        (["match"], "two images"),
        (["match", "a.png"], "two images"),
        (["match", "a.png", "b.png", "--rotate", "left"], "--rotate"),
        (["match", "a.png", "b.png", "--max-keypoints", "0"], "--max-keypoints"),
        (["match", "a.png", "b.png", "--filter-threshold", "2"], "--filter-threshold"),
        (["match", "a.png", "b.png", "--write", "png"], "--pairs"),
        (["match", "a.png", "b.png", "--overwrite"], "--pairs"),
        (["match", "a.png", "b.png", "-o", "matches.xyz"], ".png"),
        (["match", "a.png", "b.png", "-o", "no/such/folder/matches.png"], "no folder"),
        (["match", "a.png", "b.png", "--csv", "matches.txt"], ".csv"),
        (["match", "a.png", "b.png", "--json", "."], "is a folder"),
        (["match", "a.png", "b.png", "--pairs", "pairs.txt", "-o", "out"], "IMAGE0"),
        (["match", "--pairs", "pairs.txt"], "folder"),
        (["extract", "a.png"], "output"),
        (["convert", "a.pth", "-o", "out", "--to", "onnx"], "onnx"),
    ],
)
def test_usage_errors_are_exit_code_2(arguments: list[str], reason: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert reason in result.stderr


def test_an_unexpected_system_error_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", "secret.png")

    monkeypatch.setattr("keyglue.ui.match.read_pairs", fail)
    result = run("match", "--pairs", "pairs.txt", "-o", "out")
    assert result.exit_code == 1
    assert result.stderr == "Error: [Errno 13] Permission denied: 'secret.png'\n"


def test_warnings_are_one_line_and_errors_after_them_stay_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*arguments: Any, **options: Any) -> None:
        warnings.simplefilter("always")
        warnings.warn("these weights are non-commercial", LicenceWarning, stacklevel=1)
        raise CheckpointError("the file\nis damaged.")

    monkeypatch.setattr("keyglue.ui.match.read_pairs", warn)
    result = run("match", "--pairs", "pairs.txt", "-o", "out")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == ["Warning: these weights are non-commercial", "Error: the file is damaged."]


@pytest.mark.skipif(os.name == "nt", reason="signals of a terminal")
def test_ctrl_c_ends_with_130_and_no_traceback(tmp_path: Path) -> None:
    fifo = tmp_path / "pairs.txt"
    os.mkfifo(fifo)
    # Tests that run in the background have been told to ignore the signal, and pass that on.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; from keyglue.ui.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "match", "--pairs", str(fifo), "-o", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
    )
    # Opening the other end waits until the command reads the list; it then blocks, as nothing is written.
    with fifo.open("w", encoding="utf-8"):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "Error: interrupted.\n"
