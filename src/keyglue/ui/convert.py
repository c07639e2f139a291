"""``keyglue convert``: from the original layout of a checkpoint to the documented one, and back."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from keyglue.ui import options
from keyglue.ui.console import print_rows


class Layout(str, Enum):
    """Layouts of a checkpoint that can be written."""

    transformers = "transformers"
    original = "original"


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Checkpoint file, folder or Hub id.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    detector: Annotated[
        Path | None,
        typer.Option("--detector", metavar="FILE", help="SuperPoint's own checkpoint, to go with a matcher."),
    ] = None,
    to: Annotated[Layout, typer.Option("--to", help="Layout to write.")] = Layout.transformers,
    dtype: options.Precision = None,
) -> None:
    """Convert a checkpoint to another layout.

    "original" is the flat file of the original repository (.pth), "transformers" a folder with config.json,
    model.safetensors and preprocessor_config.json.
    """
    from keyglue.pipelines.convert import convert_checkpoint

    written = convert_checkpoint(source, output, detector=detector, to=to.value, dtype=dtype)
    print_rows([("written", str(path)) for path in written])
