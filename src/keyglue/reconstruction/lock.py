"""One writer at a time: a lock file beside what is written, which a killed process does not leave locked."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from keyglue.base.errors import StoreError


@contextmanager
def locked(target: Path) -> Generator[None]:
    """Hold the right to write a file or folder.

    The system releases the lock when a process ends, however it ends; a lock file that is left over is taken over.

    Args:
        target: File or folder, there already or not. The lock file is beside a file, inside a folder.

    Raises:
        StoreError: Another process holds the right; the message names it.
    """
    path = target / ".lock" if target.is_dir() else target.with_name(f"{target.name}.lock")
    with _held(path, target) as stream:
        stream.seek(0)
        stream.truncate()
        stream.write(f"process {os.getpid()}")
        stream.flush()
        try:
            yield
        finally:
            # Removed while still held, so that nobody finds a file of which the lock is about to go. Windows removes no
            # open file; there it stays, and the next one takes it over.
            with suppress(OSError):
                path.unlink()


def _held(path: Path, target: Path) -> TextIO:
    """Return a lock file, open and locked.

    Raises:
        StoreError: Another process holds it.
    """
    while True:
        stream = path.open("a+")
        try:
            held, current = _try_lock(stream), _is_still(stream, path)
            if held and current:
                return stream
            if current:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                raise StoreError(
                    f"{target} is being written by {holder}. Wait until it is done, or give another place."
                )
        except BaseException:
            stream.close()
            raise
        stream.close()  # its holder was done and removed it after it was opened here: it guards nothing any more


def _is_still(stream: TextIO, path: Path) -> bool:
    """Tell whether an open file is the one that has the name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(stream: TextIO) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        lock: Any = msvcrt
        try:
            stream.seek(1 << 30)  # a byte far behind the text, which others may then still read
            lock.locking(stream.fileno(), lock.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
