"""A file that changes in whole steps: killed at any moment, it holds what the last ``commit`` left.

HDF5 grows a file at its end and rewrites small parts in the middle (tables of contents). Here what is appended goes to
the file at once, where nothing refers to it yet; what would change bytes of the last commit stays in memory. ``commit``
writes those changes to a journal beside the file, and only when that is complete on the disk into the file. A journal
that is found on opening is applied again, which does no harm; without one, the file is as the last commit left it.
"""

from __future__ import annotations

import hashlib
import os
import struct
from io import FileIO
from pathlib import Path
from typing import Any

from keyglue.base.errors import StoreError
from keyglue.base.files import atomic_path

_PAGE = 4096
_MAGIC = b"keyglue journal 1\n"
_HEAD = struct.Struct("<QQ")  # size of the file after the commit, number of pages
_PLACE = struct.Struct("<QI")  # offset of a page, number of bytes


class JournaledFile:
    """What h5py's file-object driver reads from and writes to.

    Args:
        path: File that is there already; it is locked by the caller against other writers, and ``replay`` has run.
        size: Number of bytes of the last commit; what follows is left over from a killed process and cut off.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._journal = journal_of(path)
        self._file = path.open("r+b", buffering=0)
        self._file.truncate(size)
        self._committed = self._size = size
        self._changed: dict[int, bytearray] = {}
        self._position = 0
        self._abandoned = False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position that ``readinto`` and ``write`` start at."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, target: Any) -> int:
        """Fill a buffer from the position on, with zeros beyond the end of the file."""
        view = memoryview(target).cast("B")
        start, done = self._position, 0
        while done < len(view):
            self._file.seek(start + done)
            count = self._file.readinto(view[done:])
            if not count:
                view[done:] = bytes(len(view) - done)
                break
            done += count
        for index in self._pages(start, start + len(view)):
            page = self._changed.get(index)
            if page is not None:
                left, right = max(start, index * _PAGE), min(start + len(view), index * _PAGE + len(page))
                view[left - start : right - start] = page[left - index * _PAGE : right - index * _PAGE]
        self._position += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        """Write at the position: at once beyond the last commit, into memory before it."""
        view = memoryview(data).cast("B")
        if not self._abandoned:
            start = self._position
            kept = max(0, min(len(view), self._committed - start))
            for index in self._pages(start, start + kept):
                page = self._page(index)
                left, right = max(start, index * _PAGE), min(start + kept, index * _PAGE + len(page))
                page[left - index * _PAGE : right - index * _PAGE] = view[left - start : right - start]
            _write_all(self._file, view[kept:], start + kept)
            self._size = max(self._size, start + len(view))
        self._position += len(view)
        return len(view)

    def truncate(self, size: int) -> int:
        """Set the size of the file."""
        if not self._abandoned:
            if size >= self._committed:
                self._file.truncate(size)
            self._size = size
        return size

    def flush(self) -> None:
        """Do nothing: HDF5 flushes in the middle of changes, ``commit`` marks their end."""

    def commit(self) -> None:
        """Make everything written so far permanent, or leave the file as it was.

        Raises:
            OSError: The disk is full or fails; the file is as the last commit left it.
        """
        if self._abandoned:
            return
        os.fsync(self._file.fileno())
        if self._changed or self._size < self._committed:
            with atomic_path(self._journal) as temporary:
                temporary.write_bytes(_encode(self._size, self._changed))
            _sync_folder(self._path.parent)
            _apply(self._file, self._size, self._changed)
            self._journal.unlink()
        self._changed.clear()
        self._committed = self._size

    def abandon(self) -> None:
        """Forget everything since the last commit; further writes go nowhere, so that HDF5 can close its file."""
        self._abandoned = True
        self._changed.clear()
        self._size = self._committed

    def close(self) -> None:
        """Close the file; what was not committed is cut off."""
        if not self._journal.exists():  # else the next opening completes the commit
            self._file.truncate(self._committed)
        self._file.close()

    def _pages(self, start: int, stop: int) -> range:
        return range(start // _PAGE, -(-min(stop, self._committed) // _PAGE)) if start < self._committed else range(0)

    def _page(self, index: int) -> bytearray:
        """Return a page of the last commit for changing; the last one is shorter."""
        page = self._changed.get(index)
        if page is None:
            length = min(_PAGE, self._committed - index * _PAGE)
            self._file.seek(index * _PAGE)
            page = bytearray(self._file.read(length))
            self._changed[index] = page
        return page


def journal_of(path: Path) -> Path:
    """Return where the journal of a file is."""
    return path.with_name(f"{path.name}.journal")


def replay(path: Path) -> None:
    """Complete a commit that was interrupted; nothing to do is fine.

    Raises:
        StoreError: The journal is damaged.
    """
    journal = journal_of(path)
    try:
        data = journal.read_bytes()
    except FileNotFoundError:
        return
    size, pages = _decode(data, journal)
    with path.open("r+b", buffering=0) as file:
        _apply(file, size, pages)
    journal.unlink()


def _encode(size: int, pages: dict[int, bytearray]) -> bytes:
    parts = [_MAGIC, _HEAD.pack(size, len(pages))]
    for index, page in sorted(pages.items()):
        parts += [_PLACE.pack(index * _PAGE, len(page)), bytes(page)]
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def _decode(data: bytes, journal: Path) -> tuple[int, dict[int, bytearray]]:
    body, digest = data[:-32], data[-32:]
    if not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        raise StoreError(f"{journal} is damaged: it does not hold a complete commit. Delete it to go on without.")
    position = len(_MAGIC)
    size, count = _HEAD.unpack_from(body, position)
    position += _HEAD.size
    pages: dict[int, bytearray] = {}
    for _ in range(count):
        offset, length = _PLACE.unpack_from(body, position)
        position += _PLACE.size
        pages[offset // _PAGE] = bytearray(body[position : position + length])
        position += length
    return size, pages


def _apply(file: FileIO, size: int, pages: dict[int, bytearray]) -> None:
    for index, page in pages.items():
        _write_all(file, memoryview(page), index * _PAGE)
    file.truncate(size)
    os.fsync(file.fileno())


def _write_all(file: FileIO, data: memoryview, offset: int) -> None:
    file.seek(offset)
    while len(data):
        data = data[file.write(data) :]


def _sync_folder(folder: Path) -> None:
    """Make a renamed file last through a power cut, where the system can do that for folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
