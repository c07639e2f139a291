"""Every example of README.md and docs/ runs as it stands there."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from keyglue.ui.cli import app

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


_FENCE = re.compile(r"^```(?P<language>\w*)(?P<words>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class _Block:
    """One fenced block.

    Attributes:
        language: First word after the fence.
        run: Whether the page does not mark it ``norun``.
        code: The text.
        line: Line of the page that the fence is on.
        output: Text of a ``text`` block right below, which shows what the block prints; None if there is none.
    """

    language: str
    run: bool
    code: str
    line: int
    output: str | None


def _blocks(page: Path) -> list[_Block]:
    """Return the code blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    fences = list(_FENCE.finditer(text))
    found: list[_Block] = []
    for fence, following in zip_longest(fences, fences[1:]):
        if fence["language"] in ("text", ""):
            continue
        shown = (
            following is not None
            and following["language"] == "text"
            and not text[fence.end() : following.start()].strip()
        )
        output = following["code"] if following is not None and shown else None
        line = text.count("\n", 0, fence.start()) + 1
        found.append(_Block(fence["language"], "norun" not in fence["words"], fence["code"], line, output))
    return found


def _keyglue_commands(code: str) -> list[list[str]]:
    """Return the arguments of each ``keyglue`` command of a shell block; other commands are left alone."""
    joined = code.replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["keyglue"]]


def _assert_same_output(printed: str, shown: str, tolerance: float = 0.1) -> None:
    """Fail unless two texts have the same words and, within a tolerance, the same numbers; milliseconds may differ."""
    printed_lines, shown_lines = ([line.split() for line in text.strip().splitlines()] for text in (printed, shown))
    assert len(printed_lines) == len(shown_lines), f"printed:\n{printed}\nshown:\n{shown}"
    for left, right in zip(printed_lines, shown_lines, strict=True):
        left_line, right_line = " ".join(left), " ".join(right)
        assert _NUMBER.sub("#", left_line) == _NUMBER.sub("#", right_line)
        if re.search(r"\bms\b", left_line):
            continue
        for one, other in zip(_NUMBER.findall(left_line), _NUMBER.findall(right_line), strict=True):
            allowed = tolerance * max(abs(float(one)), abs(float(other)), 1)
            assert abs(float(one) - float(other)) <= allowed, f"printed {left_line!r}, the page shows {right_line!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_a_page_run(page: Path, tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "assets").symlink_to(assets)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in _blocks(page):
        place = f"{page.name}, line {block.line}"
        if block.language == "python":
            program = compile(block.code, place, "exec")
            printed = _run_python(program, namespace) if block.run else ""
        else:
            printed = _run_shell(block.code, place) if block.run else ""
        if block.run and block.output is not None:
            _assert_same_output(printed, block.output)


def _run_python(program: Any, namespace: dict[str, Any]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program, namespace)
    return printed.getvalue()


def _run_shell(code: str, place: str) -> str:
    printed = ""
    for arguments in _keyglue_commands(code):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{place}: keyglue {' '.join(arguments)}\n{result.output}"
        printed += result.stdout
    return printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index
