"""What a processor returns: a mapping of arrays or tensors that a model takes as ``model(**inputs)``."""

from __future__ import annotations

import importlib
from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from keyglue.base.devices import resolve_device, resolve_dtype
from keyglue.base.errors import InputError, MissingDependencyError
from keyglue.images.arrays import as_numpy, find_layout
from keyglue.images.enums import ChannelDimension, TensorType, resolve_channel_dimension, resolve_tensor_type


class BatchFeature(UserDict[str, Any]):
    """Named arrays or tensors, read as a mapping or as attributes.

    Args:
        data: Name -> tensor, array, or list of arrays of one shape.
        tensor_type: "pt", "np", "tf" or "jax" to convert every value; left as they are unless given.
    """

    def __init__(self, data: Mapping[str, Any] | None = None, tensor_type: Any = None) -> None:
        super().__init__(data or {})
        self.convert_to_tensors(tensor_type)

    def __getattr__(self, name: str) -> Any:
        # "data" is looked up in __dict__ because copying and unpickling ask for attributes before it exists.
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(f"this batch has no {name!r}; it has {', '.join(data) or 'nothing'}")

    def convert_to_tensors(self, tensor_type: Any = None) -> Self:
        """Convert every value in place.

        Args:
            tensor_type: "pt", "np", "tf" or "jax", as text or enum; None leaves everything as it is.

        Returns:
            The batch itself.

        Raises:
            InputError: The type is unknown, or arrays of different shapes cannot become one tensor.
            MissingDependencyError: TensorFlow or JAX is asked for and not installed.
        """
        if tensor_type is not None:
            kind = resolve_tensor_type(tensor_type)
            self.data = {name: convert(value, kind, name) for name, value in self.data.items()}
        return self

    def to(self, *args: Any, device: Any = None, dtype: Any = None, non_blocking: bool = False) -> Self:
        """Move torch tensors to a device, and cast those of floating point, in place.

        Args:
            *args: A device, a floating point type, or both, in any order.
            device: The device by name.
            dtype: The floating point type by name. Whole-number tensors keep theirs.
            non_blocking: Do not wait for the copy, where that is possible.

        Returns:
            The batch itself.

        Raises:
            InputError: Something else is given, or the device is not there.
        """
        for value in args:
            if isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, str | int | torch.device):
                device = value
            else:
                raise InputError(f"to() takes a device and a floating point type, got {value!r}.")
        target = None if device is None else resolve_device(device)
        floating = None if dtype is None else resolve_dtype(dtype)

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                cast_to = floating if value.is_floating_point() else None
                return value.to(device=target, dtype=cast_to, non_blocking=non_blocking)
            if isinstance(value, list | tuple):
                items = cast("list[Any]", value)
                return type(items)(move(item) for item in items)
            return value

        self.data = {name: move(value) for name, value in self.data.items()}
        return self


def convert(value: Any, kind: TensorType, name: str = "value") -> Any:
    """Convert a tensor, an array or a list of arrays of one shape to a library's tensor.

    Args:
        value: What to convert.
        kind: The library.
        name: What to call it in an error.

    Raises:
        InputError: The arrays of a list are of different shapes.
        MissingDependencyError: The library is not installed.
    """
    if kind == TensorType.PYTORCH and isinstance(value, Tensor):
        return value
    array = _to_array(value, name)
    if kind == TensorType.NUMPY:
        return array
    if kind == TensorType.PYTORCH:
        return torch.from_numpy(array)
    module, function, library = {
        TensorType.TENSORFLOW: ("tensorflow", "convert_to_tensor", "tensorflow"),
        TensorType.JAX: ("jax.numpy", "asarray", "jax"),
    }[kind]
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(library, None, f"return_tensors={kind.value!r}") from error
    return getattr(found, function)(array)


def _to_array(value: Any, name: str) -> np.ndarray[Any, Any]:
    if isinstance(value, Tensor):
        return as_numpy(value)
    if isinstance(value, list | tuple):
        arrays = [_to_array(item, name) for item in cast("list[Any]", value)]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise InputError(
                f"{name} holds arrays of different shapes, {sorted(shapes)}; they cannot become one tensor."
            )
        return np.stack(arrays) if arrays else np.zeros(0)
    return np.asarray(value)


def make_batch(groups: Sequence[Sequence[Tensor]], layout: ChannelDimension, return_tensors: Any) -> BatchFeature:
    """Put images together as a model takes them.

    Args:
        groups: B pairs, or B times a single image, (C, h, w) each.
        layout: Where the channels go.
        return_tensors: Kind of tensors; None for lists of NumPy arrays, one a group.

    Returns:
        ``pixel_values`` and, where images were padded, ``image_sizes``. Single images have no dimension of their group.
    """
    data: dict[str, Any]
    if return_tensors is None:
        parts = [_stack([group], layout) for group in groups]
        data = {"pixel_values": [as_numpy(values[0]) for values, _ in parts]}
        sizes: Any = [as_numpy(size[0]) for _, size in parts]
    else:
        values, sizes = _stack(groups, layout)
        data = {"pixel_values": values}
    stacked_together = groups if return_tensors is None else [[image for group in groups for image in group]]
    if any(len({image.shape for image in images}) > 1 for images in stacked_together):
        data["image_sizes"] = sizes
    return BatchFeature(data, return_tensors)


def output_layout(data_format: Any, first_image: Any, input_data_format: Any) -> ChannelDimension:
    """Return the layout that pixel values are wanted in; None means that of the first image.

    Raises:
        InputError: It is no layout of an image with channels.
    """
    if data_format is not None:
        layout = resolve_channel_dimension(data_format)
        if layout == ChannelDimension.NONE:
            raise InputError("pixel values have three channels: data_format must be channels_first or channels_last.")
        return layout
    is_array = isinstance(first_image, np.ndarray | Tensor)
    found = find_layout(tuple(first_image.shape), input_data_format) if is_array else ChannelDimension.LAST
    return ChannelDimension.LAST if found == ChannelDimension.NONE else found


def _stack(groups: Sequence[Sequence[Tensor]], layout: ChannelDimension) -> tuple[Tensor, Tensor]:
    """Stack images, padded with zeros to the right and bottom; return also height and width of their contents."""
    sizes = torch.tensor([[image.shape[1:] for image in group] for group in groups])
    height, width = (int(side) for side in sizes.flatten(0, 1).amax(0))
    values = torch.zeros(*sizes.shape[:2], groups[0][0].shape[0], height, width)
    for row, group in zip(values, groups, strict=True):
        for target, image in zip(row, group, strict=True):
            target[:, : image.shape[1], : image.shape[2]] = image
    if layout == ChannelDimension.LAST:
        values = values.movedim(-3, -1)
    return (values.squeeze(1), sizes.squeeze(1)) if sizes.shape[1] == 1 else (values, sizes)
