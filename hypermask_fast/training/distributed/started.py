"""From the variables that torchrun sets to processes that train together, and their common end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, _abort_process_group
from torch.distributed.rendezvous import rendezvous

from hypermask_fast.errors import ConfigError, HypermaskError, ProcessLost
from hypermask_fast.training.distributed.launched import local_world_size, rank, world_size
from hypermask_fast.training.distributed.processes import Processes, joining

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others: no evaluation and no checkpoint takes as long."""
_TOLD, _ENDED = "told", "ended"
_LAST_SECONDS = 3.0
_starts = count()  # a store may still have what an earlier group left


class ToldElsewhere(SystemExit):
    """The end of a process where another one has said why all of them end.

    Its code is the exit status of that one.
    """


def local_device(device: torch.device) -> torch.device:
    """Return the device of this process: of several GPUs its own.

    Args:
        device: What the run is to use.

    Raises:
        ConfigError: It is one GPU of several, or there are fewer GPUs than processes.
    """
    several = local_world_size()
    if several == 1 or device.type != "cuda":
        return device
    if device.index is not None and device.index != torch.cuda.current_device():
        raise ConfigError(
            f"device='{device}' is one GPU for {several} processes; use device='cuda', and each "
            "process takes its own"
        )
    place = int(os.environ.get("LOCAL_RANK", rank()))
    if place >= torch.cuda.device_count():
        raise ConfigError(
            f"there are {several} processes and {torch.cuda.device_count()} CUDA devices on this "
            f"machine; start --nproc-per-node={torch.cuda.device_count()}, or use device='cpu'"
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


class _Telling:
    """Which process says why all end: the first one that has something to say."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._meetings = 0

    def meet(self) -> None:
        """Wait until all processes have come here.

        A barrier would keep one that comes late waiting for others that are still there after an
        error.

        Raises:
            RuntimeError: Another process has said why all end, or did not come in time.
        """
        self._meetings += 1
        came, last = f"meeting/{self._meetings}", time.monotonic() + TIMEOUT.total_seconds()
        self._store.add(came, 1)
        while self._store.add(came, 0) < self._world:
            if self._store.check([_TOLD]):
                raise RuntimeError("another process has said why all end")
            if time.monotonic() > last:
                raise RuntimeError("timed out")
            time.sleep(0.005)

    def claims(self, status: int) -> bool:
        """Return whether this process is the one that tells; its exit status is the others' too."""
        own = f"{self._rank} {status}"
        try:
            return bool(self._store.compare_set(_TOLD, "", own).decode() == own)
        except (RuntimeError, ValueError):  # torchrun is gone, and the store with it
            return True

    def status(self) -> int:
        """Return the exit status of the process that has told."""
        return int(self._store.get(_TOLD).decode().split()[1])

    def end(self, *, waits: bool) -> None:
        """Note that this process ends.

        Args:
            waits: Let the others end before torchrun sees that this one has, and stops them.
        """
        try:
            self._store.add(_ENDED, 1)
            last = time.monotonic() + _LAST_SECONDS
            while waits and self._store.add(_ENDED, 0) < self._world and time.monotonic() < last:
                time.sleep(0.02)
        except (RuntimeError, ValueError):
            return


def _status_of(error: BaseException) -> int:
    if isinstance(error, HypermaskError):
        return error.exit_status
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _connected() -> _Telling:
    """Make the group of all processes."""
    world = world_size()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, number, world = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        store = PrefixStore(f"hypermask_fast/{next(_starts)}", store)
        own: dict[str, Any] = {"rank": number, "world_size": world, "timeout": TIMEOUT}
        dist.init_process_group(backend, store=PrefixStore("group", store), **own)
    except RuntimeError as error:
        raise ConfigError(
            f"the {world} processes cannot reach each other ({' '.join(str(error).split())[:99]}); "
            "check MASTER_ADDR and MASTER_PORT, and GLOO_SOCKET_IFNAME where there are several "
            "networks"
        ) from error
    return _Telling(store, number, world)


@contextmanager
def data_parallel() -> Iterator[Processes | None]:
    """Train together with the processes that torchrun started, in a ``with`` block.

    Each process runs the same script; a :class:`Trainer`, or a :class:`Run`, that is made inside
    takes its rows of every batch, and ends with the numbers of one process. Gradients go over gloo
    on CPUs and over NCCL on GPUs. An error ends all processes, and one of them says it. Without
    torchrun the block changes nothing. ::

        with hmf.data_parallel():
            run = hmf.Run("runs/mine", hmf.Trainer(learner, epochs=5))
            for task in tasks:
                run.fit(task)

    Yields:
        The processes; None without torchrun.

    Raises:
        ProcessLost: Another process ended, or did not answer in time.
    """
    if world_size() == 1:
        yield None
        return
    telling = _connected()
    try:
        with joining(Processes(meet=telling.meet)) as processes:
            yield processes
            processes.wait()
    except BaseException as error:
        tells = telling.claims(_status_of(error))
        # Whoever waits for this process sees that it is gone, and what it waits for itself ends.
        _abort_process_group()
        telling.end(waits=tells and not isinstance(error, ProcessLost))
        if tells:
            raise
        raise ToldElsewhere(telling.status()) from None
    dist.destroy_process_group()
