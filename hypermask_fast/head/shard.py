"""A part of a head's rows, and what processes that hold a part each exchange.

Of N logits each process forms those of its own rows, and of N gradients it needs those of its own
rows; both travel once in a step. Sums are taken in the order of the processes, by each of them, so
they have the same bits everywhere and in every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hypermask_fast.errors import ConfigError, ProcessLost

# Of PyTorch from 2.13 on; the old name warns there.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
# Numbers that are drawn at a time. On a GPU what is drawn depends on it.
_DRAWN = 2**20


class Place(NamedTuple):
    """Where a process is among those that share a head.

    Attributes:
        rank: Its number.
        world: How many they are.
        group: Of torch.distributed; None: all processes.
        measured: What exchanges of tensors of a device run in, which takes their time; None: no one
            does.
    """

    rank: int
    world: int
    group: Any = None
    measured: Callable[[torch.device], AbstractContextManager[None]] | None = None

    @contextmanager
    def exchanging(self, device: torch.device | None = None) -> Iterator[None]:
        """Exchange in a ``with`` block.

        Args:
            device: Of the tensors. Default: the CPU.

        Raises:
            ProcessLost: Another process ended, or did not answer in time.
        """
        if self.measured is not None:
            with self.measured(torch.device("cpu") if device is None else device):
                yield
            return
        try:
            yield
        except RuntimeError as error:
            raise ProcessLost(self.world, error) from error

    def all(self, value: Any) -> list[Any]:
        """Return what each process gives, objects that can be pickled."""
        found = [value] * self.world
        if self.world > 1:
            with self.exchanging():
                dist.all_gather_object(found, value, group=self.group)
        return found


class RowShard:
    """The rows of a matrix, of as many as there are logits, that one process holds.

    All have equally many but the last ones, which may have fewer, as ``torch.chunk`` divides them.
    Where nothing has values, on the meta device, nothing is exchanged.

    Args:
        size: N, the rows of all processes together.
        place: This process among those that share them.

    Attributes:
        first, last: The first row of this process and that after its last one.

    Raises:
        ConfigError: There are too few rows for a process to have one.
    """

    def __init__(self, size: int, place: Place) -> None:
        self.size, self.place = size, place
        rank, world = place.rank, place.world
        self.most = -(-size // world)
        self.first, self.last = self.rows_of(rank)
        if self.rows_of(world - 1)[0] >= size:
            raise ConfigError(
                f"a head of {size} rows cannot be divided among {world} processes, {self.most} "
                "rows each, for none are left for the last; use fewer processes"
            )

    def rows_of(self, rank: int) -> tuple[int, int]:
        """Return the first row of a process and that after its last one."""
        return min(rank * self.most, self.size), min((rank + 1) * self.most, self.size)

    @property
    def rows(self) -> int:
        """Rows of this process."""
        return self.last - self.first

    def __deepcopy__(self, memo: dict[int, Any]) -> RowShard:
        return self  # it never changes, and a group of processes cannot be copied

    def __repr__(self) -> str:
        place = f"process {self.place.rank} of {self.place.world}"
        return f"rows {self.first} to {self.last - 1} of {self.size}, {place}"

    def of(self, whole: Tensor) -> Tensor:
        """Return this process's part of a tensor (N, ...) that every process has."""
        return whole[self.first : self.last]

    @torch.no_grad()
    def draw_(
        self,
        own: Tensor,
        fill: Callable[[Tensor], object],
        low: int = 0,
        high: int | None = None,
    ) -> None:
        """Fill own rows as ``fill`` would in a matrix of all rows, which is never made.

        On a CPU they have the bits of one call for all rows, as of every generator that draws one
        number after the other. Elsewhere they are the same for any number of processes.

        Args:
            own: The rows of this process.
            fill: Fills a tensor with random numbers.
            low, high: Of all rows, those to fill. Default: all.
        """
        if own.is_meta:
            return
        high = self.size if high is None else high
        step = max(1, _DRAWN // max(1, math.prod(own.shape[1:])))
        for begin in range(low, high, step):
            end = min(begin + step, high)
            drawn = own.new_empty(end - begin, *own.shape[1:])
            fill(drawn)
            first, last = max(begin, self.first), min(end, self.last)
            if first < last:
                part = drawn[first - begin : last - begin]
                own[first - self.first : last - self.first] = part

    def gather(self, logits: Tensor) -> Tensor:
        """Return the logits (k, N) of all rows, given those of this process's (k, n)."""
        count, world = len(logits), self.place.world
        if world == 1:
            return logits
        sent = logits.contiguous()
        if sent.shape[1] < self.most:
            sent = torch.nn.functional.pad(sent, (0, self.most - sent.shape[1]))
        parts = self._of_each(sent)
        return parts.transpose(0, 1).reshape(count, -1)[:, : self.size]

    def mean_of_own(self, grad: Tensor) -> Tensor:
        """Return the mean over the processes of the gradients of own logits (k, n).

        Where any number of any process is not finite, the first of every process is NaN, so that
        all of them come to the same verdict about the step.

        Args:
            grad: (k, N), of this process's part of a batch.
        """
        count, world = len(grad), self.place.world
        if world == 1:
            return grad
        sent = grad.new_zeros(world, count * self.most + 1)
        places = sent[:, :-1].unflatten(1, (count, self.most))
        for rank in range(world):
            first, last = self.rows_of(rank)
            # Before the sum, which could overflow.
            torch.div(grad[:, first:last], world, out=places[rank, :, : last - first])
        low, high = grad.aminmax()
        sent[:, -1] = 0 * low + 0 * high
        received = torch.empty_like(sent)
        if not sent.is_meta:
            with self.place.exchanging(sent.device):
                dist.all_to_all_single(received, sent, group=self.place.group)
        total = received.sum(0)
        own = total[:-1].view(count, self.most)[:, : self.rows].contiguous()
        own[:1, :1] += total[-1]
        return own

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the processes' tensors, which are alike."""
        if self.place.world == 1:
            return tensor
        return self._of_each(tensor.contiguous()).sum(0)

    def _of_each(self, tensor: Tensor) -> Tensor:
        """Return the tensors (processes, ...) of all processes, which are alike."""
        parts = tensor.new_empty(self.place.world * tensor.numel())
        if not tensor.is_meta:
            with self.place.exchanging(tensor.device):
                _gather(parts, tensor.view(-1), group=self.place.group)
        return parts.view(-1, *tensor.shape)
