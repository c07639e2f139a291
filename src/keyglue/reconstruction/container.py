"""An HDF5 file with one writer, steps that are whole or not at all, and a header that says who made it."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from keyglue.base.errors import InputError, MissingDependencyError, StoreError
from keyglue.base.files import atomic_path
from keyglue.reconstruction.journal import JournaledFile, replay
from keyglue.reconstruction.lock import locked
from keyglue.reconstruction.memory import return_free_memory

ATTRIBUTE = "keyglue"
_FORMAT = "keyglue.store.1"
# Dense groups, and no mark in the file that it is open, which a killed process would leave behind.
_LIBVER = ("v108", "v110")
# What HDF5 notes of groups and datasets shares pages, apart from long arrays. Else it lies between them, and to list
# 100,000 images took as many places on the disk.
_PAGES: dict[str, Any] = {"fs_strategy": "page", "fs_page_size": 32 << 10}
_SUPERBLOCK = 48
_NOT_COMPARED = {"model": None}  # a name for people; the digest of the weights tells models apart
_COMMIT_SECONDS = 2.0
_COMMIT_BYTES = 64 << 20
_RETURN_BYTES = 32 << 20


def import_h5py() -> Any:
    """Return the module h5py.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("h5py", "sfm", "a store of features or matches") from error
    return h5py


