"""Which detector belongs to which ``model_type``: the one list that configurations and matchers read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keyglue.base.config import PretrainedConfig
from keyglue.base.errors import ConfigError
from keyglue.keypoints.detector import KeypointDetector
from keyglue.keypoints.sift import SIFTConfig, SIFTForKeypointDetection
from keyglue.keypoints.superpoint import SuperPointConfig, SuperPointForKeypointDetection

DETECTORS: dict[str, tuple[type[PretrainedConfig], type[KeypointDetector]]] = {
    "superpoint": (SuperPointConfig, SuperPointForKeypointDetection),
    "sift": (SIFTConfig, SIFTForKeypointDetection),
}


def detector_config(value: PretrainedConfig | Mapping[str, Any] | None) -> PretrainedConfig:
    """Return a detector's configuration from an object, a dictionary, or nothing (SuperPoint's defaults).

    Raises:
        ConfigError: The dictionary names a detector that keyglue does not have, or holds impossible values.
    """
    if value is None:
        return SuperPointConfig()
    if isinstance(value, PretrainedConfig):
        known = value.model_type
        values: Mapping[str, Any] = {}
    elif isinstance(value, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        known = str(value.get("model_type", "superpoint"))
        values = value
    else:
        raise ConfigError(
            f"keypoint_detector_config must be a configuration or a dictionary, got {type(value).__name__}."
        )
    if known not in DETECTORS:
        raise ConfigError(
            f"the keypoint detector {known!r} is not part of keyglue; known are {', '.join(DETECTORS)}. Code that a "
            "checkpoint brings along is never run: compute its features yourself and pass features=."
        )
    return value if isinstance(value, PretrainedConfig) else DETECTORS[known][0].from_dict(values)


def make_detector(config: PretrainedConfig) -> KeypointDetector:
    """Return a detector with random weights for a configuration."""
    return DETECTORS[config.model_type][1](config)
