"""Shows what a run is busy with before its first step: reading data, planning, compiling."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hypermask_fast.console.stages import listening
from hypermask_fast.console.terminal import Screen, is_quiet

_LONG = 0.5


@dataclass
class _Stage:
    what: str
    begun: float
    within: float = 0.0
    is_told: bool = False


class Busy:
    """A listener to stages: a status while they last, a line with the seconds of those that took.

    In a terminal a stage is shown from its first moment; elsewhere there is a line once it has
    lasted half a second, and one with its time. The time is its own, without that of stages in it.

    Args:
        screen: Where to show.
        ended: Called with the seconds of each stage that lay in no other.
        clock: Seconds from any start, for tests.
    """

    def __init__(
        self,
        screen: Screen,
        *,
        ended: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._screen, self._ended, self._clock = screen, ended, clock
        self._stages: list[_Stage] = []
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def begin(self, what: str) -> None:
        with self._lock:
            stage = _Stage(what, self._clock())
            self._stages.append(stage)
            self._show(stage)

    def _show(self, stage: _Stage) -> None:
        if self._screen.has_status:
            self._screen.status(f"{stage.what} ..."[: self._screen.width])
            return
        self._wait_no_more()
        self._timer = threading.Timer(_LONG, self._tell, (stage,))
        self._timer.daemon = True
        self._timer.start()

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self, stage: _Stage) -> None:
        with self._lock:
            if self._stages and self._stages[-1] is stage and not stage.is_told:
                stage.is_told = True
                self._screen.line(f"{stage.what} ...")

    def end(self, *, failed: bool) -> None:
        with self._lock:
            self._wait_no_more()
            stage = self._stages.pop()
            whole = self._clock() - stage.begun
            own = whole - stage.within
            if failed:
                self._screen.clear()
            elif own >= _LONG:
                self._screen.line(f"{stage.what}: {own:.1f} s")
            if self._stages:
                self._stages[-1].within += whole
                self._show(self._stages[-1])
            else:
                self._screen.clear()
                if self._ended is not None:
                    self._ended(whole)


@contextmanager
def showing_stages(enabled: bool = True) -> Iterator[None]:
    """Show the stages of a ``with`` block on standard error."""
    if not enabled or is_quiet():
        with listening(None):
            yield
        return
    with Screen(sys.stderr) as screen, listening(Busy(screen)):
        yield
