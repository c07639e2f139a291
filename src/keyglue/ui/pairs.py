"""Many pairs from a text file: each image is described once, each pair ends in files of its own."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyglue.base.errors import InputError, KeyglueError
from keyglue.base.files import atomic_path
from keyglue.ui.console import print_error, print_rows, with_progress

if TYPE_CHECKING:
    from keyglue.pipelines.matcher import Matcher
    from keyglue.pipelines.photograph import Photograph
    from keyglue.pipelines.result import PairResult

# Memory for what images look like: some 300 photographs as the model sees them by default.
_MOST_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Pair:
    """One line of a pairs file.

    Attributes:
        image0: First image.
        image1: Second image.
        name: Name of the pair's result files, without suffix; made of the two paths as written in the file.
    """

    image0: Path
    image1: Path
    name: str


def read_pairs(path: Path) -> list[Pair]:
    """Read pairs of images from a text file; a pair that is listed twice is taken once.

    Args:
        path: Two paths a line, relative to the file or to the current folder. ``#`` starts a comment; a path with
            spaces or ``#`` stands in quotes.

    Raises:
        InputError: The file can't be read, a line does not hold two paths, or two pairs would get the same name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of pairs: {error}") from error
    pairs: dict[str, Pair] = {}
    for number, line in enumerate(lines, start=1):
        words = _words(line, f"{path}, line {number}")
        if not words:
            continue
        image0, image1 = (_find(word, path.parent) for word in words)
        pair = Pair(image0, image1, "__".join(_flat(word) for word in words))
        if pairs.setdefault(pair.name, pair) != pair:
            raise InputError(f"{path}, line {number}: its results would be named {pair.name!r}, as another pair's are.")
    return list(pairs.values())


def _words(line: str, place: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.escape = ""  # a backslash is a part of a Windows path
    try:
        words = list(lexer)
    except ValueError as error:
        raise InputError(
            f"{place}: {error}. Put a path with a quote in it between quotes of the other kind."
        ) from error
    if len(words) not in (0, 2):
        raise InputError(f"{place}: expected two paths, found {len(words)}. Put a path with spaces in quotes.")
    return words


def _find(word: str, folder: Path) -> Path:
    beside = folder / word
    return beside if beside.exists() else Path(word)


def _flat(word: str) -> str:
    return "_".join(part for part in word.replace("\\", "/").replace(":", "/").split("/") if part not in ("", "."))


def match_pairs(
    pairs: list[Pair],
    folder: Path,
    suffixes: Iterable[str],
    settings: dict[str, Any],
    how: dict[str, Any],
    *,
    overwrite: bool = False,
) -> int:
    """Match pairs and write the files of each into a folder, which is made where needed.

    Args:
        pairs: What to match.
        folder: Where the files go.
        suffixes: What to write for each pair: .npz, .json, .csv, .png.
        settings: Arguments of ``Matcher.from_pretrained``; its first one is called "model".
        how: Arguments of ``Matcher.match``: rotate, zoom, refine, seed.
        overwrite: Whether to make files again that are there already.

    Returns:
        Number of pairs that failed.
    """
    from keyglue.pipelines.matcher import Matcher

    folder.mkdir(parents=True, exist_ok=True)
    files = {pair: [folder / f"{pair.name}{suffix}" for suffix in suffixes] for pair in pairs}
    pending = [pair for pair in pairs if overwrite or not all(path.exists() for path in files[pair])]
    failures = matches = 0
    if pending:
        matcher = Matcher.from_pretrained(**settings)
        described = _Described(matcher, pending)
        for pair in with_progress(pending, "matching"):
            try:
                # Images that are turned or resized in any case are not looked at as they are.
                as_they_are = how["rotate"] in (0, "auto") and how["zoom"] in (1, "auto")
                take = described.take if as_they_are else str
                result = matcher.match(take(pair.image0), take(pair.image1), **how)
                _write(result, pair, files[pair])
                matches += len(result)
            except (KeyglueError, OSError) as error:
                failures += 1
                print_error(f"{pair.image0} and {pair.image1}: {error}")
    print_rows(
        [
            ("pairs matched", str(len(pending) - failures)),
            ("there already", str(len(pairs) - len(pending))),
            ("failed", str(failures)),
            ("matches", str(matches)),
            ("written to", str(folder)),
        ]
    )
    return failures


class _Described:
    """Each image read and described at its first use, and dropped after its last.

    What images look like is kept of so many only; the others are read again for each of their pairs.
    """

    def __init__(self, matcher: Matcher, pairs: Iterable[Pair]) -> None:
        self._matcher = matcher
        self._uses = Counter(image for pair in pairs for image in (pair.image0, pair.image1))
        self._known: dict[Path, Photograph | KeyglueError] = {}
        self._kept = 0

    def take(self, image: Path) -> Photograph:
        if image not in self._known:
            try:
                self._known[image] = self._bounded(self._matcher.prepare(image))
            except KeyglueError as error:
                self._known[image] = error
        found = self._known[image]
        self._uses[image] -= 1
        if self._uses[image] == 0:
            del self._known[image]
            self._kept -= _bytes(found)
        if isinstance(found, KeyglueError):
            raise found
        return found

    def _bounded(self, photograph: Photograph) -> Photograph:
        self._kept += _bytes(photograph)
        if self._kept <= _MOST_BYTES:
            return photograph
        self._kept -= _bytes(photograph)
        return dataclasses.replace(photograph, brightness=None)


def _bytes(known: Photograph | KeyglueError) -> int:
    brightness = None if isinstance(known, KeyglueError) else known.brightness
    return 0 if brightness is None else brightness.nbytes


def _write(result: PairResult, pair: Pair, files: Iterable[Path]) -> None:
    for path in files:
        if path.suffix == ".png":
            with atomic_path(path) as temporary:
                result.draw(images=(pair.image0, pair.image1)).save(temporary)
        else:
            result.save(path)
