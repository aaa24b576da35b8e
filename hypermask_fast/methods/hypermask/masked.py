"""What is read of a HyperMask learner: masks, masked weights and the networks they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hypermask_fast.methods.batches import (
    check_devices,
    check_weights,
    sum_of,
)
from hypermask_fast.methods.generated import GeneratedLearner
from hypermask_fast.methods.hypermask.masks import masked_weights, outputs_at_once
from hypermask_fast.methods.inputs import Batch, Inputs, signature
from hypermask_fast.methods.tasks import TaskId


class MaskedLearner(GeneratedLearner):
    """A learner whose hypernetwork masks the weights of one network, beside how it learns.

    Attributes:
        sparsity: Percent of mask entries that are removed.
        dropout: "always", or "first_step": only in a task's first step.
    """

    alone = "its own weights, without a mask"

    sparsity: float
    dropout: str

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
        """Return a task's masked weights and its masks, by name."""
        self._require_trace()
        ids = [self._tasks.checked(task)]
        logits, _ = self.hypernetwork(torch.tensor(ids, device=self.hypernetwork.embeddings.device))
        p = self.sparsity if sparsity is None else sparsity
        weights, tensors = masked_weights(self._network, logits, p)
        return weights, dict(zip(weights, tensors.masks, strict=True))

    def _outputs_at_once(
        self, x: Batch, ids: Sequence[int], task_of_row: Tensor | None = None
    ) -> Tensor | None:
        if isinstance(x, Inputs):
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
            weights, _ = self._masked(task, None)
        norms = self.norms.states(task, learning=task == self._current)
        with self._network.applied(weights, norms, dropout=self.dropout == "always") as net:
            yield net

    @torch.no_grad()
    def task_weights(
        self, task: TaskId, *, in_step: bool = False, sparsity: float | None = None
    ) -> dict[str, Tensor]:
        """Return copies of the masked target parameters of a task, by name.

        Args:
            task: A task that was added.
            in_step: With the sparsity of the step that was taken last.
            sparsity: Percent; default: the learner's.

        Raises:
            ValueError: The task was not added.
            RuntimeError: The network changed since it was converted.
        """
        self._network.check()
        weights, _ = self._masked(task, self.step_sparsity if in_step else sparsity)
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
        norms = self.norms.blended(alpha)
        with self._network.applied(weights, norms, dropout=self.dropout == "always") as net:
            yield net

    @torch.no_grad()
    def masks(self, task: TaskId, *, sparsity: float | None = None) -> dict[str, Tensor]:
        """Return the masks of a task by parameter name; the exempt bias has none.

        Args:
            task: A task that was added.
            sparsity: Percent; default: the learner's.

        Raises:
            ValueError: The task was not added.
            RuntimeError: The network changed since it was converted.
        """
        self._network.check()
        _, masks = self._masked(task, sparsity)
        return {name: mask for name, mask in masks.items() if name != self.exempt}
