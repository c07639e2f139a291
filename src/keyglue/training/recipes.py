"""Recipes: what to train, how, and for how long. Each is a function that returns a frozen dataclass.

``steps`` is the length of a whole run on one CPU; training for a number of minutes stretches the schedule to them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

from keyglue.base.errors import InputError
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.training.homographies import ViewSettings
from keyglue.training.lightglue import MatcherSettings
from keyglue.training.loop import LoopSettings
from keyglue.training.photometric import PhotometricSettings
from keyglue.training.superpoint import SuperPointSettings

Size = Literal["small", "base"]

_STRONG_LIGHT = PhotometricSettings(gamma=2.2, brightness=0.2, contrast=0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run.

    Attributes:
        name: Name of the function that made it.
        task: What is trained, on what data.
        loop: How.
        detector: Model that a matcher's keypoints come from; empty for the start's, or the bundled one.
        start: Model that training begins with, where the recipe needs one; empty for new weights.
    """

    name: str
    task: SuperPointSettings | MatcherSettings
    loop: LoopSettings
    detector: str = ""
    start: str = ""

    def described(self) -> dict[str, Any]:
        """Return what is trained as JSON values; a run is only resumed with the same. How and how long may change."""
        task = {key: _plain(value) for key, value in vars(self.task).items()}
        return json.loads(json.dumps({"name": self.name, **task}, default=str))


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def matcher_config(size: Size) -> LightGlueConfig:
    """Return the settings of a matcher: "small" (6 layers, 128 wide) or "base" (9 layers, 256 wide, as published)."""
    if size == "base":
        return LightGlueConfig()
    if size == "small":
        return LightGlueConfig(descriptor_dim=128, num_hidden_layers=6, num_attention_heads=4)
    raise InputError(f"a matcher's size must be 'small' or 'base', got {size!r}.")


def superpoint_scratch() -> Recipe:
    """SuperPoint from random weights, detector and descriptor together, on homographies of photographs."""
    views = ViewSettings(size=(192, 256), max_angle=40.0, zoom=2.0)
    return Recipe(
        name="superpoint_scratch",
        task=SuperPointSettings(pairs=4, points=320, views=views, light=_STRONG_LIGHT),
        loop=LoopSettings(steps=60_000, learning_rate=8e-4, warmup=50, validate_every=1000),
    )


def superpoint_further() -> Recipe:
    """A trained SuperPoint, on views that differ as much as matching leaves them to: see pipelines/search.py."""
    views = ViewSettings(size=(192, 256), max_angle=40.0, zoom=2.0)
    return Recipe(
        name="superpoint_further",
        task=SuperPointSettings(pairs=4, views=views, light=_STRONG_LIGHT, detector_first=0, settling=0),
        loop=LoopSettings(steps=20_000, learning_rate=4e-4, warmup=100, ema=0.998, validate_every=1000),
        start="keyglue-small",
    )


def lightglue_homography(size: Size = "small") -> Recipe:
    """LightGlue from the start as mutual nearest neighbours, on homographies of photographs."""
    return Recipe(
        name="lightglue_homography",
        task=MatcherSettings(config=matcher_config(size)),
        loop=LoopSettings(steps=10_000, learning_rate=5e-4, validate_every=250, checkpoint_minutes=3),
    )


def lightglue_3d(size: Size = "small") -> Recipe:
    """LightGlue after its homographies, with more keypoints, on made-up rooms and patterns, and on scenes if given."""
    return Recipe(
        name="lightglue_3d",
        task=MatcherSettings(
            config=matcher_config(size),
            pairs=16 if size == "small" else 8,  # 10 GB a process would not leave room for two
            keypoints=(128, 640),
            views=ViewSettings(size=(240, 320), max_angle=40.0, zoom=2.0),
            light=_STRONG_LIGHT,
            scenes=0.2,
            rooms=0.3,
            patterns=0.2,
            unrelated=0.2,
        ),
        loop=LoopSettings(
            steps=5_000,
            accumulate=1 if size == "small" else 2,
            learning_rate=5e-4 if size == "small" else 3e-4,
            ema=0.998,
            validate_every=250,
            checkpoint_minutes=3,
        ),
    )


def lightglue_confidence(size: Size = "small") -> Recipe:
    """The confidence heads of a trained LightGlue, by which it stops early; nothing else changes."""
    return Recipe(
        name="lightglue_confidence",
        task=MatcherSettings(
            config=matcher_config(size),
            stage="confidence",
            pairs=16,
            keypoints=(256, 640),
            views_per_group=3,
            light=_STRONG_LIGHT,
            scenes=0.2,
            rooms=0.3,
            patterns=0.1,
            unrelated=0.3,
            first_stop=3,
        ),
        # Logistic regressions on tokens of about a tenth: they need long steps, and few.
        loop=LoopSettings(steps=200, learning_rate=0.1, warmup=10, ema=0.97, log_every=10, validate_every=100),
    )


def finetune(size: Size = "small") -> Recipe:
    """A trained matcher on photographs of one's own."""
    return Recipe(
        name="finetune",
        task=MatcherSettings(config=matcher_config(size), pairs=16, keypoints=(256, 512)),
        loop=LoopSettings(steps=1_000, learning_rate=1e-4, warmup=50, validate_every=100, log_every=10),
        start="keyglue-small",
    )


def tiny_cpu() -> Recipe:
    """A tiny LightGlue from plain random weights in about a minute: to see that training works."""
    views = ViewSettings(size=(192, 256), difficulty=0.4, max_angle=20, overhang=0)
    return Recipe(
        name="tiny_cpu",
        task=MatcherSettings(
            config=LightGlueConfig(descriptor_dim=64, num_hidden_layers=2, num_attention_heads=2),
            start="random",
            pairs=8,
            keypoints=(128, 128),
            views=views,
            scene_views=views,
            views_per_group=8,
        ),
        loop=LoopSettings(steps=120, learning_rate=2e-3, warmup=20, ema=0.98, log_every=20, validate_every=60),
    )


RECIPES: dict[str, Callable[..., Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        superpoint_scratch,
        superpoint_further,
        lightglue_homography,
        lightglue_3d,
        lightglue_confidence,
        finetune,
        tiny_cpu,
    )
}


def find_recipe(name: str, size: Size | None = None) -> Recipe:
    """Return a recipe by name.

    Args:
        name: Name of one of the functions of this module.
        size: Size of the matcher, for the recipes that have one; a smaller model to begin with then grows to it.

    Raises:
        InputError: There is no such recipe, or it has no size to choose.
    """
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}.")
    if size is None:
        return RECIPES[name]()
    if not RECIPES[name].__code__.co_argcount:
        raise InputError(f"the recipe {name} has no size to choose.")
    recipe = RECIPES[name](size)
    return dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, grow=True))
