"""What all model configurations share: frozen dataclasses that read and write config.json."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from typing_extensions import Self, dataclass_transform

from keyglue.base.errors import ConfigError, InputError
from keyglue.base.files import atomic_write

CONFIG_NAME = "config.json"
# Integers up to here are floating point numbers, too.
_LARGEST = 2**53
C = TypeVar("C", bound="PretrainedConfig")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config_dataclass(cls: type[C]) -> type[C]:
    """Make ``cls`` a frozen keyword-only dataclass whose constructor keeps unknown keywords in ``extra``.

    Configurations found in the wild hold keys of other libraries, which have to survive a round trip. A keyword that
    is nearly the name of a field is an error, because it is far more often a typing mistake than a foreign key.
    """
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    dataclass_init = made.__init__
    names = [field.name for field in dataclasses.fields(made)]

    def init(self: C, /, **values: Any) -> None:
        given = values.pop("extra", {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"extra must be a dictionary of other libraries' settings, got {given!r}.")
        extra = dict(cast("Mapping[str, Any]", given))
        extra.update({key: values.pop(key) for key in list(values) if key not in names})
        for key in extra:
            close = difflib.get_close_matches(key, names, n=1, cutoff=0.88)
            if close:
                raise ConfigError(f"{made.__name__} has no setting {key!r}. Did you mean {close[0]!r}?")
        dataclass_init(self, extra=extra, **values)

    made.__init__ = init  # pyright: ignore[reportAttributeAccessIssue]
    return made


@config_dataclass
class PretrainedConfig:
    """Settings of a model, frozen once made.

    Args:
        output_attentions: Return the attention probabilities of every layer by default.
        output_hidden_states: Return the hidden states of every layer by default.
        return_dict: Return an output object (true) or a plain tuple (false) by default.
        dtype: Name of the floating point type that the weights were saved in, as written in config.json.
        extra: Keys of other libraries, kept for writing back.
    """

    model_type: ClassVar[str] = ""

    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    dtype: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if self.dtype is not None:
            object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # 1 is as good as 1.0 here, but other readers of config.json take only the latter.
            if field.type == "float" and type(value) is int and abs(value) < _LARGEST:
                object.__setattr__(self, field.name, float(value))
        try:
            self.validate()
        except ConfigError:
            raise
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            # A value of a type that no check expected, as only a damaged or foreign config.json holds.
            raise ConfigError(f"{type(self).__name__} cannot be made of these values: {error}") from error

    def validate(self) -> None:
        """Check every value; subclasses extend it.

        Raises:
            ConfigError: A value is of the wrong type, out of range or contradicts another one.
        """
        for name in ("output_attentions", "output_hidden_states", "return_dict"):
            require_bool(self, name)

    def __getattr__(self, name: str) -> Any:
        # Only called for names that are not fields: keys of other libraries stay reachable as attributes.
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some values changed.

        Raises:
            ConfigError: There is no such setting, or a value is impossible.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        _refuse_unknown(type(self), changes, {*values, *self.extra})
        return type(self)(**{**values, **changes})

    def with_dtype(self, dtype: str) -> Self:
        """Return a copy that names another floating point type, for itself and the configurations that it holds."""
        changes: dict[str, Any] = {"dtype": dtype}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, PretrainedConfig):
                changes[field.name] = value.with_dtype(dtype)
        if "torch_dtype" in self.extra:
            # The elder name, which would contradict the new one.
            changes["extra"] = {**self.extra, "torch_dtype": dtype}
        return self.replace(**changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values as written to config.json, foreign keys included."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            if field.name == "extra":
                continue
            value = getattr(self, field.name)
            if isinstance(value, PretrainedConfig):
                value = value.to_dict()
            elif isinstance(value, tuple):
                value = list(cast("tuple[Any, ...]", value))
            values[field.name] = value
        if values["dtype"] is None:
            del values["dtype"]
        return {"model_type": self.model_type, **dict(self.extra), **values}

    def to_json_string(self) -> str:
        """Return the JSON text of ``to_dict``.

        Raises:
            ConfigError: A foreign setting holds something that JSON can't.
        """
        try:
            return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{type(self).__name__} cannot be written as JSON: {error}") from error

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **overrides: Any) -> Self:
        """Build a configuration from the content of a config.json.

        Args:
            config_dict: Parsed JSON object. Unknown keys are kept for writing back.
            **overrides: Values that replace those of ``config_dict``.

        Raises:
            ConfigError: ``model_type`` names another kind of model, an override is unknown, or a value is impossible.
        """
        if not isinstance(config_dict, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"a configuration must be a JSON object, got {type(config_dict).__name__}.")
        found = config_dict.get("model_type", cls.model_type)
        if cls.model_type and found != cls.model_type:
            raise ConfigError(
                f"this configuration has model_type {found!r}; {cls.__name__} reads model_type {cls.model_type!r}."
            )
        values = {key: value for key, value in config_dict.items() if key != "model_type"}
        _refuse_unknown(cls, overrides, {*values, *(field.name for field in dataclasses.fields(cls))})
        return cls(**{**values, **overrides})

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str]) -> Self:
        """Build a configuration from a JSON file."""
        return cls.from_dict(read_json(path))

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str] | None = None, **kwargs: Any) -> Self:
        """Load the configuration of a bundled model, a local folder or a Hub id.

        Args:
            name_or_path: As for the models' ``from_pretrained``, or the path of a config.json.
            **kwargs: ``revision``, ``cache_dir``, ``local_files_only`` and ``token`` choose where to look; everything
                else replaces a value of the configuration.
        """
        from keyglue.base.hub import Source

        source, overrides = Source.split(name_or_path, kwargs)
        file = source.single_file
        path = file if file is not None and file.suffix == ".json" else source.file(CONFIG_NAME)
        return cls.from_dict(read_json(path), **overrides)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write config.json into a folder, which is made if it is not there.

        Raises:
            InputError: ``save_directory`` is a file.
        """
        atomic_write(model_folder(save_directory) / CONFIG_NAME, self.to_json_string())


def model_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder that a model is to be saved in, made where it is not there.

    Raises:
        InputError: It is a file.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot save to {folder}: it is a file. Give the name of a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _refuse_unknown(cls: type[PretrainedConfig], given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ``ConfigError`` for keywords that would change nothing, because no setting has their name."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{cls.__name__} has no setting {name!r}.{hint}")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ConfigError: The file is missing, is not JSON, or holds something else than an object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a JSON object, found {type(content).__name__}.")
    return cast("dict[str, Any]", content)


def require_bool(config: object, name: str) -> None:
    """Raise ``ConfigError`` unless attribute ``name`` is true or false."""
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}.")


def require_int(config: object, name: str, minimum: int) -> None:
    """Raise ``ConfigError`` unless attribute ``name`` is an integer of at least ``minimum``."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} must be an integer of at least {minimum}, got {value!r}.")


def require_number(config: object, name: str, minimum: float = -math.inf, maximum: float = math.inf) -> None:
    """Raise ``ConfigError`` unless attribute ``name`` is a finite number (an integer will do) within the bounds."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ConfigError(f"{name} must be a finite number, got {value!r}.")
    if not minimum <= value <= maximum:
        raise ConfigError(f"{name} must lie between {minimum} and {maximum}, got {value!r}.")
