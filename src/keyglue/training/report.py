"""What a run tells: one line of text, one line of JSON, and TensorBoard where it is installed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keyglue.base.files import atomic_write

LOG_NAME = "log.jsonl"


class Report:
    """Gathers losses over some steps and writes them out.

    Args:
        folder: Folder of the run; log.jsonl and TensorBoard's files go there.
        show: Gets the lines of text.
    """

    def __init__(self, folder: Path, show: Callable[[str], None]) -> None:
        self._path, self._show = folder / LOG_NAME, show
        self._board = _board(folder)
        self._sums: dict[str, Tensor] = {}
        self._count = self._pairs = 0
        self._waited = 0.0
        self._since = time.monotonic()

    def resume(self, step: int) -> None:
        """Forget what was logged after a step, because it will be done again."""
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            atomic_write(self._path, "".join(f"{line}\n" for line in kept))

    def add(self, loss: Tensor, parts: dict[str, Tensor], pairs: int, waited: float) -> None:
        """Take down one step: its loss and parts, still on the device, its pairs, and the seconds spent on data."""
        for name, part in {"loss": loss, **parts}.items():
            value = part.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        self._pairs += pairs
        self._waited += waited

    def skip(self, seconds: float) -> None:
        """Leave seconds of validation, saving or pausing out of the speed."""
        self._since += seconds

    def losses(self, step: int, progress: float, rate: float) -> None:
        """Write the means since the last time."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        means = {name: float(value) / max(self._count, 1) for name, value in self._sums.items()}
        speed, waiting = self._pairs / seconds, self._waited / seconds
        self._write({"step": step, "rate": rate, "pairs_per_second": speed, "waiting": waiting, **means})
        text = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        self._show(f"step {step} ({progress:.1%})  {text}  rate {rate:.1e}  {speed:.3g} pairs/s  data {waiting:.0%}")
        self._sums.clear()
        self._count = self._pairs = 0
        self._waited = 0.0
        self._since = time.monotonic()

    def scores(self, step: int, scores: dict[str, float], hours: float) -> None:
        """Write validation scores."""
        self._write({"step": step, "hours": hours, **{f"held_out_{name}": value for name, value in scores.items()}})
        self._show(f"step {step}  held out: {percentages(scores)}  ({hours:.2f} h)")

    def note(self, text: str) -> None:
        """Show a line that is not logged."""
        self._show(text)

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _write(self, values: dict[str, float]) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, values["step"])


def percentages(scores: dict[str, float]) -> str:
    """Return scores as text."""
    return "  ".join(f"{name} {value:.1%}" for name, value in scores.items())


def _step_of(line: str) -> int:
    """Return the step of a line of the log; one that was cut off by a crash comes after everything."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**62


def _board(folder: Path) -> Any:
    """Return TensorBoard's writer, or None where it is not installed."""
    try:
        import tensorboard  # noqa: F401  # pyright: ignore
    except ImportError:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was told, so that times are true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
