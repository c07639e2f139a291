"""What the loop trains: something that makes batches, computes a loss, can be validated and exported."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Task(ABC):
    """One kind of training.

    Attributes:
        module: What is trained, on the device of training.
        pairs_per_batch: Number of image pairs that a batch holds, for the speed that is shown.
    """

    module: nn.Module
    pairs_per_batch: int

    @abstractmethod
    def batch(self, stream: int, index: int) -> Any:
        """Make a batch: a function of its arguments alone, so that training can resume anywhere and several can load.

        Args:
            stream: Which of several parallel sequences of batches.
            index: Position in that sequence.
        """

    @abstractmethod
    def loss(self, module: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss () of a batch and values to show.

        Args:
            module: ``self.module`` or a copy of it.
            batch: As ``batch`` makes it.
        """

    @abstractmethod
    def baseline(self) -> dict[str, float]:
        """Return the scores that ``validate`` gives to what a trained model has to beat."""

    @abstractmethod
    def validate(self, module: nn.Module) -> dict[str, float]:
        """Return scores on held-out data, precision and recall among them."""

    @abstractmethod
    def export(self, module: nn.Module, folder: Path) -> None:
        """Write a model folder that ``from_pretrained`` loads."""


def generator_for(*key: int) -> torch.Generator:
    """Return a generator on the CPU whose numbers depend on ``key`` alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
