"""A journaled file holds the last commit, wherever in between it is cut off."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyglue.base.errors import StoreError
from keyglue.reconstruction.journal import JournaledFile, journal_of, replay

START = bytes(range(256)) * 40
WRITES = st.lists(st.tuples(st.integers(0, 12_000), st.binary(min_size=1, max_size=6000)), max_size=6)


def expected_after(content: bytes, writes: list[tuple[int, bytes]]) -> bytes:
    array = bytearray(content)
    for offset, data in writes:
        array.extend(bytes(max(0, offset + len(data) - len(array))))
        array[offset : offset + len(data)] = data
    return bytes(array)


def put(file: JournaledFile, writes: list[tuple[int, bytes]]) -> None:
    for offset, data in writes:
        file.seek(offset)
        file.write(data)


@settings(max_examples=60, deadline=None)
@given(committed=WRITES, lost=WRITES)
def test_what_was_not_committed_is_gone_and_the_rest_is_there(
    committed: list[tuple[int, bytes]], lost: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "file"
    path.write_bytes(START)
    file = JournaledFile(path, len(START))
    put(file, committed)
    file.commit()
    size = path.stat().st_size
    put(file, lost)
    target = np.zeros(20_000, dtype=np.uint8)
    file.seek(0)
    file.readinto(target)
    wanted = expected_after(expected_after(START, committed), lost)
    assert target[: len(wanted)].tobytes() == wanted
    # A killed process closes nothing: another one finds the file as it is now.
    found = path.with_name("found")
    shutil.copy(path, found)
    file.close()
    JournaledFile(found, size).close()
    assert found.read_bytes() == path.read_bytes() == expected_after(START, committed)


@pytest.mark.parametrize("moment", range(8))
def test_cut_off_anywhere_in_a_commit_either_all_or_nothing_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Copies file and journal at every write of the commit, as a killed process would leave them."""
    path = tmp_path / "file"
    path.write_bytes(START)
    file = JournaledFile(path, len(START))
    changes = [(10, b"x" * 5000), (9000, b"y" * 4000), (20, b"z")]
    put(file, changes)
    seen = tmp_path / "seen"
    seen.mkdir()
    count = 0

    def snapshot(*_: Any) -> None:
        nonlocal count
        if count == moment:
            for source in (path, journal_of(path)):
                if source.exists():
                    shutil.copy(source, seen / source.name)
        count += 1

    from keyglue.reconstruction import journal

    write_all = journal._write_all

    def watched(*arguments: Any) -> None:
        snapshot()
        write_all(*arguments)
        snapshot()

    monkeypatch.setattr(journal, "_write_all", watched)
    snapshot()
    file.commit()
    snapshot()
    file.close()
    assert count > 5
    if (seen / "file").exists():
        replay(seen / "file")
        found = (seen / "file").read_bytes()
        assert found[: len(START)] in (START, expected_after(START, changes)[: len(START)])
        assert not journal_of(seen / "file").exists()


def test_a_full_disk_leaves_the_last_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(START)
    file = JournaledFile(path, len(START))
    put(file, [(5, b"changed"), (len(START), b"appended")])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        file.commit()
    monkeypatch.undo()
    file.abandon()
    put(file, [(0, b"goes nowhere")])
    file.commit()
    file.close()
    assert path.read_bytes() == START
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(START)
    journal_of(path).write_bytes(b"keyglue journal 1\nnonsense, and more of it than a digest is long")
    with pytest.raises(StoreError, match=r"file\.journal is damaged"):
        replay(path)
    assert path.read_bytes() == START
