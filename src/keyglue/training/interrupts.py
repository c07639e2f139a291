"""Asking a run to stop: SIGTERM and Ctrl-C are answered between two steps, so that nothing is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from typing_extensions import Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """Notes, while it is entered, that a signal asked to stop; a second Ctrl-C interrupts at once.

    Attributes:
        asked: Whether the run is to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may change what a signal does; elsewhere the caller has to stop the run.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
