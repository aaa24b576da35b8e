"""Learners of several seeds that train at once: one batched step for all of them.

Their parameters lie in stacks, a learner each, and a step is the learner's own losses under
``torch.func.vmap``: every product of all of them is one batched product, and there is one launch
where there was one for each seed. So it is for many small runs on a GPU; on a CPU processes are.
Products are summed in another order than alone: the numbers are those of the single runs to
rounding, 1e-10 in float64, and not to the bit. Nothing takes it by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from hypermask_fast.errors import ConfigError, TrainingError
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.optim.rows import rows_with_gradient
from hypermask_fast.scenarios.task import Task
from hypermask_fast.training.schedules import Schedule
from hypermask_fast.training.trainer import Trainer

_RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)


class _LossesOf(nn.Module):
    """A learner whose call gives the total of its losses, and that of the task alone."""

    def __init__(self, learner: HyperMask, task: int) -> None:
        super().__init__()
        self.learner, self._task = learner, task

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        losses: Losses = self.learner.losses(x, y, self._task)
        return losses.total, (losses.total.detach(), losses.task.detach())


def refusal(trainers: Sequence[Trainer]) -> str | None:
    """Return why learners cannot train together, in one sentence; None where they can."""
    fix = "train them one after the other, or in processes of their own"
    first = trainers[0]
    for trainer in trainers:
        learner, settings = trainer.learner, trainer.settings
        if type(learner) is not HyperMask:
            return f"the learner is {type(learner).__name__}, expected HyperMask; {fix}"
        if type(learner.hypernetwork) is not Hypernetwork:
            kind = type(learner.hypernetwork).__name__
            return f"the hypernetwork is a {kind}, expected head='full'; {fix}"
        if learner._kept.form != "full" or learner._kept.count is not None:
            return f"targets or regularized_tasks keep less than all earlier logits; {fix}"
        if learner.earlier == "frozen" or learner.frozen:
            return f"earlier tasks are frozen; {fix}"
        buffers = [name for name, _ in learner.net.named_buffers()]
        if buffers:
            return f"the network has the buffers {', '.join(buffers[:3])}; {fix}"
        random = [
            name for name, module in learner.net.named_modules() if isinstance(module, _RANDOM)
        ]
        if random:
            return f"the network draws random numbers in {random[0]!r}; {fix}"
        wanted = {"optimizer": "adam", "selection": "last", "weight_decay": 0.0}
        for name, value in wanted.items():
            if getattr(settings, name) != value:
                return f"{name} is {getattr(settings, name)!r}, expected {value!r}; {fix}"
        if settings.validates or settings.moments != "float32":
            return f"schedule={settings.schedule!r}, moments={settings.moments!r}; {fix}"
        if settings != first.settings or _shapes(learner) != _shapes(first.learner):
            return f"the settings or the sizes of the learners are not the same; {fix}"
    return None


def _shapes(learner: nn.Module) -> list[tuple[str, torch.Size, torch.dtype]]:
    return [(name, p.shape, p.dtype) for name, p in learner.named_parameters()]


class Together:
    """The current task of several learners, in stacks.

    Args:
        learners: Each has begun the task; they are not to be used until :meth:`unstack`.
        task: Its id.
        lr: Adam's learning rate, which the optimizer's group holds.
        beta1: Of Adam.
    """

    def __init__(
        self, learners: Sequence[HyperMask], task: int, *, lr: float, beta1: float = 0.9
    ) -> None:
        self._learners = learners
        self._module = _LossesOf(learners[0], task)
        groups = learners[0].parameter_groups(learners[0].phase)
        trained = {id(p) for group in groups for p in group.params}
        modules = [_LossesOf(learner, task) for learner in learners]
        each = [dict(module.named_parameters()) for module in modules]
        stacks = {n: torch.stack([of[n].detach() for of in each]) for n in each[0]}
        self._trained = [n for n, p in each[0].items() if id(p) in trained]
        self._stacks = {n: nn.Parameter(s) if n in self._trained else s for n, s in stacks.items()}
        self._tables = [
            n for n in self._trained if each[0][n] is learners[0].hypernetwork.embeddings
        ]
        self._each = each
        self._kept = _stacked([learner._kept.logits for learner in learners])
        self._previous = _stacked([learner._previous for learner in learners])
        self._shared = _stacked([learner._previous_shared for learner in learners])
        self.optimizer = torch.optim.Adam(
            [self._stacks[n] for n in self._trained], lr=lr, betas=(beta1, 0.999)
        )

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Learn from a batch of each learner.

        Args:
            x: (seeds, batch, ...).
            y: (seeds, batch).

        Returns:
            The losses, in total and of the task alone, (seeds,) each.
        """
        stacks = {n: s.detach() for n, s in self._stacks.items()}
        trained = {n: stacks[n] for n in self._trained}
        fixed = {n: s for n, s in stacks.items() if n not in trained}
        given = (trained, fixed, self._kept, self._previous, self._shared, x, y)
        axes = tuple(None if value is None else 0 for value in given)
        grads, (total, of_task) = vmap(grad(self._loss, has_aux=True), axes)(*given)
        for learner in self._learners[1:]:  # the first one has counted its own
            learner._steps.count(on_device=learner._reads_step)
        for name in self._trained:
            self._stacks[name].grad = grads[name]
        self._update()
        return total, of_task

    def _loss(
        self,
        trained: dict[str, Tensor],
        fixed: dict[str, Tensor],
        kept: Tensor | None,
        previous: Tensor | None,
        shared: Tensor | None,
        x: Tensor,
        y: Tensor,
    ) -> Any:
        learner = self._learners[0]
        before = learner._kept.logits, learner._previous, learner._previous_shared
        try:
            learner._kept.logits = kept
            learner._previous, learner._previous_shared = previous, shared
            return functional_call(self._module, {**trained, **fixed}, (x, y))
        finally:
            learner._kept.logits, learner._previous, learner._previous_shared = before

    @torch.no_grad()
    def _update(self) -> None:
        """Take Adam's step; rows of tables without a gradient keep values and moments."""
        held = []
        for name in self._tables:
            table = self._stacks[name]
            state = self.optimizer.state.get(table, {})
            values = [table, *(state[key] for key in ("exp_avg", "exp_avg_sq") if key in state)]
            assert table.grad is not None
            moves = rows_with_gradient(table.grad.flatten(0, 1)).unflatten(0, table.shape[:2])
            held += [(value, value.clone(), moves) for value in values]
        self.optimizer.step()
        for value, before, moves in held:
            value.copy_(torch.where(moves, value, before))

    @torch.no_grad()
    def unstack(self) -> None:
        """Give the learners what they have learned."""
        for name in self._trained:
            for parameters, value in zip(self._each, self._stacks[name], strict=True):
                parameters[name].copy_(value)


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    found = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(found) if found else None


