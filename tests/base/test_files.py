"""Files appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keyglue.base.errors import InputError
from keyglue.base.files import atomic_path, atomic_write


def write_and_fail(target: Path, error: BaseException) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise error


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "interrupt"])
def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, there_before: bool, error: BaseException) -> None:
    target = tmp_path / "file.txt"
    if there_before:
        target.write_text("old")
    with pytest.raises(type(error)):
        write_and_fail(target, error)
    assert os.listdir(tmp_path) == (["file.txt"] if there_before else [])
    assert not there_before or target.read_text() == "old"


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.suffix == ".txt"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_text_and_bytes_and_the_usual_permissions(tmp_path: Path) -> None:
    atomic_write(tmp_path / "text", "Größe\n")
    atomic_write(tmp_path / "bytes", b"\x00\xff")
    (tmp_path / "plain").touch()
    assert (tmp_path / "text").read_bytes() == "Größe\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert (tmp_path / "text").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_impossible_targets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        atomic_write(tmp_path / "nowhere" / "file", "x")
    with pytest.raises(InputError, match="is a folder"):
        atomic_write(tmp_path, "x")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="does not exist"):
        atomic_write(tmp_path / "file" / "below", "x")
    assert os.listdir(tmp_path) == ["file"]
