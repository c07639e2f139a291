"""The loop: learning, schedules, threads and processes, logs, pauses, and that a run goes on as if never stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from keyglue.base.errors import CheckpointError, ConfigError
from keyglue.training.loop import LoopSettings, Trainer, _rate
from keyglue.training.state import read_state, shards, write_state

SCRIPT = Path(__file__).parent / "toy_task.py"


def _toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy_task", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toy = _toy()


def _trainer(folder: Path, *, dropout: float = 0.1, minutes: float | None = None, **changes: Any) -> Trainer:
    settings = LoopSettings(**{**toy.SETTINGS, **changes})
    return Trainer(toy.ToyTask(dropout=dropout), settings, folder, minutes=minutes, show=lambda _: None)


def _losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def _start(out: Path, *, pause: float, checkpoint_minutes: float = 60.0) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(out), str(pause), str(checkpoint_minutes), "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_run_learns_logs_and_exports(tmp_path: Path) -> None:
    outcome = _trainer(tmp_path, steps=200).run()
    losses = _losses(tmp_path)
    assert list(losses) == list(range(1, 201))
    assert sum(list(losses.values())[-20:]) < 0.3 * sum(list(losses.values())[:20])
    assert outcome.finished
    assert outcome.scores["precision"] > 0.5
    assert (outcome.model / "weights.pt").exists()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "held_out_precision" in line] == list(range(0, 201, 10))
    assert all(0 <= line["waiting"] <= 1 for line in lines if "waiting" in line)


def test_resumed_run_has_the_same_losses_and_weights_bit_by_bit(tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = _trainer(tmp_path / "whole")
    whole.run()
    torch.manual_seed(3)
    first = _trainer(tmp_path / "parts")
    stop_at(first, 17)
    assert not first.run().finished
    torch.manual_seed(12345)  # what the process did meanwhile must not matter
    second = _trainer(tmp_path / "parts")
    assert second.resume()
    assert second.step == 17
    second.run()
    assert _losses(tmp_path / "parts") == _losses(tmp_path / "whole")
    for one, other in ((whole.module, second.module), (whole.ema, second.ema)):
        for left, right in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(left, right)


def stop_at(trainer: Trainer, step: int) -> None:
    """Ask a trainer to stop, as a signal does, before the step after ``step``."""
    loss = trainer.task.loss

    def stopping(module: Any, batch: Any) -> Any:
        if trainer.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(module, batch)

    trainer.task.loss = stopping  # type: ignore[method-assign]


def test_sigterm_stops_after_the_step_with_a_whole_state(tmp_path: Path) -> None:
    process = _start(tmp_path, pause=0.05)
    _wait_for(lambda: (tmp_path / "log.jsonl").exists() and len(_losses(tmp_path)) >= 5)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    step = int(output.splitlines()[-1].split()[0])
    assert output.splitlines()[-1].endswith("False")
    found = read_state(tmp_path)
    assert found is not None
    assert found[1]["step"] == step
    assert list(_losses(tmp_path)) == list(range(1, step + 1))


def test_sigkill_loses_only_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(3)
    _trainer(tmp_path / "whole").run()
    out = tmp_path / "killed"
    process = _start(out, pause=0.03, checkpoint_minutes=0.0)
    _wait_for(lambda: (out / "log.jsonl").exists() and len(_losses(out)) >= 12)
    process.kill()
    process.communicate(timeout=60)
    found = read_state(out)
    assert found is not None
    assert found[1]["step"] >= 10
    # A crash may leave half a line and an unfinished state.
    with (out / "log.jsonl").open("a") as stream:
        stream.write('{"step": 13, "lo')
    (out / ".state-unfinished").mkdir(exist_ok=True)
    done = _start(out, pause=0.0).communicate(timeout=60)
    assert done[0].splitlines()[-1] == "40 True", done
    assert _losses(out) == _losses(tmp_path / "whole")


def test_nothing_is_done_while_a_file_pause_is_there(tmp_path: Path) -> None:
    out = tmp_path / "run"
    (tmp_path / "PAUSE").touch()
    trainer = _trainer(out)
    thread = threading.Thread(target=trainer.run)
    thread.start()
    _wait_for(lambda: read_state(out) is not None)
    time.sleep(0.3)
    assert trainer.step == 0
    (tmp_path / "PAUSE").unlink()
    thread.join(timeout=60)
    assert trainer.step == 40


def test_threads_and_loaders_give_the_gradients_of_accumulated_batches(tmp_path: Path) -> None:
    ways = {"one": {"accumulate": 2}, "ahead": {"accumulate": 2, "loaders": 2}}
    losses = {}
    for name, changes in ways.items():
        _trainer(tmp_path / name, dropout=0.0, **changes).run()
        losses[name] = list(_losses(tmp_path / name).values())
    assert losses["ahead"] == losses["one"]
    threaded = _trainer(tmp_path / "threads", dropout=0.0, threads=2, steps=200)
    threaded.run()
    streams = {stream for stream, _ in threaded.task.made}  # type: ignore[attr-defined]
    assert streams == {0, 1}
    found = list(_losses(tmp_path / "threads").values())
    assert sum(found[-20:]) < 0.3 * sum(found[:20])
    # The same two batches in two threads, or one after the other.
    torch.manual_seed(0)
    first, second = _trainer(tmp_path / "a", dropout=0.0, threads=2), _trainer(tmp_path / "b", dropout=0.0)
    loss = sum(second.task.loss(second.module, second.task.batch(stream, 0))[0] for stream in (0, 1)) / 2
    loss.backward()
    from keyglue.training.workers import Workers

    with Workers(first.task, first.module, first.settings, 0) as workers:
        workers.gradients(0)
    for left, right in zip(first.parameters, second.parameters, strict=True):
        torch.testing.assert_close(left.grad, right.grad)


def test_two_processes_train_as_one_on_both_their_batches(tmp_path: Path) -> None:
    out = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(out), "0", "60", "1"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    one = _trainer(tmp_path / "one", dropout=0.0)
    both = _BothStreams(one)
    one.task.batch = both.batch  # type: ignore[method-assign]
    one.run()
    tensors, info = read_state(out) or ({}, {})
    assert info["step"] == 40
    for name, value in one.module.state_dict().items():
        torch.testing.assert_close(tensors[f"module.{name}"], value)


class _BothStreams:
    """Puts the batches of two processes into one: the mean loss of both."""

    def __init__(self, trainer: Trainer) -> None:
        self._make = trainer.task.batch

    def batch(self, stream: int, index: int) -> torch.Tensor:
        return torch.cat([self._make(0, index), self._make(1, index)])


def test_schedule_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    settings = LoopSettings(steps=1000, learning_rate=2.0, warmup=10, final_rate=0.1)
    assert _rate(settings, 4, 0.0) == pytest.approx(1.0)
    assert _rate(settings, 500, 0.5) == pytest.approx(2.0 * 0.55)
    assert _rate(settings, 1000, 1.0) == pytest.approx(0.2)


def test_minutes_stretch_the_schedule_and_count_on_when_resumed(tmp_path: Path) -> None:
    began = time.monotonic()
    trainer = _trainer(tmp_path, minutes=0.02)
    trainer.task.pause = 0.01  # type: ignore[attr-defined]
    outcome = trainer.run()
    assert outcome.finished
    assert 1.0 < time.monotonic() - began < 20
    again = _trainer(tmp_path, minutes=0.02)
    again.resume()
    assert again.run().step == outcome.step


def test_a_gradient_that_is_not_finite_is_dropped(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, dropout=0.0)
    loss = trainer.task.loss
    trainer.task.loss = lambda module, batch: (  # type: ignore[method-assign]
        loss(module, batch * (torch.nan if trainer.step == 3 else 1))
    )
    trainer.run()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.module.parameters())


def test_running_mean_follows_the_weights(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, ema=0.0)
    trainer.run()
    for mean, value in zip(trainer.ema.parameters(), trainer.module.parameters(), strict=True):
        torch.testing.assert_close(mean, value)


def test_another_recipe_is_not_resumed(tmp_path: Path) -> None:
    settings = LoopSettings(**toy.SETTINGS)
    Trainer(toy.ToyTask(), settings, tmp_path, recipe={"name": "a", "points": 3}, show=lambda _: None).run()
    other = Trainer(toy.ToyTask(), settings, tmp_path, recipe={"name": "a", "points": 4}, show=lambda _: None)
    with pytest.raises(ConfigError, match="points"):
        other.resume()


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"steps": 0}, {"learning_rate": 0}, {"ema": 1.0}, {"threads": 0}):
        with pytest.raises(ConfigError):
            LoopSettings(**{**toy.SETTINGS, **wrong})


def test_state_is_written_in_small_files_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.randn(300_000) for number in range(30)}
    write_state(tmp_path, 7, tensors, {"step": 7})
    files = list((tmp_path / "state-000000007").glob("*.safetensors"))
    assert len(files) == 3
    assert all(file.stat().st_size < 16_000_000 for file in files)
    write_state(tmp_path, 9, tensors, {"step": 9})
    assert [path.name for path in tmp_path.iterdir()] == ["state-000000009"]
    found = read_state(tmp_path)
    assert found is not None
    assert all(torch.equal(found[0][name], value) for name, value in tensors.items())
    files = sorted((tmp_path / "state-000000009").glob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path)


def test_a_tensor_larger_than_a_file_gets_its_own() -> None:
    parts = shards({"a": torch.zeros(10), "b": torch.zeros(100), "c": torch.zeros(10)}, most=100)
    assert [list(part) for part in parts] == [["a"], ["b"], ["c"]]
