"""``keyglue train``: weights from photographs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from keyglue.ui import options
from keyglue.ui.console import print_rows


class RecipeName(str, Enum):
    """Recipes of keyglue.training.recipes."""

    superpoint_scratch = "superpoint_scratch"
    superpoint_further = "superpoint_further"
    lightglue_homography = "lightglue_homography"
    lightglue_3d = "lightglue_3d"
    lightglue_confidence = "lightglue_confidence"
    finetune = "finetune"
    tiny_cpu = "tiny_cpu"


class Size(str, Enum):
    """Sizes of a matcher."""

    small = "small"
    base = "base"


def train(
    recipe: Annotated[
        RecipeName, typer.Argument(metavar="RECIPE", help="One of " + ", ".join(RecipeName) + ".", show_default=False)
    ],
    data: Annotated[
        list[Path], typer.Option("--data", metavar="PATH", help="Folder of images, .tar file or scene; again for more.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the run; the model goes to DIR/model.")],
    size: Annotated[
        Size | None,
        typer.Option(
            "--size", help="Size of the matcher; a smaller --start grows to it. Default: small, or the start's."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="N", help="Train for so long in all instead of the recipe's steps."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, metavar="N", help="Length of the schedule.")] = None,
    pairs: Annotated[int | None, typer.Option("--pairs", min=1, metavar="N", help="Image pairs a batch.")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate", metavar="RATE", help="At its highest; lower where a trained model is to change little."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, metavar="N", help="Copies of the model side by side on one CPU.")
    ] = None,
    loaders: Annotated[
        int | None, typer.Option("--loaders", min=0, metavar="N", help="Threads that make batches ahead.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of all randomness.")] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            "--detector",
            metavar="NAME",
            help="Model whose detector a matcher is trained for; a start of another detector is fitted to it.",
        ),
    ] = None,
    start: Annotated[str | None, typer.Option("--start", metavar="NAME", help="Model to begin with.")] = None,
    device: options.Compute = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR, if there is one.")] = False,
    niceness: Annotated[
        int, typer.Option("--nice", min=0, max=19, metavar="N", help="Let other work on this machine go first.")
    ] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Read no more photographs than this.")
    ] = None,
) -> None:
    """Train a detector or a matcher on photographs.

    Progress goes to standard output and DIR/log.jsonl, a state every few minutes to DIR, and the model to DIR/model,
    which --model of every other command takes. Ctrl-C and SIGTERM stop after the step; --resume goes on. While a file
    PAUSE lies in DIR or above it, training waits. docs/training.md is the guide.
    """
    from keyglue.training.recipes import find_recipe
    from keyglue.training.run import RunOptions, run_recipe

    chosen = RunOptions(
        minutes=minutes,
        steps=steps,
        pairs=pairs,
        learning_rate=learning_rate,
        threads=threads,
        loaders=loaders,
        seed=seed,
        detector=detector,
        start=start,
        device=device,
        resume=resume,
        niceness=niceness,
        limit=limit,
    )
    found = find_recipe(recipe.value, None if size is None else size.value)
    outcome = run_recipe(found, data, out, chosen, show=typer.echo)
    rows = [("steps", str(outcome.step)), ("model", str(outcome.model))]
    rows += [(name.replace("_", " "), f"{value:.1%}") for name, value in outcome.scores.items()]
    print_rows(rows)
