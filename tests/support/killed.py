"""A child process that is killed at one of the changes that it makes to files."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def killed(path: Path, point: int, act: Callable[[], object]) -> bool:
    """Act in a forked child; return whether it was killed, at an event of files in a folder.

    Args:
        path: The folder.
        point: The number of the event; -1: it is not killed. A child that is not leaves the number
            of events in a file ``count`` beside the folder.
        act: What it does.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in EVENTS and str(path) in str(args[0]):
                if seen == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(hook)
        act()
        (path.parent / "count").write_text(str(seen))
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
