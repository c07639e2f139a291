"""The training loop: batches, gradients, optimiser, running mean of the weights, checkpoints, and when to stop."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keyglue.base.errors import ConfigError
from keyglue.training.distributed import Ranks
from keyglue.training.interrupts import Interrupts
from keyglue.training.report import Report, percentages, synchronise
from keyglue.training.state import pack, read_state, unpack, write_state
from keyglue.training.task import Task
from keyglue.training.workers import Workers

MODEL_FOLDER = "model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How to train.

    Attributes:
        steps: Length of the schedule in steps of the optimiser.
        learning_rate: At its highest.
        final_rate: At the end, as a share of the highest.
        warmup: Steps in which the rate rises from zero.
        weight_decay: Of AdamW, on matrices only.
        clip: Largest length of the gradient; longer ones are shortened.
        ema: Decay of the running mean of the weights, which is what is validated and exported.
        accumulate: Batches a step, for each thread and process.
        threads: Copies of the model that work side by side on one CPU, each in one thread on its own batches.
        loaders: Threads that make batches ahead; 0 makes them in between.
        log_every: Steps between two lines of progress.
        validate_every: Steps between two validations.
        checkpoint_minutes: Minutes between two checkpoints.
        seed: Of all randomness.
    """

    steps: int
    learning_rate: float
    final_rate: float = 0.01
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    accumulate: int = 1
    threads: int = 1
    loaders: int = 0
    log_every: int = 20
    validate_every: int = 1000
    checkpoint_minutes: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "threads", "log_every", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.learning_rate > 0 or not 0 <= self.ema < 1 or self.clip <= 0:
            raise ConfigError("learning_rate and clip must be positive, and ema at least 0 and below 1.")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: Number of steps done.
        finished: Whether the schedule came to its end; if not, the run can be resumed.
        scores: Scores of the last validation; empty where there was none.
        model: Folder of the exported model.
    """

    step: int
    finished: bool
    scores: dict[str, float]
    model: Path


class Trainer:
    """Trains a task in a folder.

    Args:
        task: What to train.
        settings: How.
        folder: Where the log, the state and the model go.
        minutes: Train for so long in all (resumed runs count on), the schedule stretched to it; the number of steps
            is then what it is. The schedule has ``settings.steps`` steps unless given.
        recipe: Description of the run as JSON; a state of another one is not resumed.
        show: Gets the lines of progress.
        ranks: The processes that train together.
    """

    def __init__(
        self,
        task: Task,
        settings: LoopSettings,
        folder: Path,
        *,
        minutes: float | None = None,
        recipe: dict[str, Any] | None = None,
        show: Callable[[str], None] = print,
        ranks: Ranks | None = None,
    ) -> None:
        self.task, self.settings, self.folder = task, settings, folder
        self.ranks = ranks or Ranks()
        self.minutes, self.recipe = minutes, recipe or {}
        folder.mkdir(parents=True, exist_ok=True)
        self.report = Report(folder, show if self.ranks.first else lambda _: None)
        self.module, self.ema = task.module, copy.deepcopy(task.module)
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.ranks.share(self.module.state_dict().values())
        self.optimizer = _optimizer(self.parameters, settings)
        self.step, self.seconds = 0, 0.0
        self.scores: dict[str, float] = {}
        self._saved = time.monotonic()

    def resume(self) -> bool:
        """Go on from the newest state in the folder, if there is one.

        Raises:
            ConfigError: The state was made by another recipe.
        """
        found = read_state(self.folder)
        if found is None:
            return False
        tensors, info = found
        if info["recipe"] != self.recipe:
            changed = sorted(
                key for key in {*info["recipe"], *self.recipe} if info["recipe"].get(key) != self.recipe.get(key)
            )
            raise ConfigError(
                f"the run in {self.folder} was started with other settings ({', '.join(changed)}). Give the same ones, "
                "or another folder."
            )
        unpack(tensors, self.module, self.ema, self.optimizer)
        self.step, self.seconds, self.scores = info["step"], info["seconds"], info["scores"]
        if self.ranks.first:
            self.report.resume(self.step)
        return True

    def run(self) -> Outcome:
        """Train until the schedule ends or the process is told to stop (SIGTERM, Ctrl-C); both leave a whole state.

        While a file PAUSE lies in the folder or the one above it, nothing is done.
        """
        settings = self.settings
        with Interrupts() as interrupts, Workers(self.task, self.module, settings, self.ranks.rank) as workers:
            self._pause(interrupts)
            if self.ranks.first and self.step == 0 and not self.scores:
                self.report.note(f"to beat: {percentages(self.task.baseline())}")
                self._validate()
            while True:
                self._pause(interrupts)
                progress, stop = self.ranks.agree([self._progress(), float(interrupts.asked)], self.device)
                if progress >= 1 or stop:
                    break
                began = time.monotonic()
                rate = _rate(settings, self.step, progress)
                self._step(workers, rate)
                self.step += 1
                if self.step % settings.log_every == 0:
                    synchronise(self.device)
                    self.report.losses(self.step, self._progress(), rate)
                self.seconds += time.monotonic() - began
                if self.ranks.first:
                    self._keep()
        return self._end(finished=progress >= 1)

    def _progress(self) -> float:
        """Return the share of the schedule that is done."""
        return self.step / self.settings.steps if self.minutes is None else self.seconds / (60 * self.minutes)

    def _step(self, workers: Workers, rate: float) -> None:
        """Do one step of the optimiser."""
        losses, waited = workers.gradients(self.step)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.ranks.average(gradients)
        length = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        # A gradient that is not finite is dropped, not the run.
        if torch.isfinite(length):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.ema.parameters(), self.module.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        batches = self.settings.accumulate * self.settings.threads * self.ranks.world
        loss, parts = losses
        self.report.add(loss, {**parts, "gradient": length}, batches * self.task.pairs_per_batch, waited)

    def _keep(self) -> None:
        """Validate and save, where it is time."""
        if self.step % self.settings.validate_every == 0:
            self._validate()
            self.task.export(self.ema, self.folder / MODEL_FOLDER)
        if time.monotonic() - self._saved > 60 * self.settings.checkpoint_minutes:
            self._save()

    def _validate(self) -> None:
        began = time.monotonic()
        self.scores = self.task.validate(self.ema)
        self.report.scores(self.step, self.scores, self.seconds / 3600)
        self.report.skip(time.monotonic() - began)

    def _save(self) -> None:
        began = time.monotonic()
        info = {"step": self.step, "seconds": self.seconds, "scores": self.scores, "recipe": self.recipe}
        write_state(self.folder, self.step, pack(self.module, self.ema, self.optimizer), info)
        self._saved = time.monotonic()
        self.report.skip(self._saved - began)

    def _pause(self, interrupts: Interrupts) -> None:
        """Wait while a file PAUSE is there; the state is saved first, as the machine may be taken away meanwhile."""
        signs = (self.folder / "PAUSE", self.folder.parent / "PAUSE")
        if not any(sign.exists() for sign in signs):
            return
        began = time.monotonic()
        if self.ranks.first:
            self._save()
        self.report.note(f"paused at step {self.step}: remove {signs[0]} or {signs[1]} to go on")
        while any(sign.exists() for sign in signs) and not interrupts.asked:
            time.sleep(0.2)
        self.report.skip(time.monotonic() - began)

    def _end(self, *, finished: bool) -> Outcome:
        if self.ranks.first:
            if finished and self.step % self.settings.validate_every:
                self._validate()
            self._save()
            self.task.export(self.ema, self.folder / MODEL_FOLDER)
            self.report.note(
                f"{'finished' if finished else 'stopped'} at step {self.step}: {self.folder / MODEL_FOLDER}"
            )
        self.report.close()
        return Outcome(self.step, finished, self.scores, self.folder / MODEL_FOLDER)


def _optimizer(parameters: list[nn.Parameter], settings: LoopSettings) -> torch.optim.Optimizer:
    matrices = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=parameters[0].device.type in ("cpu", "cuda"))


def _rate(settings: LoopSettings, step: int, progress: float) -> float:
    """Return the learning rate: up in a line, down in half a cosine."""
    rise = min(1.0, (step + 1) / max(settings.warmup, 1))
    fall = settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return settings.learning_rate * rise * fall
