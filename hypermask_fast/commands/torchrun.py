"""Commands that torchrun starts in several processes: one run, and what is printed once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import NoReturn

from hypermask_fast.errors import ConfigError
from hypermask_fast.training.distributed.launched import rank, world_size

_TRAINING = ("train", "resume")


def is_several() -> bool:
    """Return whether torchrun started this process with others."""
    return world_size() > 1


def prints() -> bool:
    """Return whether this process prints what a command has to say."""
    return rank() == 0


@contextmanager
def several_processes(words: Sequence[str]) -> Iterator[None]:
    """Run a command in a ``with`` block, in all processes that torchrun started.

    The first one prints its results.

    Args:
        words: Of the command line.

    Raises:
        ConfigError: The command trains nothing.
    """
    if not is_several():
        yield
        return
    from hypermask_fast.training.distributed.started import data_parallel

    with ExitStack() as stack:
        if not prints():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
        stack.enter_context(data_parallel())
        if words and words[0] not in (*_TRAINING, "-h", "--help"):
            raise ConfigError(
                f"`hypermask {words[0]}` was started by torchrun in {world_size()} "
                "processes, which are for train and resume; start it without torchrun"
            )
        yield


def as_the_first(out: Path) -> Path:
    """Return the folder that the first process gives; letters of it may be random."""
    from hypermask_fast.training.distributed.processes import joined

    processes = joined()
    return out if processes is None else Path(processes.first(out))


def one_run(is_one: bool, what: str) -> None:
    """Raise ConfigError where several processes were started for several runs.

    Args:
        is_one: It is one run.
        what: What asks for several.
    """
    if is_several() and not is_one:
        raise ConfigError(
            f"{what} is of several runs, and torchrun started {world_size()} processes "
            "that train one together; start it without torchrun, or one run after the other"
        )


def leave(status: int | str | None) -> NoReturn:
    """End this process; one of several that failed, without what would wait for the others.

    Args:
        status: As ``sys.exit`` takes it.
    """
    if is_several() and isinstance(status, int) and status:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(status)
    sys.exit(status)
