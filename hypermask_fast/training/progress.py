"""Progress over all tasks of a run: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

_LINE_INTERVAL = 5.0
_BAR_INTERVAL = 0.2
_RATE_SMOOTHING = 0.3


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Shows how far a run is; a context manager that closes itself.

    A call of ``update`` reads the clock, and formats only where it prints. A stream that cannot be
    printed on any more ends the progress, and not the run.

    Args:
        total_steps: Training steps of the whole run.
        task_names: Names of the tasks; without them there is one, without a name.
        task_steps: Steps of each task, whose sum is ``total_steps``; default: the same for all.
        initial: Steps that were done before, by the run that is resumed.
        stream: Where to print; default: standard error.
        interval: Seconds between prints; default: 0.2 for a bar, 5 for lines.
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
        self._stream: TextIO = sys.stderr if stream is None else stream
        self._clock = clock
        self._enabled = enabled and self._stream is not None
        self._bar: Any = None
        if self._enabled:
            with self._printing():
                self._bar = self._make_bar(initial) if self._stream.isatty() else None
        default = _LINE_INTERVAL if self._bar is None else _BAR_INTERVAL
        self._interval = default if interval is None else interval
        self._task = self._step = 0
        self._losses: Mapping[str, Any] = {}
        self._rate = 0.0
        self._measured_at = clock()
        self._done = self._shown = initial
        self._due = self._measured_at + self._interval

    def __enter__(self) -> Progress:
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

    @contextmanager
    def _printing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # the latter of a stream that was closed
            self._enabled = False
            if self._bar is not None:
                self._bar.disable = True  # or it would print when it is collected

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with self._printing():
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self._stream.flush()

    def _make_bar(self, initial: int) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=self._total,
            initial=initial,
            file=self._stream,
            dynamic_ncols=True,
            unit=" steps",
            smoothing=_RATE_SMOOTHING,
            mininterval=0,  # this class decides when to print
            miniters=1,
        )

    def _measure_rate(self, now: float, advance: int) -> None:
        """Smooth the steps per second since the last print: later tasks may be slower."""
        if now > self._measured_at:
            rate = advance / (now - self._measured_at)
            weight = _RATE_SMOOTHING if self._rate else 1.0
            self._rate += weight * (rate - self._rate)
        self._measured_at = now

    def _losses_text(self) -> str:
        return " ".join(f"{name} {float(value):.4g}" for name, value in self._losses.items())

    def _task_text(self) -> str:
        return f"task {self._task + 1}/{len(self._names)} {self._names[self._task]}".rstrip()

    def _line(self) -> str:
        parts = [
            self._task_text(),
            f"step {self._step}/{self._task_steps[self._task]}",
            f"{100 * self._done // max(self._total, 1)} %",
        ]
        if self._rate > 0:
            remaining = (self._total - self._done) / self._rate
            parts += [f"{self._rate:.1f} steps/s", f"ETA {_duration(remaining)}"]
        return ", ".join([*parts, *filter(None, [self._losses_text()])])

    def _show(self, now: float) -> None:
        self._due = now + self._interval
        advance, self._shown = self._done - self._shown, self._done
        if self._bar is not None:
            losses = self._losses_text()
            with self._printing():
                self._bar.set_description_str(self._task_text(), refresh=False)
                self._bar.set_postfix_str(losses, refresh=False)
                self._bar.update(advance)
            return
        self._measure_rate(now, advance)
        self._write(self._line())

    def update(
        self, step_in_task: int, task_index: int, losses: Mapping[str, Any] | None = None
    ) -> None:
        """Note that ``step_in_task`` steps of the task are done, and print if it is time.

        Args:
            step_in_task: Steps of this task that are done, at most the task's.
            task_index: The task, counted from 0.
            losses: Losses by name; numbers or one-element tensors, which are read only when they
                are printed. None keeps the ones before.
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

    def message(self, text: str) -> None:
        """Print ``text`` on lines of its own, above the bar if there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            with self._printing():
                self._bar.write(text, file=self._stream)
            return
        self._write(text)

    def close(self) -> None:
        """Show the last state, if it was not shown yet, and print no more."""
        if not self._enabled:
            return
        if self._shown != self._done:
            self._show(self._clock())
        self._enabled = False
        if self._bar is not None:
            with self._printing():
                self._bar.close()
