"""Options that several verbs share, and checks of where results go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="Bundled name, folder, checkpoint or Hub id. Default: the bundled one."
    ),
]
MaxKeypoints = Annotated[
    int | None, typer.Option("--max-keypoints", min=1, metavar="N", help="Keep only the best keypoints.")
]
Resize = Annotated[
    int | None, typer.Option("--resize", min=1, metavar="PIXELS", help="Long side of the image that the model sees.")
]
Compute = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps. Default: the best there is.")]
Precision = Annotated[
    str | None, typer.Option("--dtype", help="float32, float16 or bfloat16; the quickest unless given.")
]
Compile = Annotated[
    str | None,
    typer.Option(
        "--compile",
        metavar="MODE",
        help="Compile the model with torch.compile: default, reduce-overhead, max-autotune. For long runs on CUDA.",
    ),
]
Equalize = Annotated[
    bool, typer.Option("--equalize/--no-equalize", help="Raise the contrast of dark and hazy images first.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make results again that are there already.")]


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given; the functions called have their own defaults for the others."""
    return {name: value for name, value in options.items() if value is not None}


def check_target(path: Path | None, option: str, suffixes: tuple[str, ...] = ()) -> None:
    """Refuse a file that could not be written, before any work is done.

    Args:
        path: The file, or None where none was asked for.
        option: Name of the option, for the message.
        suffixes: Accepted suffixes; empty for any.

    Raises:
        typer.BadParameter: The folder is not there, the path is a folder, or the suffix is another one.
    """
    if path is None:
        return
    problem = None
    if suffixes and path.suffix.lower() not in suffixes:
        problem = f"{path} has to end in {' or '.join(suffixes)}."
    elif path.is_dir():
        problem = f"{path} is a folder. Give the name of a file."
    elif not path.parent.is_dir():
        problem = f"{path} cannot be written: there is no folder {path.parent}."
    if problem is not None:
        raise typer.BadParameter(problem, param_hint=option)
