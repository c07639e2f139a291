"""``keyglue models`` and ``keyglue version``: what there is, without loading it."""

from __future__ import annotations

import platform
from importlib import metadata

from keyglue import __version__
from keyglue.base.bundled import MODELS
from keyglue.ui.console import console, print_rows


def models() -> None:
    """List the models that are known by name, with their licences.

    Any other Hub id, folder or checkpoint file of a known layout can be given to --model as well.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for heading in ("licence", "where", "description"):
        table.add_column(heading)
    for entry in MODELS:
        table.add_row(entry.name, entry.licence, "bundled" if entry.bundled else "Hub", entry.description)
    console().print(table)


def version() -> None:
    """Show the versions of keyglue, Python and torch."""
    rows = [("keyglue", __version__), ("Python", platform.python_version()), ("torch", metadata.version("torch"))]
    print_rows(rows)
