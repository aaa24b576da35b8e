"""The time of a run, of its steps, and the most memory that it took."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hypermask_fast.files.atomic import write_text_atomic


class StepClock:
    """Measures steps in stretches, from one row of the log to the next.

    The device has nothing left to do where a row was written, for that reads the losses. Batches
    and validation checks count, checkpoints do not. The first stretch of a task, with all that is
    done once, is left out, and so are those that a stop interrupted.

    Args:
        path: The file, which holds milliseconds a step, a list of stretches for each task, the
            seconds of the run and the most bytes it took. What an earlier part of the run measured
            is taken over where it can be read.
        synchronize: Waits for the device.
        clock: Seconds from any start, for tests.
        memory: Returns the most bytes that this process took so far, by what kind of memory.
    """

    def __init__(
        self,
        path: Path,
        synchronize: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        memory: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._path, self._synchronize, self._clock = path, synchronize, clock
        self._memory = memory
        self._tasks, before = read(path), whole(path)
        self._peaks, self._begin = before.peak_bytes, clock() - before.seconds
        self._at: tuple[int, int, float] | None = None

    def lap(self, task: int, step: int) -> float | None:
        """Take the time after a step whose losses were read.

        Args:
            task: Place of the task.
            step: Steps taken in it.

        Returns:
            Milliseconds a step since the row before; None of a stretch that is left out.
        """
        now, found = self._clock(), None
        if self._at is not None and self._at[0] == task and step > self._at[1]:
            _, before, begin = self._at
            self._tasks += [[] for _ in range(task + 1 - len(self._tasks))]
            found = round(1e3 * (now - begin) / (step - before), 5)
            self._tasks[task].append(found)
        self._at = task, step, now
        return found

    @property
    def seconds(self) -> float:
        """Of the run so far, without the time between its parts."""
        return self._clock() - self._begin

    @property
    def median_ms(self) -> float:
        """The median time of a step over all stretches; NaN where there is none."""
        return _median(self._tasks)

    @property
    def peak_bytes(self) -> dict[str, int]:
        """The most bytes taken, by kind of memory, when the file was written."""
        return dict(self._peaks)

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
        now = self._memory()
        kinds = dict.fromkeys((*self._peaks, *now))
        self._peaks = {kind: max(self._peaks.get(kind, 0), now.get(kind, 0)) for kind in kinds}
        found = {
            "ms_a_step": self._tasks,
            "seconds": round(self.seconds, 3),
            "peak_bytes": self._peaks,
        }
        write_text_atomic(self._path, json.dumps(found) + "\n")


class Whole(NamedTuple):
    """What a run took.

    Attributes:
        seconds: Of all its parts, with preparation, evaluation and checkpoints; 0 where unknown.
        peak_bytes: The most bytes of "host" and "device" memory; none where unknown.
    """

    seconds: float
    peak_bytes: dict[str, int]


def whole(path: Path) -> Whole:
    """Return what a file says of the whole run; 0 and nothing where it says none."""
    try:
        found = json.loads(path.read_bytes())
        peaks = {str(kind): int(count) for kind, count in found["peak_bytes"].items()}
        return Whole(float(found["seconds"]), peaks)
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return Whole(0.0, {})


def read(path: Path) -> list[list[float]]:
    """Return the milliseconds a step of each stretch, by task; none where there is no such file."""
    try:
        found = json.loads(path.read_bytes())["ms_a_step"]
        return [[float(value) for value in stretches] for stretches in found]
    except (KeyError, OSError, TypeError, ValueError):
        return []


def median_ms(path: Path) -> float:
    """Return the median time of a step over the stretches of all tasks; NaN where there is none."""
    return _median(read(path))


def _median(tasks: list[list[float]]) -> float:
    values = [value for stretches in tasks for value in stretches]
    return float(np.median(values)) if values else math.nan
