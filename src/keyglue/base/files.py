"""Writing files so that a reader sees either the old content or the new one, never half of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from keyglue.base.errors import InputError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary path in the target's folder and move it over the target on success.

    The temporary file is removed when the block raises, so nothing half-written stays behind.

    Args:
        path: File to create or replace. Its folder must exist.

    Raises:
        InputError: The folder does not exist or is not a folder.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: the folder {target.parent} does not exist. Create it first.")
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder. Give the name of a file.")
    # The suffix stays, because writers choose their format by it.
    temporary = target.with_name(f".{target.stem}-{secrets.token_hex(4)}{target.suffix}")
    temporary.open("xb").close()
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write ``data`` (text is encoded as UTF-8) to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
