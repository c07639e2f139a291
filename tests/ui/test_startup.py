"""Starting and ending a command quickly: garbage collection pauses for imports and goes on afterwards."""

from __future__ import annotations

import gc

import pytest

from keyglue.ui.startup import imports, quick_exit


@pytest.fixture(autouse=True)
def as_before():
    yield
    gc.unfreeze()
    gc.enable()


def test_imports_pause_the_collector_and_leave_what_they_made_alone():
    before = gc.get_freeze_count()
    with imports():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)


def test_a_collector_that_was_off_stays_off_also_after_an_error():
    gc.disable()
    with pytest.raises(ImportError), imports():
        raise ImportError
    assert not gc.isenabled()


def test_the_end_of_a_program_has_nothing_to_search():
    kept = [[] for _ in range(1000)]
    with pytest.raises(SystemExit), quick_exit():
        raise SystemExit(0)
    assert gc.get_freeze_count() >= len(kept)
