"""What is read of a HyperMask learner: masks, masked weights and the networks they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.conversion.norm_tables import State
from hypermask_fast.errors import CheckpointError, shown
from hypermask_fast.methods.batches import (
    check_devices,
    check_weights,
    sum_of,
)
from hypermask_fast.methods.generated import GeneratedLearner
from hypermask_fast.methods.hypermask.frozen import FrozenTasks
from hypermask_fast.methods.hypermask.masks import masked_weights, outputs_at_once
from hypermask_fast.methods.inputs import Batch, Inputs, signature
from hypermask_fast.methods.state_checks import check_ids
from hypermask_fast.methods.tasks import TaskId


class MaskedLearner(GeneratedLearner):
    """A learner whose hypernetwork masks the weights of one network, beside how it learns.

    Attributes:
        sparsity: Percent of mask entries that are removed.
        dropout: "always", or "first_step": only in a task's first step.
        earlier: "regularized", or "frozen": :meth:`end_task` freezes the task.
        frozen_tasks: What is kept of the frozen tasks. A subclass makes it.
    """

    alone = "its own weights, without a mask"

    sparsity: float
    dropout: str
    earlier: str
    frozen_tasks: FrozenTasks

    @property
    def exempt(self) -> str | None:
        """Name of the bias that is not masked; None before the first batch, or if there is none."""
        return self._network.exempt

    def _prepare(self, x: Batch) -> None:
        """Find the bias to exempt, that of the masked layer which runs last, in a dry forward."""
        super()._prepare(x)
        if not self._network.traced:
            self._dry_run(x, self._network.find_exempt)
            self._input = signature(x)

    def _require_trace(self) -> None:
        if not self._network.traced:
            raise RuntimeError(
                "the bias that is not masked is still unknown; run learner(x, task) or losses() "
                "once, or build HyperMask with example_input= or exempt="
            )

    @property
    def step_sparsity(self) -> float:
        """Percent of mask entries removed in the step that was taken last."""
        return float(self._steps.sparsity(self.sparsity, self._steps.taken))

    def _masked(
        self, task: TaskId, sparsity: float | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return a task's masked weights and its masks, by name; of a frozen one no masks."""
        self._require_trace()
        ids = [self._tasks.checked(task)]
        if ids[0] in self.frozen_tasks.ids:
            is_own = isinstance(sparsity, float | int) and sparsity == self.sparsity
            if sparsity is not None and not is_own:
                raise ValueError(
                    f"sparsity is {shown(sparsity)} and task {ids[0]} is frozen, with the masks "
                    "multiplied into its weights; leave the sparsity out"
                )
            return self.frozen_tasks.weights(ids[0]), {}
        logits, _ = self.hypernetwork(torch.tensor(ids, device=self.hypernetwork.embeddings.device))
        p = self.sparsity if sparsity is None else sparsity
        weights, tensors = masked_weights(self._network, logits, p)
        return weights, dict(zip(weights, tensors.masks, strict=True))

    def _outputs_at_once(
        self, x: Batch, ids: Sequence[int], task_of_row: Tensor | None = None
    ) -> Tensor | None:
        if isinstance(x, Inputs) or not set(ids).isdisjoint(self.frozen_tasks.ids):
            return None
        device = self.hypernetwork.embeddings.device
        return outputs_at_once(
            self._network,
            lambda group: self.hypernetwork.logits(torch.tensor(list(group), device=device)),
            *(x, ids, task_of_row),
            sparsity=self.sparsity,
            dropout=self.dropout == "always",
        )

    @contextmanager
    def activated(
        self, task: TaskId, weights: Mapping[str, Tensor] | None = None
    ) -> Iterator[nn.Module]:
        task = self._tasks.checked(task)
        check_weights(weights)
        if weights is None:
            weights, _ = self._masked(task, self._coming_sparsity(task))
        with self._beside(task) as norms, self._applied(weights, norms, task) as net:
            yield net

    def _trains(self, task: int | None) -> bool:
        """Return whether a forward is one of the current task's training."""
        is_current = task is not None and task == self._current
        return is_current and self.training and torch.is_grad_enabled()

    def _coming_sparsity(self, task: int) -> float | None:
        if not self._trains(task):
            return None
        return float(self._steps.sparsity(self.sparsity, self._steps.taken + 1))

    def _applied(
        self,
        weights: Mapping[str, Tensor],
        norms: Sequence[tuple[nn.Module, State]],
        task: int | None = None,
    ) -> AbstractContextManager[nn.Module]:
        is_first = self.dropout == "first_step" and self._trains(task) and not self._steps.taken
        dropout = self.dropout == "always" or is_first
        return self._network.applied(weights, norms, dropout=dropout)

    @contextmanager
    def _beside(self, task: int) -> Iterator[list[tuple[nn.Module, State]]]:
        """Let the network hold what a task reads beside weights; give its states of norms."""
        if task not in self.frozen_tasks.ids:
            yield self.norms.states(task, learning=task == self._current)
            return
        with self.frozen_tasks.running(self.frozen_tasks.beside(task)) as norms:
            yield norms

    def install_norms(self, net: nn.Module, task: TaskId) -> None:
        super().install_norms(net, task)
        task = self._tasks.checked(task)
        if task in self.frozen_tasks.ids:
            self.frozen_tasks.install(net, task)

    @torch.no_grad()
    def task_weights(
        self, task: TaskId, *, in_step: bool = False, sparsity: float | None = None
    ) -> dict[str, Tensor]:
        """Return copies of the masked target parameters of a task, by name.

        Args:
            task: A task that was added.
            in_step: With the sparsity of the step that was taken last; a frozen task has none.
            sparsity: Percent; default: the learner's.

        Raises:
            ValueError: The task was not added, or it is frozen and another sparsity is given.
            RuntimeError: The network changed since it was converted.
        """
        self._network.check()
        if in_step and self._tasks.checked(task) not in self.frozen_tasks.ids:
            sparsity = self.step_sparsity
        weights, _ = self._masked(task, sparsity)
        return {name: w.detach().clone() for name, w in weights.items()}

    @contextmanager
    def blended(self, alpha: Tensor) -> Iterator[nn.Module]:
        """Return a context in which :attr:`net` has a blend of all tasks' masked weights.

        With ``bn="per_task"`` the tasks' parameters and statistics of normalisation are blended
        alike.

        Args:
            alpha: (tasks,), a factor for each task that was added; gradients flow to it. The masked
                weights of all tasks are kept for them.

        Raises:
            ValueError: There is not one factor for each task.
            RuntimeError: The bias that is not masked is not known yet.
        """
        self._tasks.check_factors(alpha)
        check_devices(self._device, alpha=alpha)
        weights = sum_of((self._masked(task, None)[0] for task in range(len(alpha))), alpha)
        with self._blended_beside(alpha) as norms, self._applied(weights, norms) as net:
            yield net

    @contextmanager
    def _blended_beside(self, alpha: Tensor) -> Iterator[list[tuple[nn.Module, State]]]:
        if not self.frozen_tasks.ids:
            yield self.norms.blended(alpha)
            return
        with self.frozen_tasks.running(self.frozen_tasks.blended(alpha)) as norms:
            yield norms

    @torch.no_grad()
    def masks(self, task: TaskId, *, sparsity: float | None = None) -> dict[str, Tensor]:
        """Return the masks of a task by parameter name; the exempt bias has none.

        Of a frozen task, 1 where a weight that is kept, which its mask multiplied, is not 0, else
        0.

        Args:
            task: A task that was added.
            sparsity: Percent; default: the learner's.

        Raises:
            ValueError: The task was not added, or it is frozen and another sparsity is given.
            RuntimeError: The network changed since it was converted.
        """
        self._network.check()
        weights, masks = self._masked(task, sparsity)
        if not masks:
            masks = {name: w.ne(0).to(w.dtype) for name, w in weights.items()}
        return {name: mask for name, mask in masks.items() if name != self.exempt}

    @property
    def frozen(self) -> Sequence[int]:
        """The tasks that :meth:`freeze_masks` froze, in that order."""
        return tuple(self.frozen_tasks.ids)

    @torch.no_grad()
    def freeze_masks(self) -> None:
        """Freeze the tasks learned so far: their outputs keep their bits, whatever trains later.

        For each of them the masked weights are kept, as many numbers as the target network has
        parameters with masks, and the rest that its forward reads; see
        :class:`~hypermask_fast.methods.hypermask.frozen.FrozenTasks`. From then on they need no
        protection: the regularizers of later tasks leave them out, and the L1 drift is absent where
        no other task needs it. A frozen task is not begun again; a copy of one, by
        :meth:`copy_task`, is not frozen, and starts from its embedding and the weights as they are
        then. Tasks that are frozen already stay as they are.

        Raises:
            RuntimeError: A task is being learned, or no forward was run.
        """
        if self._current is not None:
            raise RuntimeError(
                f"task {self._current} is being learned; call end_task() before freeze_masks()"
            )
        for task in self._learned:
            if task not in self.frozen_tasks.ids:
                self.frozen_tasks.keep(task, self._masked(task, None)[0])
        self.generation += 1

    def end_task(self, data: object = None) -> None:
        self._require_current("end_task")
        if self.earlier == "frozen":
            self._require_trace()
        super().end_task(data)
        if self.earlier == "frozen":
            self.freeze_masks()

    def _checked_beginning(self, task: TaskId, steps: int) -> int:
        task = super()._checked_beginning(task, steps)
        if task in self.frozen_tasks.ids:
            raise RuntimeError(
                f"task {task} is frozen and cannot be learned again; add a task for it, or "
                f"copy_task({task}), which starts from it"
            )
        return task

    def _earlier(self, task: int) -> list[int]:
        """Return the tasks to protect: those that were learned and can change, but for this one."""
        return [other for other in super()._earlier(task) if other not in self.frozen_tasks.ids]

    def learned_state(self, tasks: Sequence[int]) -> dict[str, Any]:
        frozen = {"frozen": list(tasks)} if self.earlier == "frozen" and tasks else {}
        return {**super().learned_state(tasks), **frozen}

    def task_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().task_state()
        return tensors, {**state, "frozen": list(self.frozen)} if self.frozen else state

    def _check_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super()._check_state(tensors, state)
        wrong = [task for task in state.get("frozen", ()) if task not in state["learned"]]
        if wrong:
            raise CheckpointError(
                f"the state has frozen tasks {wrong} that were not learned; give what task_state() "
                "returned"
            )

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().load_task_state(tensors, state)
        self.frozen_tasks.take(state.get("frozen", ()))

    def _state_like(self, extra: Mapping[str, Any]) -> Mapping[str, Any]:
        tasks, ids = extra["tasks"], extra.get("frozen", [])
        check_ids("frozen", ids, len(tasks) if isinstance(tasks, list) else 0)
        own = super()._state_like(extra)
        rest = {k: v for k, v in own.items() if not k.startswith("frozen_tasks.")}
        return {**rest, **self.frozen_tasks.state_like(ids, "frozen_tasks.")}

    def memory_parts(self) -> dict[str, Sequence[Tensor]]:
        kept = list(self.frozen_tasks.buffers())
        return {**super().memory_parts(), "weights of frozen tasks": kept}
