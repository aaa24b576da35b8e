"""Processes that are started as by torchrun, again and again, and what is done to them."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import pytest
import torch

from hypermask_fast import cli
from hypermask_fast.training.distributed import started
from hypermask_fast.training.distributed.exchange import SharedStep

_LONG = 300  # seconds after which a process shows what it waits for


@contextlib.contextmanager
def preceded(owner: Any, name: str, before: Callable[..., None]) -> Iterator[None]:
    """Let something happen before each call of a function, of which it is given the arguments."""
    plain = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        before(*args)
        return plain(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield


def signalled(step: int, rank: int, signum: int) -> contextlib.AbstractContextManager[None]:
    """Let a process get a signal when a task's step begins."""

    def before(shared: SharedStep, *_: Any) -> None:
        if int(os.environ["RANK"]) == rank and shared.number == step:
            os.kill(os.getpid(), signum)

    return preceded(SharedStep, "__call__", before)


class Printed(NamedTuple):
    """The end of a command in a process."""

    status: int
    out: str
    err: str


class Group:
    """The processes of one start: as torchrun's variables say, again and again."""

    def __init__(self, rank: int, port: int) -> None:
        self.rank, self._count = rank, 0
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }

    @contextlib.contextmanager
    def of(self, world: int) -> Iterator[bool]:
        """Be started with others; the value says whether this process is."""
        self._count += 1
        os.environ |= {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
        }
        started._starts = count(self._count)  # also where others were started alone
        yield self.rank < world

    def command(self, world: int, *words: str) -> Printed | None:
        with self.of(world) as takes_part:
            if not takes_part:
                return None
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    status = cli.main(words)
                except SystemExit as error:
                    status = int(error.code or 0)
            return Printed(status, out.getvalue(), err.getvalue())


def begun(rank: int, port: int, folder: str) -> Group:
    faulthandler.dump_traceback_later(_LONG)
    torch.set_num_threads(1)
    os.chdir(folder)
    return Group(rank, port)
