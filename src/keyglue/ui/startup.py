"""A quick start and end of a command: libraries of a hundred thousand objects are not searched for garbage."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def imports() -> Generator[None, None, None]:
    """Collect no garbage while libraries are imported, and leave what they made alone ever after.

    Importing torch makes so many objects that looking through them takes a tenth of the import.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


@contextmanager
def quick_exit() -> Generator[None, None, None]:
    """End a program without a last search for garbage, which takes longer than many a command."""
    try:
        yield
    finally:
        gc.freeze()
