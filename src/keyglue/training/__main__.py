"""Training without the command line's libraries: ``python -m keyglue.training RECIPE --data ... --out ...``.

Only torch, numpy, pillow and safetensors are needed; from a source tree, with ``PYTHONPATH=src``.
"""

from __future__ import annotations

import argparse
import sys

from keyglue.base.errors import KeyglueError
from keyglue.training.recipes import RECIPES, find_recipe
from keyglue.training.run import RunOptions, run_recipe


def main(arguments: list[str] | None = None) -> int:
    """Train as the arguments say and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m keyglue.training", description="Train a model.")
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--data", nargs="+", required=True, help="folders of images, .tar files, scenes")
    parser.add_argument("--out", required=True, help="folder of the run")
    parser.add_argument("--size", choices=("small", "base"), help="size of the matcher; a smaller --start grows to it")
    parser.add_argument("--minutes", type=float, help="train for so long in all, the schedule stretched to it")
    parser.add_argument("--steps", type=int, help="length of the schedule")
    parser.add_argument("--pairs", type=int, help="pairs a batch")
    parser.add_argument("--learning-rate", type=float, help="at its highest")
    parser.add_argument("--threads", type=int, help="copies of the model side by side on one CPU")
    parser.add_argument("--loaders", type=int, help="threads that make batches ahead")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--detector", help="model whose detector a matcher is trained for")
    parser.add_argument("--start", help="model to begin with")
    parser.add_argument("--device", help="cpu, cuda, cuda:1")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, if there is one")
    parser.add_argument("--nice", type=int, default=0, dest="niceness", help="let other work go first, 1 to 19")
    parser.add_argument("--limit", type=int, help="read no more photographs than this")
    given = vars(parser.parse_args(arguments))
    name, data, out, size = (given.pop(key) for key in ("recipe", "data", "out", "size"))
    try:
        run_recipe(find_recipe(name, size), data, out, RunOptions(**given), show=_show)
    except (KeyglueError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


def _show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
