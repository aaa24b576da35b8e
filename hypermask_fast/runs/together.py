"""A run of several processes: the first one writes and prints, and all end alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from hypermask_fast.errors import ProcessLost
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.hypernetworks.sharded import sharing_among
from hypermask_fast.memory import available_memory
from hypermask_fast.records.metrics_log import START, MetricsLog, Position
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.distributed.launched import local_world_size
from hypermask_fast.training.distributed.processes import joined

_Told = TypeVar("_Told")


def writes() -> bool:
    """Return whether this process writes and prints: alone, or the first of several."""
    processes = joined()
    return processes is None or processes.is_first


def told_by_first(value: Callable[[], _Told]) -> _Told:
    """Return what a function gives in the process that writes; only that one calls it."""
    processes = joined()
    if processes is None:
        return value()
    found: _Told = processes.first(value() if processes.is_first else None)
    return found


def wait_for_all() -> None:
    """Wait until all processes of the run have come here."""
    processes = joined()
    if processes is not None:
        processes.wait()


def sharing_head(config: RunConfig) -> AbstractContextManager[None]:
    """Return what a learner is built in: where its settings say so, processes share its head."""
    processes = joined()
    if processes is None or not config.run.shard_head:
        return nullcontext()
    return sharing_among(processes.place)


def agreed(own: Callable[[], int | None]) -> Callable[[], int | None]:
    """Return a function that gives all processes of a run the same signal; see `Processes`."""
    processes = joined()
    return own if processes is None else processes.agreed(own)


@contextmanager
def run_folder(
    path: str | Path, locked: Callable[[], RunFolder], *, anew: bool = False
) -> Iterator[RunFolder]:
    """Open a run's folder in a ``with`` block; the first process holds its lock.

    Args:
        path: The folder.
        locked: Makes or opens it, with its lock.
        anew: It is made only when all processes have come here: none of them has failed before.
    """
    if anew:
        wait_for_all()
    if writes():
        with locked() as folder:
            wait_for_all()
            yield folder
    else:
        wait_for_all()
        yield RunFolder(path)


class NoLog(MetricsLog):
    """The log of a process that writes none."""

    def __init__(self) -> None:
        """There is no file."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Write nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def position(self) -> Position:
        """Return that of an empty log."""
        return START

    def close(self) -> None:
        """Do nothing."""


def memory_of_each(device: str) -> int | None:
    """Return the bytes that a process has for a run; None where nothing tells.

    On a CPU the processes of a machine share what it has left.
    """
    memory = available_memory(device)
    return memory if memory is None or device != "cpu" else memory // local_world_size()


@contextmanager
def resumable(path: Path, how: str | None = None) -> Iterator[None]:
    """Let the loss of a process tell how the run in a folder goes on.

    Args:
        path: The folder.
        how: Default: by the command.
    """
    try:
        yield
    except ProcessLost as error:
        fix = f"go on with `resume {path}` in place of `train`, on any number of processes"
        raise ProcessLost(error.world, error.reason, how or fix) from error


class Efficiency:
    """What part of the time several processes spent on each other."""

    def __init__(self) -> None:
        self._processes, self._begin = joined(), time.perf_counter()
        self._before = 0.0 if self._processes is None else self._processes.seconds

    def line(self, steps: int) -> str | None:
        """Return it for people; None of one process, or without a step.

        Args:
            steps: Taken since this object was made.
        """
        if self._processes is None or not steps:
            return None
        seconds = time.perf_counter() - self._begin
        share = (self._processes.seconds - self._before) / seconds
        return (
            f"{self._processes.world} processes: {steps / seconds:.1f} steps/s, evaluations "
            f"included, {100 * share:.0f} % of the time in exchanges, which leaves a scaling "
            f"efficiency of at most {100 - 100 * share:.0f} %"
        )
