"""Auto classes: the right configuration, model or processor from what a checkpoint says of itself."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from keyglue.base.config import CONFIG_NAME, PretrainedConfig, read_json
from keyglue.base.errors import ConfigError, InputError
from keyglue.base.hub import Source
from keyglue.base.pretrained import PreTrainedModel
from keyglue.images.base_processor import PREPROCESSOR_NAME
from keyglue.images.processor import LightGlueImageProcessor
from keyglue.images.superpoint_processor import SuperPointImageProcessor
from keyglue.keypoints.registry import DETECTORS
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.lightglue.configuration import LightGlueConfig

NameOrPath = str | os.PathLike[str] | None

_CONFIGS: dict[str, type[PretrainedConfig]] = {
    "lightglue": LightGlueConfig,
    **{name: config for name, (config, _) in DETECTORS.items()},
}
_DETECTORS: dict[str, type[PreTrainedModel]] = {name: model for name, (_, model) in DETECTORS.items()}
_MATCHERS: dict[str, type[PreTrainedModel]] = {"lightglue": LightGlueForKeypointMatching}
_PROCESSORS: dict[str, type[LightGlueImageProcessor] | type[SuperPointImageProcessor]] = {
    "lightglue": LightGlueImageProcessor,
    "superpoint": SuperPointImageProcessor,
}


class AutoConfig:
    """The configuration class that belongs to a checkpoint's ``model_type``."""

    @staticmethod
    def for_model(model_type: str, **values: Any) -> PretrainedConfig:
        """Make a configuration of a kind of model: "lightglue", "superpoint" or "sift".

        Raises:
            ConfigError: keyglue has no such model.
        """
        if model_type not in _CONFIGS:
            raise ConfigError(f"unknown model_type {model_type!r}; keyglue has {', '.join(_CONFIGS)}.")
        return _CONFIGS[model_type](**values)

    @staticmethod
    def from_pretrained(name_or_path: NameOrPath = None, **kwargs: Any) -> PretrainedConfig:
        """Load the configuration of a bundled model (the default), a local folder or a Hub id.

        Args:
            name_or_path: Which model.
            **kwargs: As for ``PretrainedConfig.from_pretrained``.

        Raises:
            ConfigError: config.json names a model that keyglue does not have, or holds impossible values.
        """
        source, overrides = Source.split(name_or_path, kwargs)
        values = read_json(source.file(CONFIG_NAME))
        model_type = str(values.get("model_type"))
        if model_type not in _CONFIGS:
            raise ConfigError(f"{source.name} is a {model_type!r} model; keyglue has {', '.join(_CONFIGS)}.")
        overrides.pop("trust_remote_code", None)
        return _CONFIGS[model_type].from_dict(values, **overrides)


class _AutoModel:
    """Common part of the auto models: a table from ``model_type`` to class."""

    _models: ClassVar[dict[str, type[PreTrainedModel]]] = {}

    def __init__(self) -> None:
        raise InputError(f"{type(self).__name__} is not made by itself; use from_pretrained or from_config.")

    @classmethod
    def _class_for(cls, config: PretrainedConfig) -> type[PreTrainedModel]:
        if config.model_type not in cls._models:
            raise InputError(f"{cls.__name__} has no {config.model_type!r}; it offers {', '.join(cls._models)}.")
        return cls._models[config.model_type]

    @classmethod
    def from_config(cls, config: PretrainedConfig, **overrides: Any) -> PreTrainedModel:
        """Make a model with random weights for a configuration."""
        return cls._class_for(config).from_config(config, **overrides)

    @classmethod
    def from_pretrained(
        cls, name_or_path: NameOrPath = None, *, config: PretrainedConfig | None = None, **kwargs: Any
    ) -> Any:
        """Load the model that a checkpoint holds; arguments as for the model's own ``from_pretrained``."""
        known = config or AutoConfig.from_pretrained(name_or_path, **Source.where(kwargs))
        return cls._class_for(known).from_pretrained(name_or_path, config=config, **kwargs)


class AutoModel(_AutoModel):
    """Any model: matchers with their detector, and detectors."""

    _models: ClassVar[dict[str, type[PreTrainedModel]]] = {**_MATCHERS, **_DETECTORS}


class AutoModelForKeypointMatching(_AutoModel):
    """Models that match pairs of images."""

    _models: ClassVar[dict[str, type[PreTrainedModel]]] = _MATCHERS


class AutoModelForKeypointDetection(_AutoModel):
    """Models that find keypoints in images."""

    _models: ClassVar[dict[str, type[PreTrainedModel]]] = _DETECTORS


class AutoImageProcessor:
    """The image processor that belongs to a checkpoint."""

    @staticmethod
    def from_pretrained(
        name_or_path: NameOrPath = None, **kwargs: Any
    ) -> LightGlueImageProcessor | SuperPointImageProcessor:
        """Load the processor of a bundled model (the default), a local folder or a Hub id.

        Args:
            name_or_path: Which model.
            **kwargs: ``revision``, ``cache_dir``, ``local_files_only``, ``token`` choose where to look; everything else
                replaces a setting of the processor. ``use_fast`` and ``trust_remote_code`` are accepted and ignored.
        """
        for ignored in ("use_fast", "trust_remote_code"):
            kwargs.pop(ignored, None)
        source, _ = Source.split(name_or_path, kwargs)
        file = source.find(PREPROCESSOR_NAME)
        kind = "" if file is None else str(read_json(file).get("image_processor_type", "")).removesuffix("Fast")
        by_name = {processor.__name__: processor for processor in _PROCESSORS.values()}
        if kind in by_name:
            return by_name[kind].from_pretrained(name_or_path, **kwargs)
        model_type = AutoConfig.from_pretrained(name_or_path, **Source.where(kwargs)).model_type
        if model_type not in _PROCESSORS:
            raise InputError(f"{source.name} is a {model_type!r} model, which has no image processor in keyglue.")
        return _PROCESSORS[model_type].from_pretrained(name_or_path, **kwargs)
