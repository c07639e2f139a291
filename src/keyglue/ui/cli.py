"""The command ``keyglue``: its verbs, and what all of them do about errors, warnings and Ctrl-C."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from keyglue import __version__
from keyglue.base.errors import KeyglueError
from keyglue.ui.calibrate import calibrate
from keyglue.ui.console import print_error, print_warning
from keyglue.ui.convert import convert
from keyglue.ui.extract import extract
from keyglue.ui.match import match
from keyglue.ui.models import models, version
from keyglue.ui.reconstruct import reconstruct, show
from keyglue.ui.score import score
from keyglue.ui.stages import features, map_, matches, pairs
from keyglue.ui.startup import quick_exit
from keyglue.ui.train import train


class _Group(TyperGroup):
    """Verbs whose expected errors end in one line of text and exit code 1, with no traceback."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = print_warning
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                raise
            except (KeyglueError, OSError) as error:
                if ctx.params["debug"]:
                    raise
                print_error(str(error))
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                print_error("interrupted.")
                raise typer.Exit(130) from None


# Plain help: the panels of rich would double the time that `keyglue --help` takes.
app = typer.Typer(
    cls=_Group, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True
)
for verb in (
    match,
    extract,
    reconstruct,
    show,
    features,
    pairs,
    matches,
    map_,
    score,
    train,
    calibrate,
    convert,
    models,
    version,
):
    app.command(verb.__name__.rstrip("_"))(verb)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"keyglue {__version__}")
        raise typer.Exit


@app.callback()
def _keyglue(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Find the points of two photographs that are the same point of the world."""


def main() -> None:
    """Run the command line."""
    with quick_exit():
        app()
