"""``keyglue score``: how good a model is on a set of image pairs, and how good what it is compared with."""

from __future__ import annotations

import shlex
import sys
from enum import Enum
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from keyglue.ui import options
from keyglue.ui.console import console, print_hint, print_rows, with_progress

if TYPE_CHECKING:
    from keyglue.scoring.report import Table


class Set(str, Enum):
    """Sets that ``score`` reads; keyglue.scoring.run.SETS says how."""

    oxford_affine = "oxford_affine"
    homogr = "homogr"
    strecha = "strecha"
    hpatches = "hpatches"
    warps = "warps"
    homographies = "homographies"
    poses = "poses"


def score(
    dataset: Annotated[Set, typer.Argument(metavar="SET", help="One of " + ", ".join(Set) + ".", show_default=False)],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of the set.")],
    model: options.Model = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Compare with nearest neighbours on the same keypoints, SIFT and ORB.")
    ] = False,
    all_layers: Annotated[
        bool, typer.Option("--all-layers", help="Also run the model with neither early stop nor pruning.")
    ] = False,
    max_keypoints: Annotated[
        int, typer.Option("--max-keypoints", min=1, metavar="N", help="Most keypoints an image, for every method.")
    ] = 1024,
    resize: options.Resize = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Score only N pairs, spread over the set.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything, each pair included.")
    ] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables.")] = None,
    device: options.Compute = None,
    dtype: options.Precision = None,
) -> None:
    """Score a model on a set of image pairs with ground truth.

    Prints a table with one row a method. Errors are measured in a frame that belongs to the set, so that numbers stay
    comparable whatever --resize says. docs/scoring.md states the protocols and the layout of each set.
    """
    options.check_target(json_file, "--json", (".json",))
    options.check_target(markdown_file, "--markdown", (".md",))

    from keyglue.scoring import run

    report = run.score(
        dataset.value,
        data,
        model=model,
        baselines=baselines,
        all_layers=all_layers,
        max_keypoints=max_keypoints,
        resize=resize,
        limit=limit,
        device=device,
        dtype=dtype,
        progress=lambda pairs: with_progress(pairs, "scoring"),
        command=shlex.join(["keyglue", *sys.argv[1:]]),
    )
    written: list[Path] = []
    if json_file is not None:
        report.save_json(json_file)
        written.append(json_file)
    if markdown_file is not None:
        report.save_markdown(markdown_file)
        written.append(markdown_file)
    print_hint(report.rule)
    for table in report.tables():
        _print(table)
    if written:
        print_rows([("written", str(path)) for path in written], error=True)


def _print(table: Table) -> None:
    """Print a table; where the terminal is too narrow, in parts that each begin with the first column."""
    from rich import box
    from rich.table import Table as RichTable

    where = console()
    widths = [
        max(len(word) for word in [*title.split(), *(row[index] for row in table.rows)])
        for index, title in enumerate(table.columns)
    ]
    for part in _parts(widths, where.width):
        title = table.title if part[0] == 1 else None
        shown = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for index in (0, *part):
            heading = fill(table.columns[index], widths[index])
            shown.add_column(heading, justify="right" if index else "left", min_width=widths[index])
        for row in table.rows:
            shown.add_row(*(row[index] for index in (0, *part)))
        where.print(shown)


def _parts(widths: list[int], width: int) -> list[list[int]]:
    """Return the columns after the first in groups that fit into ``width`` beside it."""
    padding = 3
    parts: list[list[int]] = [[]]
    for index in range(1, len(widths)):
        taken = sum(widths[column] + padding for column in (0, *parts[-1], index))
        if parts[-1] and taken > width:
            parts.append([])
        parts[-1].append(index)
    return parts
