"""A step of several processes: each with its rows, and the gradients of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim.optimizer import Optimizer

from hypermask_fast.conversion.norm_tables import NormTable
from hypermask_fast.counters import counter_randint
from hypermask_fast.layers.norms import TaskNorm
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.methods.sharing import Share
from hypermask_fast.optim.factored_grad import FactoredGrad
from hypermask_fast.training.distributed.batch_norm import WholeBatchNorm, has_batch_norm
from hypermask_fast.training.distributed.processes import Processes
from hypermask_fast.training.step import TrainingStep

_APART = 0x5EED
"""Tells the random numbers of a process from all others."""


def _factored_mean(processes: Processes, share: Share, grad: FactoredGrad) -> FactoredGrad:
    """Return the mean of gradients of low rank as its factors, those of all processes."""
    dz = processes.gathered(grad.dz * share.weight)
    return FactoredGrad(torch.cat(dz), torch.cat(processes.gathered(grad.hidden)))


class Exchange:
    """What several processes that train a learner together exchange in a step.

    Args:
        processes: The processes.
        learner: The learner.
    """

    def __init__(self, processes: Processes, learner: Learner) -> None:
        self._processes, self._learner = processes, learner
        self._share = processes.share(processes.world)
        self._follow = {id(p) for p in learner.follows_exchange()}
        # Of a normalisation's table only the row of the current task has a gradient.
        tables = (m for m in learner.modules() if isinstance(m, NormTable))
        self._of_norms = {id(p) for table in tables for p in table.parameters()}
        self._moving = _with_moving_buffers(learner)
        self._normalizes = has_batch_norm(learner)

    @contextmanager
    def of_rows(self, share: Share) -> Iterator[None]:
        """In a ``with`` block the learner's losses are those of this process's rows of a batch.

        Batch norms have the statistics of all rows. What is exchanged afterwards counts by them.
        """
        self._share = self._learner.share = share
        try:
            with self.statistics() if self._normalizes else nullcontext():
                yield
        finally:
            self._learner.share = None

    def statistics(self) -> WholeBatchNorm:
        """Return the context in which batch norms have the statistics of all rows."""
        return WholeBatchNorm(self._processes, self._share)

    def before_steps_of(self, optimizer: Optimizer) -> None:
        """Exchange gradients before each step of an optimizer from now on.

        What holds rows still in a step looks at the exchanged gradients.
        """
        plain: Callable[..., Any] = optimizer.step

        @wraps(plain)
        def step(own: Optimizer, *args: Any, **kwargs: Any) -> Any:
            self.gradients([p for group in own.param_groups for p in group["params"]])
            return plain(*args, **kwargs)

        # A method, as schedulers that wrap it in turn expect.
        optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]

    def buffers(self) -> None:
        """Make the buffers that a forward of the network moved those of the first process."""
        found = [buffer for module in self._moving for buffer in module.buffers(recurse=False)]
        if found:
            self._processes.copy_(found)

    @torch.no_grad()
    def losses(self, losses: Losses, *more: Tensor) -> tuple[Losses, list[Tensor]]:
        """Return the losses of the whole batch, but for the logits, and the means of ``more``."""
        scalars = losses.scalars()
        means = self._share.mean([*scalars.values(), *more])
        total, own, *terms = means[: len(scalars)]
        named = dict(zip(losses.terms, terms, strict=True))
        return Losses(total, own, losses.logits, named), means[len(scalars) :]

    def _read(self, p: Tensor) -> Tensor:
        """Return the part of a parameter's gradient that is exchanged; where it has none, zeros."""
        row = self._learner.current if id(p) in self._of_norms else None
        value = p if row is None else p[row]
        if p.grad is None:
            return torch.zeros_like(value)
        return p.grad if row is None else p.grad[row]

    @torch.no_grad()
    def gradients(self, params: Iterable[Tensor]) -> None:
        """Make gradients those of the whole batch.

        Those that are alike already stay. A parameter that took part in no process's rows keeps no
        gradient.
        """
        params = [p for p in params if p.requires_grad and id(p) not in self._follow]
        dense = []
        for p in params:
            grad = p.grad
            if isinstance(grad, FactoredGrad) and grad.is_factored:
                p.grad = _factored_mean(self._processes, self._share, grad)
                continue
            if isinstance(grad, FactoredGrad):
                p.grad = grad.to_dense()
            dense.append(p)
        for dtype in dict.fromkeys(p.dtype for p in dense):
            self._exchange_alike([p for p in dense if p.dtype == dtype])

    def _exchange_alike(self, params: list[Tensor]) -> None:
        has = torch.tensor([p.grad is not None for p in params])
        parts = [self._read(p) for p in params]
        used, *means = self._share.mean([has.to(parts[0]), *parts])
        for i, (p, part, mean) in enumerate(zip(params, parts, means, strict=True)):
            if p.grad is not None:
                part.copy_(mean)
            elif used[i]:
                p.grad = torch.zeros_like(p)
                self._read(p).copy_(mean)


def _with_moving_buffers(learner: Learner) -> list[nn.Module]:
    """Return the modules whose buffers a forward of the network may move, but for batch norms."""
    parts = list(learner.net.modules())
    found = [module for module in parts if not isinstance(module, TaskNorm | _BatchNorm)]
    if any(isinstance(m, _InstanceNorm) and m.track_running_stats for m in parts):
        found += [module for module in learner.modules() if isinstance(module, NormTable)]
    return found


class SharedStep(TrainingStep):
    """A learner's step on one process's rows, with the gradients and losses of the whole batch.

    Its losses but the logits are the means over all rows, the same in all processes. Batch norms
    have the statistics of all rows. Dropout is drawn by each process for its rows.

    Args:
        learner, optimizers: As in :class:`TrainingStep`.
        processes: Those that take the step together.
        share: This process's part of it.
        seed: Of what the processes draw apart.
    """

    def __init__(
        self,
        learner: Learner,
        optimizers: Mapping[str, Optimizer],
        processes: Processes,
        share: Share,
        seed: int,
    ) -> None:
        super().__init__(learner, optimizers)
        self._processes, self._share, self._seed = processes, share, seed
        self._exchange = Exchange(processes, learner)
        for optimizer in self.optimizers.values():
            self._exchange.before_steps_of(optimizer)

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        task: int,
        before_update: Callable[[], None] | None = None,
    ) -> Losses:
        """Run a step on this process's rows; see :class:`TrainingStep`."""
        if not self._processes.is_first:
            # A function of the step: what goes on from a checkpoint draws the same.
            words = self._seed, _APART, task, self.number, self._processes.rank
            torch.manual_seed(int(counter_randint(2**31, *words)))
        with self._exchange.of_rows(self._share):
            losses = super().__call__(x, y, task, before_update)
        self._exchange.buffers()
        signals = self._processes.signals(losses.total)
        mean, (signals,) = self._exchange.losses(losses, signals)
        self._processes.see(signals, self.number)
        return mean
