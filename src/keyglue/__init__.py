"""keyglue: which points of two photographs are the same point of the world.

Names are imported when they are first used, so that ``import keyglue`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> module that defines it
_PUBLIC = {
    "AutoConfig": "pipelines.auto",
    "AutoImageProcessor": "pipelines.auto",
    "AutoModel": "pipelines.auto",
    "AutoModelForKeypointDetection": "pipelines.auto",
    "AutoModelForKeypointMatching": "pipelines.auto",
    "BatchFeature": "images.batch",
    "Camera": "multiview.cameras",
    "CheckpointError": "base.errors",
    "ConfigError": "base.errors",
    "Features": "base.types",
    "HubError": "base.errors",
    "ImageError": "base.errors",
    "InputError": "base.errors",
    "KeyglueError": "base.errors",
    "KeypointMatchingPipeline": "pipelines.keypoint_matching",
    "LicenceWarning": "base.errors",
    "LightGlue": "pipelines.original",
    "LightGlueConfig": "matching.lightglue.configuration",
    "LightGlueForKeypointMatching": "matching.keypoint_matching",
    "LightGlueImageProcessor": "images.processor",
    "LightGlueKeypointMatchingOutput": "base.outputs",
    "LightGlueMatcher": "matching.lightglue.lightglue",
    "Matcher": "pipelines.matcher",
    "Matches": "base.types",
    "MissingDependencyError": "base.errors",
    "PairResult": "pipelines.result",
    "Photograph": "pipelines.photograph",
    "PreTrainedModel": "base.pretrained",
    "PretrainedConfig": "base.config",
    "SIFT": "pipelines.original",
    "SIFTConfig": "keypoints.sift",
    "SIFTForKeypointDetection": "keypoints.sift",
    "StoreError": "base.errors",
    "SuperPoint": "pipelines.original",
    "SuperPointConfig": "keypoints.superpoint",
    "SuperPointForKeypointDetection": "keypoints.superpoint",
    "SuperPointImageProcessor": "images.superpoint_processor",
    "SuperPointKeypointDescriptionOutput": "base.outputs",
    "fit": "training.fit",
    "load_image": "pipelines.original",
    "match": "pipelines.matcher",
    "match_nearest": "matching.nearest_neighbor",
    "match_pair": "pipelines.original",
    "pipeline": "pipelines.keypoint_matching",
    "rbd": "pipelines.original",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'keyglue' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"keyglue.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
