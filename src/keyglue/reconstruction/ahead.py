"""Images made ready by threads while earlier ones are described, no more of them than memory should hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from keyglue.base.errors import KeyglueError
from keyglue.images.read import image_size

T = TypeVar("T")

# Pixels of images that are decoded and not yet described, beside the one that comes next.
_AHEAD = 30_000_000


def ready_ahead(
    prepare: Callable[[str], T], folder: Path, names: Iterable[str], threads: int
) -> Iterator[tuple[str, Future[T]]]:
    """Yield each image's name and what ``prepare`` returns or raises for it, in their order.

    Args:
        prepare: Reads the image of a name; called in other threads.
        folder: The images' folder.
        names: Names of the images relative to it.
        threads: Number of threads, one at the least.
    """
    waiting: deque[tuple[str, int, Future[T]]] = deque()
    threads = max(1, threads)
    with ThreadPoolExecutor(threads) as pool:
        try:
            for name in names:
                pixels = _pixels(folder / name)
                while waiting and (len(waiting) > 2 * threads or pixels + sum(entry[1] for entry in waiting) > _AHEAD):
                    first, _, future = waiting.popleft()
                    yield first, future
                waiting.append((name, pixels, pool.submit(prepare, name)))
            while waiting:
                first, _, future = waiting.popleft()
                yield first, future
        finally:
            for *_, future in waiting:
                future.cancel()


def _pixels(path: Path) -> int:
    try:
        height, width = image_size(path)
    except KeyglueError:
        return 0  # the thread that decodes it will say what is wrong
    return height * width
