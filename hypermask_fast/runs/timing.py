"""The time of a run's steps, beside its log: what is not the same in two runs stands apart."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hypermask_fast.runs.atomic import write_text_atomic


class StepClock:
    """Measures steps in stretches, from one row of the log to the next.

    The device has nothing left to do where a row was written, for that reads the losses. Batches
    and validation checks count, checkpoints do not. The first stretch of a task, with all that is
    done once, is left out, and so are those that a stop interrupted.

    Args:
        path: The file, which holds milliseconds a step, a list of stretches for each task. What an
            earlier part of the run measured is taken over where it can be read.
        synchronize: Waits for the device.
        clock: Seconds from any start, for tests.
    """

    def __init__(
        self,
        path: Path,
        synchronize: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._path, self._synchronize, self._clock = path, synchronize, clock
        self._tasks = read(path)
        self._at: tuple[int, int, float] | None = None

    def lap(self, task: int, step: int) -> None:
        """Take the time after a step whose losses were read.

        Args:
            task: Place of the task.
            step: Steps taken in it.
        """
        now = self._clock()
        if self._at is not None and self._at[0] == task and step > self._at[1]:
            _, before, begin = self._at
            self._tasks += [[] for _ in range(task + 1 - len(self._tasks))]
            self._tasks[task].append(round(1e3 * (now - begin) / (step - before), 5))
        self._at = task, step, now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of a ``with`` block out."""
        self._synchronize()
        begin = self._clock()
        try:
            yield
        finally:
            if self._at is not None:
                task, step, at = self._at
                self._at = task, step, at + self._clock() - begin

    def write(self) -> None:
        """Write the file.

        Raises:
            ConfigError: It cannot be written.
        """
        found = {"ms_a_step": self._tasks}
        write_text_atomic(self._path, json.dumps(found) + "\n")


def read(path: Path) -> list[list[float]]:
    """Return the milliseconds a step of each stretch, by task; none where there is no such file."""
    try:
        found = json.loads(path.read_bytes())["ms_a_step"]
        return [[float(value) for value in stretches] for stretches in found]
    except (KeyError, OSError, TypeError, ValueError):
        return []


def median_ms(path: Path) -> float:
    """Return the median time of a step over the stretches of all tasks; NaN where there is none."""
    values = [value for stretches in read(path) for value in stretches]
    return float(np.median(values)) if values else math.nan