def fit_together(
    trainers: Sequence[Trainer], tasks: Sequence[Task]
) -> list[npt.NDArray[np.float64]]:
    """Train a task with each of several trainers at once, as :meth:`Trainer.fit` does with one.

    There are no checkpoints within the task, and hooks are not called.

    Args:
        trainers: Of learners that are alike, with their own seeds.
        tasks: One for each; of the same size and name in all.

    Returns:
        What :meth:`Trainer.fit` returns, of each.

    Raises:
        ConfigError: They cannot train together; nothing was changed.
        TrainingError: A loss is not finite.
    """
    reason = refusal(trainers)
    if reason is not None:
        raise ConfigError(f"these learners cannot train together: {reason}")
    ids = [trainer.add(task) for trainer, task in zip(trainers, tasks, strict=True)]
    own = [trainer.tasks[i] for trainer, i in zip(trainers, ids, strict=True)]
    total = trainers[0].steps_of(own[0])
    steps = {trainer.steps_of(task) for trainer, task in zip(trainers, own, strict=True)}
    if len(set(ids)) > 1 or len(steps) > 1:
        raise ConfigError(
            f"these learners cannot train together: the tasks have the ids {ids} and "
            f"{sorted(steps)} steps; give the same task to each"
        )
    settings, task = trainers[0].settings, ids[0]
    streams = [
        each.stream(settings.batch_size, seed=trainer.seed, task_id=task)
        for trainer, each in zip(trainers, own, strict=True)
    ]
    learners: list[Any] = [trainer.learner for trainer in trainers]
    for trainer, stream in zip(trainers, streams, strict=True):
        trainer._begin(task, total, stream)
        trainer._drop_optimizers()  # the stacks have their own
        trainer.learner.train()
    together = Together(learners, task, lr=settings.lr, beta1=settings.adam_beta1)
    schedule = Schedule(
        settings.schedule,
        [together.optimizer],
        steps=total,
        warmup_steps=settings.warmup_steps,
        epoch_steps=trainers[0]._epoch_steps(own[0]),
    )
    for step in range(total):
        schedule.before_step(step)
        batches = [stream.batch(step) for stream in streams]
        found, _ = together.step(*(torch.stack(part) for part in zip(*batches, strict=True)))
        if not found.isfinite().all():
            seed = trainers[int((~found.isfinite()).nonzero()[0])].seed
            raise TrainingError(
                f"the loss of seed {seed} is not finite after step {step + 1} of the task "
                f"{own[0].name!r}; use a smaller lr"
            )
    together.unstack()
    rows = []
    for trainer in trainers:
        trainer.step = total
        rows.append(trainer._finish(task))
        trainer.learner.eval()
    return rows
