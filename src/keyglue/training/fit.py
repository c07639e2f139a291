"""``keyglue.fit``: a matcher for one's own photographs in one call."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from keyglue.base.bundled import DEFAULT_MODEL
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.training.recipes import finetune
from keyglue.training.run import RunOptions, run_recipe


def fit(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "keyglue-fit",
    *,
    model: str = DEFAULT_MODEL,
    minutes: float = 10.0,
    **options: Any,
) -> LightGlueForKeypointMatching:
    """Fine-tune a matcher on photographs and load the result.

    Pairs are made from single photographs by homographies and changes of light, so nothing has to be labelled; scenes
    with depth or a COLMAP model are used as they are. The detector stays as it is.

    Args:
        data: A folder of photographs, a .tar file or a scene, or several of them.
        out: Folder of the run; the model goes to ``out``/model. A run that is there already is gone on with.
        model: Model to begin with.
        minutes: How long to train in all.
        **options: Further fields of ``keyglue.training.run.RunOptions``: ``device``, ``threads``, ``pairs``,
            ``steps`` (instead of ``minutes``), ...

    Returns:
        The trained model, on the CPU.

    Raises:
        InputError: There is nothing to train on.
    """
    sources = [data] if isinstance(data, str | os.PathLike) else list(data)
    chosen = RunOptions(resume=True, minutes=None if "steps" in options else minutes, **options)
    outcome = run_recipe(dataclasses.replace(finetune(), start=model), sources, out, chosen)
    return LightGlueForKeypointMatching.from_pretrained(outcome.model)