class Container:
    """A store file, open for reading or for writing; use it in a ``with`` statement.

    What was written is committed every few seconds and at the end; a killed process leaves the last commit.

    Args:
        path: The file; made where it is not there and ``header`` is given.
        header: Open for writing, as a store of just this header (JSON values); None to open for reading.
        commit_seconds: Longest time between two commits while something is written.

    Raises:
        StoreError: The file is damaged, written by another process or by other code, or has another header.
        InputError: The file is not there, or its folder is not.
        MissingDependencyError: h5py is not installed.
    """

    def __init__(
        self, path: Path, header: dict[str, Any] | None = None, *, commit_seconds: float = _COMMIT_SECONDS
    ) -> None:
        self.path = path
        self._h5py = import_h5py()
        self._commit_seconds = commit_seconds
        self._pending, self._last_commit = 0, time.monotonic()
        self._passed = 0
        self._raw: JournaledFile | None = None
        with ExitStack() as stack:
            if header is None:
                if not path.is_file():
                    raise InputError(f"there is no store {path}. Make it first, or check its name.")
                self.file = self._open(mode="r")
            else:
                if not path.parent.is_dir():
                    raise InputError(f"cannot write {path}: the folder {path.parent} does not exist. Create it first.")
                stack.enter_context(locked(path))
                self._open_for_writing(header)
            self._stack = stack.pop_all()

    @property
    def header(self) -> dict[str, Any]:
        """What the file says about its maker; empty where other code wrote it."""
        return _json_of(self.file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Commit and close; a second call does nothing."""
        if not self.file:
            return
        with self._stack:
            try:
                with self._whole("close"):
                    self.file.close()
                    if self._raw is not None:
                        self._raw.commit()
            finally:
                if self._raw is not None:
                    self._raw.close()

    def commit(self) -> None:
        """Make what was written permanent.

        Raises:
            StoreError: The disk is full or fails; the last commit stays.
        """
        if self._raw is None:
            return
        with self._whole("write"):
            self.file.flush()
            self._raw.commit()
        self._pending, self._last_commit = 0, time.monotonic()

    @contextmanager
    def entry(self, name: str, size: int) -> Generator[Any]:
        """Yield a new group to fill, in place of an old one of that name; commit when it is time to.

        Args:
            name: Of the group; "/" makes groups within groups.
            size: About how many bytes will be written.

        Raises:
            StoreError: The disk is full or fails; the last commit stays and nothing more can be written.
        """
        if self._raw is None:
            raise StoreError(f"{self.path} is open for reading only.")
        with self._whole("write"):
            if name in self.file:
                del self.file[name]
            yield self.file.create_group(name)
        self.count_bytes(size)
        self._pending += size
        due = time.monotonic() - self._last_commit > self._commit_seconds
        if due or self._pending > _COMMIT_BYTES:
            self.commit()

    def fill(self, group: Any, arrays: dict[str, NDArray[Any]], note: dict[str, Any]) -> None:
        """Write the datasets of a new group, and a note (JSON values) that ``note_of`` reads.

        It calls HDF5 as directly as h5py lets it: half of the time to write an image went into h5py's conveniences.
        """
        h5d, h5s, h5t = self._h5py.h5d, self._h5py.h5s, self._h5py.h5t
        plain = self._h5py.h5p.create(self._h5py.h5p.DATASET_CREATE)
        plain.set_obj_track_times(False)  # the same content is the same bytes
        for key, array in arrays.items():
            kind, space = h5t.py_create(array.dtype, logical=True), h5s.create_simple(array.shape)
            h5d.create(group.id, key.encode(), kind, space, plain).write(h5s.ALL, h5s.ALL, np.ascontiguousarray(array))
        # Of fixed length: strings of variable length lie elsewhere in the file.
        group.attrs[ATTRIBUTE] = np.bytes_(json.dumps(note))

    def note_of(self, group: Any, name: str) -> dict[str, Any]:
        """Return the note of a group, empty where other code wrote it."""
        with self.reading(name):
            return _json_of(group)

    def count_bytes(self, size: int) -> None:
        """Note that so many bytes were read or written; every now and then what is free goes back to the system."""
        self._passed += size
        if self._passed > _RETURN_BYTES:
            self._passed = 0
            return_free_memory()

    def remove(self, name: str) -> None:
        """Take out a group; one that is not there is fine."""
        with self._whole("write"):
            if name in self.file:
                del self.file[name]

    def groups(self, member: str) -> Iterator[tuple[str, Any]]:
        """Yield (name, group) for every group that directly holds a dataset called ``member``, in order of names."""
        for name in self.group_names(member):
            yield name, self.group(name)

    def group_names(self, member: str) -> Iterator[str]:
        """Yield the name of every group that directly holds a dataset called ``member``, in order of names."""
        waiting: list[tuple[str, Any]] = [("", self.file)]
        while waiting:
            prefix, group = waiting.pop()
            if group is None:
                yield prefix
                continue
            with self.reading(prefix):
                waiting += [
                    (f"{prefix}/{name}" if prefix else name, inner)
                    for name in sorted(group, reverse=True)
                    for inner in self._holder(group, name, member)
                ]

    def _holder(self, group: Any, name: str, member: str) -> list[Any]:
        """Return [None] for a group that holds ``member``, the group for another one, nothing for what is none."""
        try:
            # A path takes a third of the time of making an object for the group.
            if group.id.links.exists(f"{name}/{member}".encode()):
                return [None]
        except RuntimeError:  # a dataset, or damaged, which the next line tells
            pass
        item = group[name]
        return [item] if isinstance(item, self._h5py.Group) else []

    def group(self, name: str) -> Any:
        """Return the group of a name.

        Raises:
            InputError: There is none.
        """
        with self.reading(name):
            found = self.file.get(name)
        if found is None:
            raise InputError(f"{self.path} holds nothing for {name}.")
        return found

    @contextmanager
    def reading(self, name: str) -> Generator[None]:
        """Turn what h5py raises on damaged data into a StoreError that says where."""
        try:
            yield
        except StoreError:
            raise
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            where = name or "its table of contents"
            raise StoreError(
                f"{self.path} is damaged at {where}: {error}. Delete the file to make it again."
            ) from error

    def _open_for_writing(self, header: dict[str, Any]) -> None:
        wanted = json.loads(json.dumps({"format": _FORMAT, **header}))
        if not self.path.exists():
            with atomic_path(self.path) as temporary, self._h5py.File(temporary, "w", libver=_LIBVER, **_PAGES) as file:
                file.attrs[ATTRIBUTE] = json.dumps(wanted)
        replay(self.path)
        self._raw = JournaledFile(self.path, _end_of_data(self.path))
        try:
            self.file = self._open(mode="r+", driver="fileobj", fileobj=self._raw, libver=_LIBVER)
        except BaseException:
            self._raw.close()
            raise
        found = self.header
        if {**found, **_NOT_COMPARED} != {**wanted, **_NOT_COMPARED}:
            self._raw.abandon()
            self.file.close()
            self._raw.close()
            raise StoreError(_difference(self.path, found, wanted))

    def _open(self, **options: Any) -> Any:
        try:
            return self._h5py.File(self.path, **options)
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be opened as a store: {error}. If it is damaged, delete it to make it again."
            ) from error

    @contextmanager
    def _whole(self, action: str) -> Generator[None]:
        """On any error go back to the last commit, and let nothing more be written."""
        try:
            yield
        except BaseException as error:
            if self._raw is not None:
                self._raw.abandon()
            if isinstance(error, OSError) and not isinstance(error, StoreError):
                raise StoreError(
                    f"cannot {action} {self.path}: {error}. What was committed before is kept; make room, then run the "
                    "same command again."
                ) from error
            raise


def _json_of(group: Any) -> dict[str, Any]:
    text = group.attrs.get(ATTRIBUTE)
    return {} if text is None else json.loads(text)


def _end_of_data(path: Path) -> int:
    """Return the size that the file gives itself; more may follow that a killed process left.

    Raises:
        StoreError: It is not a file that keyglue wrote.
    """
    with path.open("rb") as stream:
        head = stream.read(_SUPERBLOCK)
    if head[:8] != b"\x89HDF\r\n\x1a\n" or len(head) < _SUPERBLOCK:
        raise StoreError(f"{path} is not an HDF5 file, or its beginning is damaged. Delete it to make it again.")
    if head[8] not in (2, 3):
        raise StoreError(f"{path} was not written by keyglue: it can be read, but not extended. Give another file.")
    size = int.from_bytes(head[28:36], "little")
    if path.stat().st_size < size:
        raise StoreError(f"{path} is damaged: its end is missing. Delete it to make it again.")
    return size


def _difference(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> str:
    if not found:
        return f"{path} was not written by keyglue: it can be read, but not extended. Give another file."
    names = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    texts = [f"{name} {found.get(name)!r} there and {wanted.get(name)!r} now" for name in names]
    return f"{path} was made differently: {'; '.join(texts)}. Give another file, or delete this one to make it again."
