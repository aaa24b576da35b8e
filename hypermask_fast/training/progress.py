"""Progress over all tasks of a run: one line in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TextIO

from hypermask_fast.console.stages import listening
from hypermask_fast.console.terminal import Screen, is_quiet, printable, shortened
from hypermask_fast.training.busy import Busy
from hypermask_fast.training.progress_line import Place, fitted_line, plain_line

_STATUS_INTERVAL = 0.2
_LINE_INTERVAL, _LONGEST_INTERVAL = 5.0, 60.0
# A run of hours needs no line each few seconds.
_LINE_SHARE = 1 / 20
_RATE_SECONDS = 15.0


class Progress:
    """Shows how far a run is; a context manager that closes itself.

    In a terminal it is one line that fits the columns there are at each moment. A call of
    ``update`` reads the clock, and formats only where it prints. A stream that cannot be printed on
    any more ends the progress, and not the run. In the ``with`` block, stages are shown too.

    Args:
        total_steps: Training steps of the whole run.
        task_names: Names of the tasks; without them there is one, without a name.
        task_steps: Steps of each task, whose sum is ``total_steps``; default: the same for all.
        initial: Steps that were done before, by the run that is resumed.
        accuracy: Mean test accuracy of the tasks that were learned before, in percent; NaN or None
            where there is none.
        stream: Where to print; default: standard error.
        interval: Seconds between prints; default: 0.2 in a terminal; else 5, and up to 60 the
            longer it lasts.
        enabled: False prints nothing at all.
        clock: Seconds from any start, for tests.

    Raises:
        ValueError: The steps of the tasks do not make up ``total_steps``.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        task_names: Sequence[str] = (),
        task_steps: Sequence[int] | None = None,
        initial: int = 0,
        accuracy: float | None = None,
        stream: TextIO | None = None,
        interval: float | None = None,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = list(task_names) or [""]
        count = len(self._names)
        self._task_steps = list(task_steps or [total_steps // count] * count)
        if sum(self._task_steps) != total_steps or len(self._task_steps) != count:
            raise ValueError(
                f"task_steps={self._task_steps} does not make up total_steps={total_steps} in "
                f"{count} tasks; give the steps of each task"
            )
        self._starts = [sum(self._task_steps[:i]) for i in range(count)]
        self._total = total_steps
        # Standard error is None where it was closed before Python started.
        stream = sys.stderr if stream is None else stream
        self._screen = Screen(stream)
        self._clock = clock
        self._enabled = enabled and self._screen.works and not is_quiet()
        self._interval = interval
        self._task = self._step = 0
        self._losses: Mapping[str, Any] = {}
        self._accuracy = accuracy
        self._rate = 0.0
        self._begun = self._measured_at = clock()
        self._done = self._shown = initial
        while self._task + 1 < count and initial >= self._starts[self._task + 1]:
            self._task += 1
        self._step = initial - self._starts[self._task]
        self._due = self._begun + self._pause(self._begun)
        self._open = ExitStack()

    def __enter__(self) -> Progress:
        if self._enabled:
            self._open.enter_context(self._screen)
            self._open.enter_context(listening(Busy(self._screen, ended=self._leave_out)))
            if self._screen.has_status:
                self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._shown = self._done  # reading a loss again could raise and hide the error
        self.close()
        self._open.close()

    def _pause(self, now: float) -> float:
        """Return the seconds to the next print."""
        if self._interval is not None:
            return self._interval
        if self._screen.has_status:
            return _STATUS_INTERVAL
        return min(max(_LINE_INTERVAL, _LINE_SHARE * (now - self._begun)), _LONGEST_INTERVAL)

    def _measure_rate(self, now: float, advance: int) -> None:
        """Smooth the steps per second since the last print: later tasks may be slower."""
        seconds = now - self._measured_at
        if seconds > 0:
            weight = 1 - math.exp(-seconds / _RATE_SECONDS) if self._rate else 1.0
            self._rate += weight * (advance / seconds - self._rate)
        self._measured_at = now

    def _leave_out(self, seconds: float) -> None:
        """Do not count the time of a stage, such as the first step, for the rate."""
        self._measured_at += seconds

    def _place(self) -> Place:
        is_known = self._accuracy is not None and not math.isnan(self._accuracy)
        return Place(
            task=self._task + 1,
            tasks=len(self._names),
            name=self._names[self._task],
            step=self._step,
            steps=self._task_steps[self._task],
            done=self._done,
            total=self._total,
            rate=self._rate,
            accuracy=self._accuracy if is_known else None,
            losses={name: float(value) for name, value in self._losses.items()},
        )

    def _draw(self) -> None:
        screen = self._screen
        begin, bar, end = fitted_line(self._place(), screen.width, blocks=screen.takes_blocks)
        screen.status(begin + (screen.colored(bar, "green") if bar else "") + end)

    def _show(self, now: float) -> None:
        self._due = now + self._pause(now)
        advance, self._shown = self._done - self._shown, self._done
        self._measure_rate(now, advance)
        if self._screen.has_status:
            self._draw()
        else:
            self._screen.line(plain_line(self._place()))
        self._enabled &= self._screen.works

    def update(
        self, step_in_task: int, task_index: int, losses: Mapping[str, Any] | None = None
    ) -> None:
        """Note that ``step_in_task`` steps of the task are done, and print if it is time.

        Args:
            step_in_task: Steps of this task that are done, at most the task's.
            task_index: The task, counted from 0.
            losses: Losses by name, the first one before others; numbers or one-element tensors,
                which are read only when they are printed. None keeps the ones before.
        """
        if not self._enabled:
            return
        self._task, self._step = task_index, step_in_task
        self._done = self._starts[task_index] + step_in_task
        if losses is not None:
            self._losses = losses
        now = self._clock()
        if now >= self._due:
            self._show(now)

    def learned(self, name: str, accuracies: Iterable[float]) -> None:
        """Tell that a task was learned, and keep the mean accuracy to show.

        Args:
            name: Of the task.
            accuracies: In percent, of the learned tasks in their order, this one the last; NaN
                where there is none.
        """
        values = [float(value) for value in accuracies]
        known = [value for value in values if not math.isnan(value)]
        self._accuracy = sum(known) / len(known) if known else None
        mean = math.nan if self._accuracy is None else self._accuracy
        end = f": {values[-1]:.2f} %, mean of the {len(values)} learned {mean:.2f} %"
        if self._screen.has_status and self._screen.width < 72:
            end = f": {values[-1]:.2f} %, mean {mean:.2f} %"
        room = self._screen.width - len(f"learned {end}") if self._screen.has_status else len(name)
        self.message(f"learned {shortened(printable(name), max(room, 8))}{end}")

    def message(self, text: str) -> None:
        """Print ``text`` on lines of its own, above the status if there is one."""
        if not self._enabled:
            return
        self._screen.line(text)
        if self._screen.has_status:
            self._draw()
        self._enabled &= self._screen.works

    def close(self) -> None:
        """Show the last state, if it was not shown yet, and print no more."""
        if not self._enabled:
            return
        if self._shown != self._done:
            self._show(self._clock())
        self._screen.keep()
        self._enabled = False
