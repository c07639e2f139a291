"""Gradients of one step: batches made ahead or in between, on one copy of the model or on one for each thread.

On a CPU two threads of one core each, on their own batches, do more than two cores on one batch: they wait for each
other once a step instead of once an operation.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from keyglue.training.task import Task


@dataclasses.dataclass
class _Result:
    losses: list[Tensor]
    parts: list[dict[str, Tensor]]
    waited: float = 0.0


class Workers:
    """Copies of a model that share its weights and have gradients of their own.

    Args:
        task: Makes batches and losses.
        module: The model; its gradients are the result.
        settings: ``threads``, ``accumulate`` and ``loaders`` of LoopSettings are used.
        rank: Number of this process.
    """

    def __init__(self, task: Task, module: nn.Module, settings: Any, rank: int) -> None:
        self._task, self._settings, self._rank = task, settings, rank
        self._modules = [module, *(_sharing_copy(module) for _ in range(settings.threads - 1))]
        self._pool = ThreadPoolExecutor(max(settings.threads, 1))
        self._loading = ThreadPoolExecutor(settings.loaders) if settings.loaders else None
        self._ahead: dict[tuple[int, int], Future[Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._loading is not None:
            self._loading.shutdown(cancel_futures=True)

    def gradients(self, step: int) -> tuple[tuple[Tensor, dict[str, Tensor]], float]:
        """Compute the mean gradient of all batches of a step and leave it in the model's parameters.

        Returns:
            The mean loss and the means of its parts, and the seconds in which a thread had to wait for a batch.
        """
        if self._settings.threads == 1:
            results = [self._work(0, step)]
        else:
            results = list(self._pool.map(lambda thread: self._work(thread, step), range(self._settings.threads)))
            self._sum_gradients()
        losses = [loss for result in results for loss in result.losses]
        parts = [part for result in results for part in result.parts]
        means = {name: _mean([part[name] for part in parts]) for name in parts[0]}
        return (_mean(losses), means), sum(result.waited for result in results) / len(results)

    def _work(self, thread: int, step: int) -> _Result:
        """Do the batches of one thread."""
        settings, module = self._settings, self._modules[thread]
        result = _Result([], [])
        if settings.threads > 1:
            torch.set_num_threads(1)  # of this thread alone
        for part in range(settings.accumulate):
            began = time.monotonic()
            batch = self._batch(thread, step * settings.accumulate + part)
            result.waited += time.monotonic() - began
            loss, parts = self._task.loss(module, batch)
            (loss / (settings.accumulate * settings.threads)).backward()
            result.losses.append(loss.detach())
            result.parts.append({name: value.detach() for name, value in parts.items()})
        return result

    def _batch(self, thread: int, index: int) -> Any:
        stream = self._rank * self._settings.threads + thread
        make: Callable[[int, int], Any] = self._task.batch
        if self._loading is None:
            return make(stream, index)
        # Always two ahead: one to be used next, one in the making.
        for later in range(index, index + 3):
            if (stream, later) not in self._ahead:
                self._ahead[stream, later] = self._loading.submit(make, stream, later)
        return self._ahead.pop((stream, index)).result()

    def _sum_gradients(self) -> None:
        first, *others = (list(module.parameters()) for module in self._modules)
        for copies in zip(first, *others, strict=True):
            for other in copies[1:]:
                if other.grad is not None and copies[0].grad is not None:
                    copies[0].grad += other.grad
                other.grad = None


def _sharing_copy(module: nn.Module) -> nn.Module:
    """Return a copy whose parameters are the same memory; gradients are its own."""
    other = copy.deepcopy(module)
    for own, shared in zip(other.parameters(), module.parameters(), strict=True):
        own.data = shared.data
    return other


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(dim=0)
