"""``keyglue calibrate``: the probability that two images show the same thing at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from keyglue.ui import options
from keyglue.ui.console import print_rows


def calibrate(
    model: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the model, as training writes it.")],
    data: Annotated[
        list[Path], typer.Option("--data", metavar="PATH", help="Folder of images or .tar file; again for more.")
    ],
    pairs: Annotated[
        int, typer.Option("--pairs", min=8, metavar="N", help="Image pairs, half of them unrelated.")
    ] = 400,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of all randomness.")] = 7,
    device: options.Compute = None,
) -> None:
    """Calibrate a model's match_probability on photographs that training leaves out.

    The result goes to FOLDER/config.json. Every pair result has a match_probability from then on.
    """
    from keyglue.base.config import CONFIG_NAME, read_json
    from keyglue.base.devices import resolve_device
    from keyglue.base.files import atomic_write
    from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
    from keyglue.training.calibration import calibrate as fit
    from keyglue.training.calibration import describe_calibration

    loaded = LightGlueForKeypointMatching.from_pretrained(model, device=resolve_device(device))
    found = fit(loaded, data, pairs=pairs, seed=seed)
    # Only this value changes; all else in the file stays as it is.
    settings = {**read_json(model / CONFIG_NAME), "match_probability": list(found.weights)}
    atomic_write(model / CONFIG_NAME, json.dumps(settings, indent=2, sort_keys=True) + "\n")
    print_rows([*describe_calibration(found), ("written to", str(model / "config.json"))])
