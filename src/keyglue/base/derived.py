"""Values that are made from a model's parameters, kept as long as the parameters stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class Derived(Generic[T]):
    """Something made from parameters, such as weights laid out for a fast path; made again when they change.

    Copies and pickles of it are empty, so that a model that holds one can be copied and pickled.
    """

    def __init__(self) -> None:
        # The value, the state that it was made in, and the parameters, so that nothing else gets their memory.
        self._kept: tuple[T, Hashable, list[Tensor]] | None = None

    def get(self, parameters: Iterable[Tensor], make: Callable[[], T], settings: Hashable = None) -> T:
        """Return what ``make`` returns, or returned last time if neither parameters nor ``settings`` have changed.

        Args:
            parameters: What the value is made from.
            make: Makes the value.
            settings: What else it depends on.
        """
        tensors = [parameter.detach() for parameter in parameters]
        state = (settings, tuple(_state(tensor) for tensor in tensors))
        kept = self._kept
        if kept is None or kept[1] != state:
            kept = (make(), state, tensors)
            self._kept = kept
        return kept[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return Derived, ()


def _state(tensor: Tensor) -> Hashable:
    """Return what changes when a tensor does: its memory, its version and, as not all changes count, a sum on a CPU."""
    # Tensors of inference mode have no version. Others share theirs with the parameter, but not with its ``.data``.
    version = -1 if tensor.is_inference() else tensor._version  # pyright: ignore[reportPrivateUsage]
    total = float(tensor.sum()) if tensor.device.type == "cpu" else 0.0
    return tensor.data_ptr(), tensor.device, tensor.dtype, version, total
