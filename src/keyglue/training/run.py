"""From a recipe and data to a trained model in a folder: what all ways of starting a run have in common."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from keyglue.base.devices import resolve_device
from keyglue.base.errors import InputError
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.lightglue.lightglue import LightGlueMatcher
from keyglue.training.adapt import adapt_projection
from keyglue.training.data import TrainingData, load_data
from keyglue.training.distributed import Ranks, local_device
from keyglue.training.lightglue import MatcherTask
from keyglue.training.loop import Outcome, Trainer
from keyglue.training.recipes import Recipe
from keyglue.training.state import read_state
from keyglue.training.superpoint import SuperPointSettings, SuperPointTask
from keyglue.training.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is chosen for a run beside its recipe; None leaves the recipe's own.

    Attributes:
        minutes: Train for so long in all, the schedule stretched to it.
        steps: Length of the schedule in steps.
        pairs: Pairs a batch.
        learning_rate: At its highest.
        threads: Copies of the model that train side by side on one CPU.
        loaders: Threads that make batches ahead.
        seed: Of all randomness.
        detector: Model whose detector a matcher is trained for; the input projection of a matcher that begins as
            another model's is fitted to it.
        start: Model to begin with instead of new weights.
        device: cpu, cuda, cuda:1; the best there is unless given.
        resume: Go on with the run in the folder, if there is one.
        niceness: Raise the process's niceness by this, so that other work goes first.
        limit: Read no more than this many photographs.
    """

    minutes: float | None = None
    steps: int | None = None
    pairs: int | None = None
    learning_rate: float | None = None
    threads: int | None = None
    loaders: int | None = None
    seed: int | None = None
    detector: str | None = None
    start: str | None = None
    device: str | None = None
    resume: bool = False
    niceness: int = 0
    limit: int | None = None

    def applied(self, recipe: Recipe) -> Recipe:
        """Return a recipe with what was chosen."""
        loop = {name: getattr(self, name) for name in ("steps", "learning_rate", "threads", "loaders", "seed")}
        loop = {name: value for name, value in loop.items() if value is not None}
        models = {name: getattr(self, name) for name in ("detector", "start") if getattr(self, name) is not None}
        task = recipe.task if self.pairs is None else dataclasses.replace(recipe.task, pairs=self.pairs)
        return dataclasses.replace(recipe, task=task, loop=dataclasses.replace(recipe.loop, **loop), **models)


def run_recipe(
    recipe: Recipe,
    data: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    options: RunOptions | None = None,
    *,
    show: Callable[[str], None] = print,
) -> Outcome:
    """Train.

    Args:
        recipe: What and how.
        data: What to train on; see ``load_data``.
        out: Folder of the run: log.jsonl, the state, and the exported model in model/. No file is over 16 MB.
        options: What is chosen beside the recipe.
        show: Gets the lines of progress.

    Raises:
        InputError: The data cannot be used, or the folder holds a run already and ``resume`` was not asked for.
        ConfigError: The run to be resumed was made by another recipe.
    """
    options = options or RunOptions()
    recipe = options.applied(recipe)
    folder = Path(out)
    if not options.resume and read_state(folder) is not None:
        raise InputError(f"{folder} holds a run already. Resume it, or give another folder.")
    if options.minutes is not None and not options.minutes > 0:
        raise InputError(f"minutes must be positive, got {options.minutes}.")
    if options.niceness:
        os.nice(options.niceness)
    device = local_device(resolve_device(options.device))
    ranks = Ranks.from_environment(device)
    found = load_data(data, device, limit=options.limit)
    if ranks.first:
        show(
            f"{len(found.photos)} photographs, {len(found.held_out)} held out, {len(found.scenes)} scenes, on {device}"
        )
    trainer = Trainer(
        make_task(recipe, found),
        recipe.loop,
        folder,
        minutes=options.minutes,
        recipe=recipe.described(),
        show=show,
        ranks=ranks,
    )
    if trainer.resume() and ranks.first:
        show(f"resumed at step {trainer.step}")
    outcome = trainer.run()
    ranks.close()
    return outcome


def make_task(recipe: Recipe, data: TrainingData) -> Task:
    """Return the task of a recipe on some data, with the models that it begins with."""
    seed, settings = recipe.loop.seed, recipe.task
    if isinstance(settings, SuperPointSettings):
        start = SuperPointForKeypointDetection.from_pretrained(recipe.start) if recipe.start else None
        return SuperPointTask(settings, data.photos, data.held_out, seed=seed, start=start)
    # A matcher that is trained further sees its own detector's keypoints, unless it is to learn another one's.
    detector = SuperPointForKeypointDetection.from_pretrained(recipe.detector or recipe.start or None)
    matcher = LightGlueMatcher.from_pretrained(recipe.start) if recipe.start else None
    if matcher is not None and recipe.detector and recipe.detector != recipe.start:
        own = SuperPointForKeypointDetection.from_pretrained(recipe.start)
        adapt_projection(matcher, own, detector, data.photos, settings.views, seed)
    return MatcherTask(settings, detector, data.photos, data.held_out, scenes=data.scenes, seed=seed, start=matcher)
