"""Signals that stop a run after the step it is in."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def caught_signal() -> Iterator[Callable[[], int | None]]:
    """Catch the first SIGINT, SIGTERM or SIGHUP; a second one acts as usual.

    Only the main thread can: elsewhere nothing is caught. SIGHUP, which a terminal sends when it
    closes, stays ignored where it is, as under ``nohup``.

    Yields:
        What returns the number of the signal that came, or None.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    hangup = getattr(signal, "SIGHUP", None)  # which Windows lacks
    if hangup is not None and signal.getsignal(hangup) not in (None, signal.SIG_IGN):
        before[hangup] = signal.getsignal(hangup)

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def catch(signum: int, _: object) -> None:
        caught.append(signum)
        restore()

    for signum in before:
        signal.signal(signum, catch)
    try:
        yield lambda: caught[0] if caught else None
    finally:
        restore()
