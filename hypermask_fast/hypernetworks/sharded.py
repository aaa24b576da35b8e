"""A full head whose rows are divided among processes: the largest target grows with them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import skip_init
from torch.optim.optimizer import Optimizer

from hypermask_fast.errors import ConfigError, shown
from hypermask_fast.head.shard import Place, RowShard
from hypermask_fast.head.types import FrozenHead, HeadGrads, Kept
from hypermask_fast.hypernetworks.autograd import HeadUpdate
from hypermask_fast.hypernetworks.full import Hypernetwork


class _Gathered(torch.autograd.Function):
    """The logits of all rows; back come the means over the processes of those of own rows."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, shard: RowShard) -> Tensor:
        ctx.shard = shard
        return shard.gather(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.shard.mean_of_own(grads[0]), None


class _Shared(torch.autograd.Function):
    """What all rows read; back comes the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, shard: RowShard) -> Tensor:
        ctx.shard = shard
        return hidden.view_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.shard.sum(grads[0]), None


class _Summed(torch.autograd.Function):
    """The sum of a number over the processes; its gradient goes to each."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, shard: RowShard) -> Tensor:
        return shard.sum(value).view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _ShardedUpdate(HeadUpdate):
    """The update of own rows; the regularizer is that of all."""

    def __init__(self, update: HeadUpdate, shard: RowShard) -> None:
        super().__init__(update.optimizer, update.watched)
        self._shard = shard

    def _of_all_rows(self, grads: HeadGrads) -> HeadGrads:
        return grads._replace(squares=self._shard.sum(grads.squares))

    def outputs(
        self, weight: Tensor, bias: Tensor, hidden: Tensor, kept: Kept | None
    ) -> tuple[Tensor, Tensor]:
        logits, output_reg = super().outputs(weight, bias, hidden, kept)
        return logits, _Summed.apply(output_reg, self._shard)


class ShardedHypernetwork(Hypernetwork):
    """A hypernetwork with a full head of whose rows this process holds a part.

    Embeddings and trunk are the same in every process; :attr:`head` has the rows of this one, and
    so have the optimizer's moments of it and what is kept of earlier tasks. A forward, which all
    processes take together, gathers the N logits, and its backward pass brings each process the
    means over all of them of its own logits' gradients: each may have its part of a batch.
    Parameters start with the bits of a :class:`Hypernetwork` of the same seed.

    Args:
        num_outputs: N, the number of mask entries.
        place: This process among those that share the head.
        options: As in :class:`Hypernetwork`.

    Raises:
        ConfigError: The head is neither float32 nor float64, has too few rows, or the processes
            have different seeds or sizes.
    """

    shard: RowShard

    def __init__(self, num_outputs: int, place: Place, **options: Any) -> None:
        self.shard = RowShard(num_outputs, place)
        super().__init__(num_outputs, **options)

    def _make_head(
        self, width: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> nn.Linear:
        if dtype not in (torch.float32, torch.float64, None):
            raise ConfigError(
                f"a head of {dtype} cannot be divided among processes; use a network of float32 or "
                "float64, and autocast"
            )
        device = torch.get_default_device() if device is None else device
        head = skip_init(nn.Linear, width, self.shard.rows, device=device, dtype=dtype)
        if not head.weight.is_meta:
            self._check_alike(head)
        # As nn.Linear does.
        bound = 1 / math.sqrt(width)
        self.shard.draw_(head.weight, lambda rows: nn.init.kaiming_uniform_(rows, a=math.sqrt(5)))
        self.shard.draw_(head.bias, lambda rows: nn.init.uniform_(rows, -bound, bound))
        return head

    def _check_alike(self, head: nn.Linear) -> None:
        """Raise where the processes are about to draw other numbers, or of other sizes."""
        place, device = self.shard.place, head.weight.device
        if place.world == 1:
            return
        state = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
        digest = hashlib.sha256(state.numpy().tobytes()).hexdigest()
        sizes = f"{self.num_outputs} logits of width {head.in_features} in {head.weight.dtype}"
        found = place.all((sizes, digest))
        for rank, (other_sizes, other_digest) in enumerate(found):
            if other_sizes != found[0][0]:
                raise ConfigError(
                    f"process 0 makes a head of {found[0][0]} and process {rank} one of "
                    f"{other_sizes}; build the same learner in every process"
                )
            if other_digest != found[0][1]:
                raise ConfigError(
                    f"process {rank} draws other random numbers than process 0 for its part of the "
                    "head; call torch.manual_seed() with one seed in every process before the "
                    "network is made"
                )

    @property
    def chunks(self) -> int:
        return 1

    @property
    def own_outputs(self) -> int:
        return self.shard.rows

    def own_rows(self, whole: Tensor) -> Tensor:
        return self.shard.of(whole)

    def draw_rows_(self, low: int, high: int, fill: Callable[[Tensor], object]) -> None:
        self.shard.draw_(self.head.weight, fill, low, high)

    def _hidden(self, ids: Tensor, trains: bool = True) -> Tensor:
        return _Shared.apply(super()._hidden(ids, trains), self.shard)

    def logits(self, ids: Tensor) -> Tensor:
        """Return the mask logits (k, N) of the tasks ``ids``, int64 (k,); in all processes."""
        return _Gathered.apply(super().logits(ids), self.shard)

    def head_update(self, optimizer: Optimizer | None) -> HeadUpdate | None:
        update = super().head_update(optimizer)
        return None if update is None else _ShardedUpdate(update, self.shard)

    def _regularized_logits(
        self,
        ids: Tensor,
        kept: Tensor | FrozenHead | None,
        rows: Tensor | None,
        update: HeadUpdate | None,
    ) -> tuple[Tensor, Tensor]:
        logits, output_reg = super()._regularized_logits(ids, kept, rows, update)
        if update is None and kept is not None:
            output_reg = _Summed.apply(output_reg, self.shard)
        return _Gathered.apply(logits[None], self.shard)[0], output_reg

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.shard}"


@dataclass
class _Sharing:
    """Heads that are made meanwhile are shared: this process's place, and how many were made."""

    place: Place
    made: int = 0


_SHARING: ContextVar[_Sharing | None] = ContextVar("sharing", default=None)


def shares_heads() -> bool:
    """Return whether heads that are made now are divided among processes."""
    return _SHARING.get() is not None


def full_hypernetwork(num_outputs: int, **options: Any) -> Hypernetwork:
    """Return a hypernetwork with a full head; inside :func:`sharded_head` with a part of it."""
    sharing = _SHARING.get()
    if sharing is None:
        return Hypernetwork(num_outputs, **options)
    made = ShardedHypernetwork(num_outputs, sharing.place, **options)
    sharing.made += 1
    return made


@contextmanager
def sharing_among(place: Place) -> Iterator[None]:
    """Divide the heads of learners that are made in a ``with`` block among processes.

    Args:
        place: This process among those; on the meta device they need not be there.

    Raises:
        ConfigError: No head was made.
    """
    sharing = _Sharing(place)
    token = _SHARING.set(sharing)
    try:
        yield
    finally:
        _SHARING.reset(token)
    if not sharing.made:
        raise ConfigError(
            "0 heads were made inside sharded_head(), which divides those of learners that are "
            "built there; build a HyperMask with head='full' inside, or leave it out"
        )


def place_of(process_group: Any = None) -> Place:
    """Return the place of this process in a group.

    Args:
        process_group: Of torch.distributed. Default: all processes.

    Raises:
        RuntimeError: No process group is initialised, or this process is not in it.
        TypeError: It is no process group.
    """
    if process_group is not None and not isinstance(process_group, (dist.ProcessGroup, int)):
        raise TypeError(
            f"process_group is {shown(process_group)}; give what torch.distributed.new_group() "
            "returned, or None"
        )
    group: Any = process_group  # an integer in a process that is not in it
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"process_group is {group} and no process group is initialised; call "
            "torch.distributed.init_process_group() first, in processes started with torchrun"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise RuntimeError(
            f"process {dist.get_rank()} is not in the process group; leave it out, or give a group "
            "it belongs to"
        )
    return Place(rank, dist.get_world_size(group), group)


@contextmanager
def sharded_head(process_group: Any = None) -> Iterator[None]:
    """Divide the head of a learner that is built in a ``with`` block among processes.

    Each of W processes holds N / W rows of the hypernetwork's head, of an optimizer's moments of
    it, and of what earlier tasks keep, so that the largest target network grows with W; no process
    ever holds the whole. A step exchanges N logits and N gradients of them, besides small sums. All
    else is as for one process, whose numbers these are; the same seed gives the same head::

        torch.distributed.init_process_group("nccl")
        torch.manual_seed(0)
        with hmf.sharded_head():
            learner = hmf.HyperMask(MyNetwork().cuda(), embedding_dim=48)
        ddp = hmf.DistributedDataParallel(learner)  # where each process has a part of a batch
        ...
        hmf.save_sharded("state", learner, optimizer)

    Whatever runs the hypernetwork, so each forward, mask and export of a task that is not frozen,
    is called in all processes. Without ``DistributedDataParallel`` all of them must have the same
    batches.

    Args:
        process_group: The processes. Default: all.

    Raises:
        RuntimeError: No process group is initialised, or this process is not in it.
        ConfigError: A learner that is built has no full head of float32 or float64, or its method
            has none that can be divided; the processes have different seeds; or none was built.
    """
    with sharing_among(place_of(process_group)):
        yield
