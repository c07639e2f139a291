"""One writer at a time, and nobody is turned away by one that is done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from keyglue.base.errors import StoreError
from keyglue.reconstruction import lock
from keyglue.reconstruction.lock import locked

fcntl = pytest.importorskip("fcntl", reason="Windows locks in another way")


def test_a_second_one_is_told_who_is_first(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for target in (tmp_path / "f.h5", folder):
        with locked(target):
            with pytest.raises(StoreError, match=rf"{target.name} is being written by process {os.getpid()}\. Wait"):
                locked(target).__enter__()
            with locked(tmp_path / "other.h5"):
                pass
        with locked(target):
            pass
    assert list(tmp_path.rglob("*")) == [folder]


@pytest.mark.parametrize("beaten", [False, True])
def test_the_first_one_ends_between_opening_and_locking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beaten: bool
) -> None:
    """Once another one, which opened the removed file too, has locked that before."""
    target = tmp_path / "f.h5"
    first = locked(target)
    first.__enter__()
    late = (tmp_path / "f.h5.lock").open()
    try_lock, tries = lock._try_lock, 0

    def interrupted(stream: TextIO) -> bool:
        nonlocal tries
        tries += 1
        if tries == 1:
            first.__exit__(None, None, None)
            if beaten:
                fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return try_lock(stream)

    monkeypatch.setattr(lock, "_try_lock", interrupted)
    with late, locked(target):
        assert tries == 2
        with pytest.raises(StoreError, match="is being written"):
            locked(target).__enter__()
    assert list(tmp_path.iterdir()) == []


# Takes a lock many times, and ends with an error if another process has it at the same time.
TAKE_TURNS = """
import sys
from pathlib import Path
from keyglue.base.errors import StoreError
from keyglue.reconstruction.lock import locked
target, taken = Path(sys.argv[1]), 0
while taken < 200:
    try:
        with locked(target):
            taken += 1
            target.with_suffix(".in").open("x").close()  # an error if the other one is in, too
            target.with_suffix(".in").unlink()
    except StoreError:
        pass
"""


def test_two_that_take_turns_are_never_in_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKE_TURNS, str(tmp_path / "f.h5")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert list(tmp_path.iterdir()) == []
