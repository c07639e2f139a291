"""Which photographs training leaves out, so that they can be scored on: one rule, by name alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import PurePath

HELD_OUT_COUNT = 200
# Of the 2,926 photographs that the bundled models are trained on, just 200 have names whose SHA-1 is below this.
_BELOW = "131"


def is_held_out(name: str) -> bool:
    """Tell whether training leaves a photograph out.

    The answer depends on the name alone, so it stays the same when photographs are added or the shards are cut anew. It
    is yes for 7.4 % of all names.

    Args:
        name: File name of the photograph with its suffix; folders before it play no part.
    """
    return _digest(name) < _BELOW


def held_out_names(names: Iterable[str], count: int = HELD_OUT_COUNT) -> list[str]:
    """Return the names that training leaves out, in the order of their SHA-1, at most ``count``.

    Args:
        names: File names as for ``is_held_out``.
        count: The most to return.
    """
    return sorted((name for name in set(names) if is_held_out(name)), key=_digest)[:count]


def _digest(name: str) -> str:
    return hashlib.sha1(PurePath(name).name.encode(), usedforsecurity=False).hexdigest()
