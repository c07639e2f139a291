"""A task so small that the loop around it is what is tested; run as a script it trains in a process of its own."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from keyglue.training.distributed import Ranks
from keyglue.training.loop import LoopSettings, Trainer
from keyglue.training.task import Task, generator_for


class ToyTask(Task):
    """Learns a linear map from noisy examples; dropout makes the loss depend on torch's own generator."""

    def __init__(self, seed: int = 0, pause: float = 0.0, dropout: float = 0.1) -> None:
        self.pairs_per_batch = 4
        self.pause = pause
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))
        self.truth = torch.randn(5, 3, generator=generator_for(99))
        self.made: list[tuple[int, int]] = []

    def batch(self, stream: int, index: int) -> Tensor:
        self.made.append((stream, index))
        return torch.randn(4, 5, generator=generator_for(1, stream, index))

    def loss(self, module: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        time.sleep(self.pause)
        loss = (module(batch) - batch @ self.truth).square().mean()
        return loss, {"root": loss.sqrt()}

    def baseline(self) -> dict[str, float]:
        return {"precision": 0.25}

    def validate(self, module: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            x = torch.randn(64, 5, generator=generator_for(7))
            return {"precision": float(1 / (1 + (module.eval()(x) - x @ self.truth).square().mean()))}

    def export(self, module: nn.Module, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(module.state_dict(), folder / "weights.pt")


SETTINGS = {"steps": 40, "learning_rate": 1e-2, "warmup": 5, "log_every": 1, "validate_every": 10, "ema": 0.9}


def main(out: str, pause: str, checkpoint_minutes: str, accumulate: str) -> None:
    torch.manual_seed(3)
    settings = LoopSettings(**SETTINGS, checkpoint_minutes=float(checkpoint_minutes), accumulate=int(accumulate))
    ranks = Ranks.from_environment(torch.device("cpu"))
    dropout = 0.0 if ranks.world > 1 else 0.1
    trainer = Trainer(ToyTask(pause=float(pause), dropout=dropout), settings, Path(out), ranks=ranks, show=show)
    trainer.resume()
    outcome = trainer.run()
    ranks.close()
    show(f"{outcome.step} {outcome.finished}")


def show(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
