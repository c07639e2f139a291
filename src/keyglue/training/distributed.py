"""Several processes that train together: started by torchrun, averaging their gradients after every step."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The processes of one training run; a single process is the usual case and costs nothing.

    Attributes:
        rank: Number of this process.
        world: Number of processes.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @classmethod
    def from_environment(cls, device: torch.device) -> Ranks:
        """Join the processes that torchrun started, if it did; NCCL on CUDA, Gloo elsewhere."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that prints, validates and writes."""
        return self.rank == 0

    def average(self, gradients: list[Tensor]) -> None:
        """Replace gradients by their mean over all processes; they travel as one tensor."""
        if self.world == 1:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the tensors of the first."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agree(self, values: list[float], device: torch.device) -> list[float]:
        """Return the first process's values to every process."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.broadcast(tensor, 0)
        return tensor.tolist()

    def close(self) -> None:
        """Leave the group."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """Return the CUDA device of this process where torchrun started several."""
    if device.type == "cuda" and str(device) == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device
