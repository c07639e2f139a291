"""How quick training is on this machine: images and pairs a second, forward, backward and optimiser, data apart.

    python benchmarks/training.py [--seconds 20] [--threads 1 2] [--device cuda] [--only superpoint] [--json FILE]

One process is one measurement of each row; run it on a quiet machine, with and without the GLIBC_TUNABLES of
docs/training.md. "data" is the rate at which one thread makes batches, which adds to the time of a step unless loaders
make them ahead on other cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from keyglue.base.devices import has_fast_bfloat16, resolve_device
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.training.data import load_data
from keyglue.training.homographies import ViewSettings
from keyglue.training.lightglue import MatcherSettings, MatcherTask
from keyglue.training.loop import LoopSettings
from keyglue.training.recipes import matcher_config
from keyglue.training.report import synchronise
from keyglue.training.superpoint import SuperPointSettings, SuperPointTask
from keyglue.training.task import Task
from keyglue.training.workers import Workers

ASSETS = Path(__file__).parent.parent / "assets"


class Fixed(Task):
    """A task whose batches are made beforehand, so that only the model is measured."""

    def __init__(self, task: Task, batches: int) -> None:
        self.task, self.module, self.pairs_per_batch = task, task.module, task.pairs_per_batch
        self.batches = [task.batch(0, index) for index in range(batches)]

    def batch(self, stream: int, index: int) -> Any:
        """Return one of the batches."""
        return self.batches[(index + stream) % len(self.batches)]

    def loss(self, module: Any, batch: Any) -> Any:
        """Return the task's loss."""
        return self.task.loss(module, batch)

    def baseline(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def validate(self, module: Any) -> dict[str, float]:
        """Return nothing."""
        return {}

    def export(self, module: Any, folder: Path) -> None:
        """Write nothing."""


def pairs_per_second(task: Task, threads: int, seconds: float, device: torch.device) -> float:
    """Return the pairs a second of whole steps: forward, backward, optimiser."""
    settings = LoopSettings(steps=1, learning_rate=1e-4, threads=threads)
    optimizer = torch.optim.AdamW((p for p in task.module.parameters() if p.requires_grad), lr=1e-4)
    done, step, spent = 0, 0, 0.0
    with Workers(task, task.module, settings, 0) as workers:
        while spent < seconds:
            synchronise(device)
            began = time.perf_counter()
            workers.gradients(step)
            optimizer.step()
            optimizer.zero_grad()
            synchronise(device)
            step += 1
            if step > 2:  # the first ones find memory and choose kernels
                spent += time.perf_counter() - began
                done += threads * task.pairs_per_batch
    return done / spent


def data_per_second(task: Task, seconds: float, device: torch.device) -> float:
    """Return the pairs a second that one thread makes batches of."""
    task.batch(5, 999)  # fills what is kept from batch to batch
    began, index = time.perf_counter(), 1000
    while time.perf_counter() - began < seconds:
        task.batch(5, index)
        index += 1
    synchronise(device)
    return (index - 1000) * task.pairs_per_batch / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device")
    parser.add_argument("--pairs", type=int, default=0, help="pairs a batch; 4 on a CPU and 64 on a GPU unless given")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--data", nargs="+", default=[str(ASSETS)])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = resolve_device(options.device)
    pairs = options.pairs or (64 if device.type == "cuda" else 4)
    if device.type == "cpu":
        torch.set_num_threads(1)
    about = {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "bfloat16": has_fast_bfloat16(device),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
        "command": " ".join(sys.argv),
    }
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in about.items()))
    data = load_data(options.data, device)
    detector = SuperPointForKeypointDetection.from_pretrained()
    rows: list[dict[str, Any]] = []
    for name, task in _tasks(options.only, pairs, data, detector):
        fixed = Fixed(task, 2)
        row: dict[str, Any] = {"what": name, "data pairs/s": data_per_second(task, min(options.seconds, 10), device)}
        for threads in options.threads if device.type == "cpu" else [1]:
            row[f"pairs/s, {threads} thread(s)"] = pairs_per_second(fixed, threads, options.seconds, device)
        rows.append(row)
        text = "  ".join(f"{key} {value:.3g}" if isinstance(value, float) else value for key, value in row.items())
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


def _tasks(only: str, pairs: int, data: Any, detector: SuperPointForKeypointDetection) -> Any:
    """Yield name and task of each row."""
    for height, width in ((160, 208), (192, 256), (240, 320)):
        name = f"superpoint {height}x{width} (2 images a pair)"
        if only in name:
            settings = SuperPointSettings(pairs=pairs, views=ViewSettings(size=(height, width)), detector_first=0)
            yield name, SuperPointTask(settings, data.photos, data.held_out)
    for size in ("small", "base"):
        for keypoints in (256, 512):
            name = f"lightglue {size} {keypoints} points"
            if only in name:
                settings = MatcherSettings(config=matcher_config(size), pairs=pairs, keypoints=(keypoints, keypoints))
                settings = dataclasses.replace(settings, unrelated=0.0)
                yield name, MatcherTask(settings, detector, data.photos, data.held_out)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
