"""Words of the documented API and the forms they are accepted in: enum, text or number, ours or another library's."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeVar

from PIL import Image

from keyglue.base.errors import InputError

E = TypeVar("E", bound=Enum)


class ChannelDimension(str, Enum):
    """Where the channels of an image array are."""

    FIRST = "channels_first"
    LAST = "channels_last"
    NONE = "none"


class TensorType(str, Enum):
    """Library whose tensors are wanted."""

    PYTORCH = "pt"
    NUMPY = "np"
    TENSORFLOW = "tf"
    JAX = "jax"


def resolve_channel_dimension(value: Any) -> ChannelDimension:
    """Return a channel dimension from an enum (of any library) or its text.

    Raises:
        InputError: It is not "channels_first", "channels_last" or "none".
    """
    return _resolve(value, ChannelDimension, "channel dimension")


def resolve_tensor_type(value: Any) -> TensorType:
    """Return a tensor type from an enum (of any library) or its text.

    Raises:
        InputError: It is not "pt", "np", "tf" or "jax".
    """
    return _resolve(value, TensorType, "tensor type")


def resolve_resampling(value: Any) -> Image.Resampling:
    """Return Pillow's filter from its enum, its name in any case, its number, or torchvision's enum.

    Raises:
        InputError: There is no such filter.
    """
    key = getattr(value, "value", value)
    if isinstance(key, str):
        name = key.upper().removesuffix("-EXACT")
        if name in Image.Resampling.__members__:
            return Image.Resampling[name]
    elif isinstance(key, int) and not isinstance(key, bool) and key in list(Image.Resampling):
        return Image.Resampling(key)
    accepted = ", ".join(f"{item.name.lower()!r} or {int(item)}" for item in sorted(Image.Resampling))
    raise InputError(f"unknown resampling filter {value!r}. Use one of {accepted}.")


def _resolve(value: Any, kind: type[E], what: str) -> E:
    key = getattr(value, "value", value)
    for item in kind:
        if key == item.value:
            return item
    accepted = ", ".join(repr(item.value) for item in kind)
    raise InputError(f"unknown {what} {value!r}. Use one of {accepted}.")
