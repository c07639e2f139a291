"""What the verbs print: results on standard output; progress, warnings and errors on standard error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")


def console(*, error: bool = False) -> Console:
    """Return a console for standard output, or for standard error."""
    from rich.console import Console

    return Console(stderr=error, highlight=False)


def print_error(text: str) -> None:
    """Print one red line to standard error."""
    typer.secho(f"Error: {' '.join(text.split())}", fg=typer.colors.RED, err=True)


def print_hint(text: str) -> None:
    """Print one yellow line to standard error."""
    typer.secho(" ".join(text.split()), fg=typer.colors.YELLOW, err=True)


def print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning as one line, without the place in the code; it stands in for ``warnings.showwarning``."""
    print_hint(f"Warning: {message}")


def print_rows(rows: Sequence[tuple[str, str]], *, error: bool = False) -> None:
    """Print lines of a name and a value, aligned; a value is never broken, so that paths can be copied."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        typer.echo(f"{typer.style(name.ljust(width), bold=True)}  {value}", err=error)


def with_progress(items: Sequence[Item], description: str) -> Iterable[Item]:
    """Yield the items under a progress bar, which is shown on a terminal only."""
    from rich.progress import track

    where = console(error=True)
    return track(items, description, console=where, transient=True, disable=not where.is_terminal)
