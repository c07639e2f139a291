"""Recipes: what to train, on what, for how long. Each is a function that returns a frozen dataclass."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from keyglue.training.homographies import ViewSettings
from keyglue.training.loop import LoopSettings
from keyglue.training.superpoint import SuperPointSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run.

    Attributes:
        name: Name of the function that made it.
        task: What is trained, on what data.
        loop: How.
    """

    name: str
    task: SuperPointSettings
    loop: LoopSettings

    def described(self) -> dict[str, Any]:
        """Return the recipe as JSON values, by which a resumed run is compared with the one that it goes on with."""
        text = json.dumps(dataclasses.asdict(self), default=str, sort_keys=True)
        return json.loads(text)


def superpoint_scratch() -> Recipe:
    """SuperPoint from random weights, detector and descriptor together, on homographies of photographs."""
    return Recipe(
        name="superpoint_scratch",
        task=SuperPointSettings(),
        loop=LoopSettings(steps=60_000, learning_rate=4e-4, warmup=200, validate_every=500),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {recipe.__name__: recipe for recipe in (superpoint_scratch,)}
