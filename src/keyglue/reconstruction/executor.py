"""Where work runs: in this process, or in one process for each device. Stages know only ``Executor``."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from keyglue.base.errors import InputError, KeyglueError

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

_PATIENCE = 1.0  # seconds between two looks at whether the other side is still there


class Work(Protocol[Item_contra, Result_co]):
    """What a stage does: a stream of items in, a stream of results out, in any order."""

    def __call__(self, items: Iterable[Item_contra]) -> Iterator[Result_co]:
        """Yield a result for every item."""
        ...

    def on(self, device: str) -> Work[Item_contra, Result_co]:
        """Return the same work on another device."""
        ...


class Executor(Protocol):
    """Runs work over items and hands the results back as they come; only this side writes to stores."""

    def run(self, work: Work[Item, Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield a result for every item, in any order."""
        ...


class SerialExecutor:
    """Runs everything in this process."""

    def run(self, work: Work[Item, Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield a result for every item."""
        yield from work(items)


class DeviceExecutor:
    """Runs one process for each device.

    Args:
        devices: Names such as "cuda:0"; a name may stand there more than once.

    Raises:
        InputError: There is no device.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        if not devices:
            raise InputError("name at least one device, such as 'cuda:0'.")
        self.devices = list(devices)

    def run(self, work: Work[Item, Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield a result for every item, in the order in which they become ready.

        Raises:
            KeyglueError: A process failed or was killed; its text says how.
        """
        context = multiprocessing.get_context("spawn")
        room = 4 * len(self.devices)
        waiting: Any = context.Queue(maxsize=room)
        ready: Any = context.Queue(maxsize=room)
        processes = [
            context.Process(target=_serve, args=(work, device, waiting, ready, os.getpid()), daemon=True)
            for device in self.devices
        ]
        for process in processes:
            process.start()
        stopped = threading.Event()
        feeder = threading.Thread(target=_feed, args=(items, waiting, len(processes), stopped), daemon=True)
        feeder.start()
        running = len(processes)
        try:
            while running:
                try:
                    kind, value = ready.get(timeout=_PATIENCE)
                except queue.Empty:
                    # A process that is killed says nothing; one that ended has its last word in the queue.
                    if any(process.exitcode not in (0, None) for process in processes):
                        raise KeyglueError("a process of a device was killed, perhaps for want of memory.") from None
                    continue
                if kind == "error":
                    raise KeyglueError(value)
                running -= kind == "end"
                if kind == "result":
                    yield pickle.loads(value)
        finally:
            stopped.set()
            for process in processes:
                process.terminate()
                process.join()
            for channel in (waiting, ready):
                channel.cancel_join_thread()
                channel.close()


def _feed(items: Iterable[Any], waiting: Any, processes: int, stopped: threading.Event) -> None:
    for message in (*(("item", item) for item in items), *[("end", None)] * processes):
        while not stopped.is_set():
            try:
                waiting.put(message, timeout=_PATIENCE)
                break
            except queue.Full:
                continue


def _serve(work: Any, device: str, waiting: Any, ready: Any, parent: int) -> None:
    """Run in a process of its own: work on items until there are no more."""

    def alive() -> None:
        if os.getppid() != parent:
            os._exit(1)  # nobody is there to hear; normal ways out would wait for the queues to empty

    def items() -> Iterator[Any]:
        while True:
            kind, item = _patiently(lambda: waiting.get(timeout=_PATIENCE), queue.Empty, alive)
            if kind == "end":
                return
            yield item

    def say(message: tuple[str, Any]) -> None:
        _patiently(lambda: ready.put(message, timeout=_PATIENCE), queue.Full, alive)

    try:
        for result in work.on(device)(items()):
            # Bytes, because torch would share the tensors' memory, which ends with this process.
            say(("result", pickle.dumps(result)))
        say(("end", None))
    except Exception as error:  # whatever it is, it has to reach the person at the other process
        say(("error", f"{device}: {type(error).__name__}: {error}"))


def _patiently(action: Callable[[], Any], not_yet: type[Exception], meanwhile: Callable[[], None]) -> Any:
    while True:
        try:
            return action()
        except not_yet:
            meanwhile()
