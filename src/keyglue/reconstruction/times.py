"""How long the stages of a reconstruction took, noted in its folder: a run that finds all done leaves it alone."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from keyglue.base.files import atomic_write


@dataclasses.dataclass
class Work:
    """What a stage says of itself.

    Attributes:
        done: Number of things that were worked on.
        kept: Number that were there already.
    """

    done: int = 0
    kept: int = 0


class StageTimes:
    """Seconds that the stages took, in all runs that made what a folder holds.

    Args:
        path: JSON file to keep them in, there already or not.

    Attributes:
        seconds: Of each stage.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = {}
        # Not there, or not whole: times are no reason to refuse a folder.
        with suppress(OSError, ValueError, TypeError, AttributeError):
            found = json.loads(path.read_text(encoding="utf-8"))
            self.seconds.update({stage: float(seconds) for stage, seconds in found.items()})

    @contextmanager
    def of(self, stage: str) -> Generator[Work]:
        """Time a stage, which fills in what it did.

        A stage that did nothing keeps its time; one that went on adds to it; one that began anew replaces it.
        """
        work, start = Work(), time.perf_counter()
        yield work
        before = self.seconds.get(stage)
        if work.done or before is None:
            earlier = before if before is not None and work.kept else 0.0
            self.seconds[stage] = round(earlier + time.perf_counter() - start, 2)
            atomic_write(self._path, json.dumps(self.seconds) + "\n")
