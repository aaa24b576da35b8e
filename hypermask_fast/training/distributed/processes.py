"""The processes that train one learner together: what they say to each other, and how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hypermask_fast.errors import ConfigError, ProcessLost
from hypermask_fast.head.shard import Place
from hypermask_fast.methods.sharing import Share

_SMALL = 2**16
"""Entries of a tensor that is sent together with others."""
_SIGNALS, _SIGNALS_EVERY = 32, 16
_MEASURED = 17
"""On a GPU the time of one exchange in so many is measured; a prime, so that none is left out."""


class Processes:
    """The processes of a group, of which this is one.

    Args:
        group: Of torch.distributed. Default: all processes.
        meet: Waits until all processes have come there. Default: a barrier of the group.

    Attributes:
        rank: Of this process.
        world: Their number.
        seconds: What exchanges took so far; on a GPU estimated from some of them.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, meet: Callable[[], object] | None = None
    ) -> None:
        self._group = group
        self._meet = partial(dist.barrier, group=group) if meet is None else meet
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self.seconds = 0.0
        self._exchanges = 0
        self._caught: Callable[[], int | None] = lambda: None
        self._signal: int | None = None
        self._due: Callable[[], bool] = lambda: False
        self._is_due = False
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    @property
    def _source(self) -> int:
        return 0 if self._group is None else dist.get_global_rank(self._group, 0)

    @contextmanager
    def _answered(self, *, timed: bool = True) -> Iterator[None]:
        """Turn what the others' silence raises into one error, and take the time of the host."""
        begin = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            raise ProcessLost(self.world, error) from error
        finally:
            self.seconds += (time.perf_counter() - begin) * timed

    @contextmanager
    def exchanging(self, device: torch.device) -> Iterator[None]:
        """Exchange tensors of a device in a ``with`` block, whose time is taken.

        Raises:
            ProcessLost: Another process ended, or did not answer in time.
        """
        if device.type != "cuda":
            with self._answered():
                yield
            return
        self._exchanges += 1
        if self._exchanges % _MEASURED:
            with self._answered(timed=False):
                yield
            return
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        with self._answered(timed=False):
            yield
        pair[1].record()
        self._events.append(pair)
        while self._events and self._events[0][1].query():
            first, last = self._events.pop(0)
            self.seconds += first.elapsed_time(last) / 1e3 * _MEASURED

    @property
    def place(self) -> Place:
        """That of this process among those that share a head."""
        return Place(self.rank, self.world, self._group, self.exchanging)

    def sum_(self, values: Tensor) -> Tensor:
        """Make a tensor the sum of those of all processes, in place, and return it."""
        with self.exchanging(values.device):
            dist.all_reduce(values, group=self._group)
        return values

    def _weighted(self, weight: float, tensors: Sequence[Tensor]) -> list[Tensor]:
        sums = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            places = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[i].detach().flatten() for i in places])
            self.sum_(flat.mul_(weight))  # before the sum, which could overflow
            parts = flat.split([tensors[i].numel() for i in places])
            for i, part in zip(places, parts, strict=True):
                sums[i] = part.view(tensors[i].shape)
        return sums

    def share(self, whole: int) -> Share:
        """Return this process's part of steps of ``whole`` rows; parts differ by one row at most.

        Raises:
            ConfigError: There are fewer rows than processes.
        """
        if whole < self.world:
            raise ConfigError(
                f"batch_size={whole} has no row for each of {self.world} processes; give at least "
                f"{self.world}, or start at most {whole}"
            )
        least, more = divmod(whole, self.world)
        first = self.rank * least + min(self.rank, more)
        rows = slice(first, first + least + (self.rank < more))
        return Share(rows, whole, partial(self._weighted, (rows.stop - rows.start) / whole))

    def gathered(self, value: Tensor) -> list[Tensor]:
        """Return a tensor as each process has it, of the same shape in all."""
        found = [torch.empty_like(value) for _ in range(self.world)]
        with self.exchanging(value.device):
            dist.all_gather(found, value.contiguous(), group=self._group)
        return found

    @torch.no_grad()
    def copy_(self, tensors: Sequence[Tensor]) -> None:
        """Make tensors those of the first process, in place."""
        large = [value for value in tensors if value.numel() > _SMALL]
        small = [value for value in tensors if 0 < value.numel() <= _SMALL]
        kinds = dict.fromkeys((value.dtype, value.device) for value in small)
        groups = [[v for v in small if (v.dtype, v.device) == kind] for kind in kinds]
        for values in (*([value] for value in large), *groups):
            sent = torch.cat([value.flatten() for value in values])
            with self.exchanging(sent.device):
                dist.broadcast(sent, self._source, group=self._group)
            parts = sent.split([value.numel() for value in values])
            for value, part in zip(values, parts, strict=True):
                value.copy_(part.view_as(value))

    def first(self, value: Any) -> Any:
        """Return what the first process gives, an object that can be pickled."""
        box = [value]
        with self._answered():
            dist.broadcast_object_list(box, self._source, group=self._group)
        return box[0]

    def all(self, value: Any) -> list[Any]:
        """Return what each process gives, objects that can be pickled."""
        found: list[Any] = [None] * self.world
        with self._answered():
            dist.all_gather_object(found, value, group=self._group)
        return found

    def wait(self) -> None:
        """Wait until all processes have come here."""
        with self._answered():
            self._meet()

    def agreed(self, own: Callable[[], int | None]) -> Callable[[], int | None]:
        """Return a function that gives all processes the same signal: one that any of them caught.

        The steps that they take together tell it, with their losses: no exchange of its own.

        Args:
            own: Returns the number of the signal that this process caught, or None.
        """
        self._caught, self._signal = own, None
        return lambda: self._signal

    def agreed_due(self, own: Callable[[], bool]) -> Callable[[], bool]:
        """Return a function that tells all processes after the same step that something is due.

        Args:
            own: Returns whether it is, by the clock of the first process.
        """
        self._due, self._is_due = own, False
        return lambda: self._is_due

    def signals(self, like: Tensor) -> Tensor:
        """Return what a step exchanges of signals: a 1 at the number of that which was caught.

        No signal has the number 0, whose place is that of what is due.
        """
        found = torch.zeros(_SIGNALS, dtype=like.dtype)
        number = self._caught()
        if number is not None:
            found[number] = 1
        if self.is_first and self._due():
            found[0] = 1
        return found.to(like.device, non_blocking=True)

    def see(self, signals: Tensor, step: int) -> None:
        """Take note of the signals of all processes.

        On a GPU, where reading them waits for it, only in some steps.

        Args:
            signals: The means of those of the processes.
            step: Number of the step, the same in all.
        """
        self._is_due = False
        if signals.device.type != "cuda" or step % _SIGNALS_EVERY == 0:
            caught = signals.nonzero().flatten().tolist()
            self._is_due = 0 in caught
            self._signal = max((number for number in caught if number), default=None)


_joined: list[Processes] = []


def joined() -> Processes | None:
    """Return the processes that this one trains together with; None where it trains alone."""
    return _joined[-1] if _joined else None


@contextmanager
def joining(processes: Processes) -> Iterator[Processes]:
    """Train together with other processes in a ``with`` block, where there are others."""
    if processes.world == 1:
        yield processes
        return
    _joined.append(processes)
    try:
        yield processes
    finally:
        _joined.pop()
