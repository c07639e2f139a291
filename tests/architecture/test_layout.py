"""The shape of the code: the order of the folders, the size of the files, the public names."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import keyglue

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MODEL_FOLDERS = ("base", "images", "keypoints", "matching")
MODEL_LIBRARIES = {"torch", "numpy", "PIL", "safetensors", "typing_extensions", "keyglue"}


def test_folders_import_only_from_folders_above_them() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("folder", MODEL_FOLDERS)
def test_model_layers_import_the_core_libraries_only(folder: str) -> None:
    """Others may be imported inside a function."""
    allowed = MODEL_LIBRARIES | set(sys.stdlib_module_names)
    files = list((ROOT / "src" / "keyglue" / folder).rglob("*.py"))
    assert len(files) > 1
    assert {(path.name, name) for path in files for name in _imported(path) - allowed} == set()


def _imported(path: Path) -> set[str]:
    """Return the libraries that a module imports when it is imported itself."""
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_no_file_is_longer_than_400_lines() -> None:
    files = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lengths) > 40
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_input_is_never_checked_with_assert() -> None:
    with_assert = [
        path.relative_to(ROOT)
        for path in SOURCES
        if any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    ]
    assert with_assert == []


@pytest.mark.parametrize("name", keyglue.__all__)
def test_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(keyglue, name)
    assert name in dir(keyglue)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert inspect.getdoc(value), f"{name} has no docstring"
        assert value.__module__.startswith("keyglue."), value.__module__
        assert f"`{name}`" in (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), f"docs/api.md leaves {name} out"


def test_public_methods_are_documented() -> None:
    undocumented = []
    for name in keyglue.__all__:
        value = getattr(keyglue, name)
        if not inspect.isclass(value):
            continue
        for method, member in vars(value).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if isinstance(function, property):
                function = function.fget
            if (
                not method.startswith("_")
                and inspect.isroutine(function)
                and not inspect.getdoc(getattr(value, method))
            ):
                undocumented.append(f"{name}.{method}")
    assert undocumented == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        keyglue.no_such_name  # noqa: B018
