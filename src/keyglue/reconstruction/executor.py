"""Where work runs: in this process, or in one process for each device. Stages know only ``Executor``."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeVar

from keyglue.base.errors import InputError, KeyglueError

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


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

    Each process has a channel of its own, so that one that is killed in the middle of an answer holds up no other, and
    asks for its next item when it has taken the one before.

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
        source = iter(items)
        processes: dict[Any, Any] = {}
        try:
            for device in self.devices:
                channel, other_end = context.Pipe()
                process = context.Process(target=_serve, args=(work, device, other_end), daemon=True)
                processes[channel] = process
                process.start()
                other_end.close()  # or the end of the process would go unnoticed
            while processes:
                for channel in wait(list(processes)):
                    kind, value = _ask(channel, processes[channel], source)
                    if kind == "error":
                        raise KeyglueError(value)
                    if kind == "end":
                        processes.pop(channel).join()
                    if kind == "result":
                        yield pickle.loads(value)
        finally:
            for process in processes.values():
                if process.pid is not None:
                    process.terminate()
                    process.join()


def _ask(channel: Any, process: Any, source: Iterator[Any]) -> tuple[str, Any]:
    """Return what a process says, and give it the next item where it asks for that."""
    try:
        kind, value = channel.recv()
        if kind == "more":
            channel.send(next(((item,) for item in source), None))
    except (EOFError, ConnectionError):
        process.join()
        code = process.exitcode
        how = (
            f"was killed by signal {-code}, perhaps for want of memory" if code < 0 else f"ended with exit code {code}"
        )
        raise KeyglueError(f"a process of a device {how}.") from None
    return kind, value


def _serve(work: Any, device: str, channel: Any) -> None:
    """Run in a process of its own: work on items until there are no more, or nobody is there to give them."""

    def items() -> Iterator[Any]:
        channel.send(("more", None))
        while (item := channel.recv()) is not None:
            channel.send(("more", None))
            yield item[0]

    try:
        for result in work.on(device)(items()):
            # Bytes, because torch would share the tensors' memory, which ends with this process.
            channel.send(("result", pickle.dumps(result)))
        channel.send(("end", None))
    except (EOFError, ConnectionError):
        return
    except Exception as error:  # whatever it is, it has to reach the person at the other process
        channel.send(("error", f"{device}: {type(error).__name__}: {error}"))
