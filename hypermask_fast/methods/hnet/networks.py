"""What is read of an HNET learner: the networks that its hypernetwork generates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.methods.batches import run, sum_of
from hypermask_fast.methods.generated import GeneratedLearner
from hypermask_fast.methods.hnet.heads import (
    check_blendable,
    padded,
    rows_of,
    shrink,
    with_rows,
)
from hypermask_fast.methods.inputs import Batch, Inputs
from hypermask_fast.methods.outputs import cat
from hypermask_fast.methods.tasks import TaskId

_ENTRIES_AT_ONCE = 2**26
"""Target weights that are generated for several tasks together: 256 MiB of float32."""


class GeneratingLearner(GeneratedLearner):
    """A learner whose hypernetwork generates all weights, beside how it learns.

    Attributes:
        task_heads: "shared", or how tasks have outputs of their own.
    """

    alone = "the weights it was built with, which no task uses"

    task_heads: str

    def _prepare(self, x: Batch) -> None:
        """Find the output layer, where tasks have rows of it, in a dry forward."""
        super()._prepare(x)
        if self.task_heads != "shared" and self._network.last is None:
            self._dry_run(x, self._network.find_last)

    def _rows(self, task: int, *, so_far: bool = False) -> slice | None:
        """Return the rows of the output layer that a task has; None for all."""
        if self.task_heads == "shared":
            return None
        if self._network.last is None:
            raise RuntimeError(
                "the output layer is still unknown; run learner(x, task) or step() once, or build "
                "HNET with example_input="
            )
        layer = self.net.get_submodule(self._network.last)
        assert isinstance(layer.weight, Tensor)
        return rows_of(self.tasks, task, len(layer.weight), so_far=so_far)

    def _weights(self, logits: Tensor, rows: slice | None) -> dict[str, Tensor]:
        """Return what the hypernetwork emitted as the network's tensors, by name.

        Args:
            logits: (N,), or longer where the last chunk is not cut off.
            rows: Of the output layer; None for all.
        """
        tensors = self._network.tensors
        sizes = [entry.size for entry in tensors]
        *parts, _ = logits.split([*sizes, len(logits) - self._network.size])
        weights = {e.name: part.view(e.shape) for e, part in zip(tensors, parts, strict=True)}
        if rows is None:
            return weights
        assert self._network.last is not None
        return with_rows(weights, self._network.last, rows)

    def _ids(self, tasks: Sequence[int]) -> Tensor:
        return torch.tensor(list(tasks), device=self.hypernetwork.embeddings.device)

    def _generated(self, task: TaskId) -> dict[str, Tensor]:
        task = self._tasks.checked(task)
        rows = self._rows(task)
        return self._weights(self.hypernetwork.logits(self._ids([task]))[0], rows)

    def _weights_in_place(self, task: int) -> Mapping[str, Tensor]:
        return self._generated(task)

    @torch.no_grad()
    def task_weights(self, task: TaskId, *, in_step: bool = False) -> dict[str, Tensor]:
        return {name: w.detach().clone() for name, w in self._generated(task).items()}

    def install_norms(self, net: nn.Module, task: TaskId) -> None:
        """Give a plain copy of the network a task's statistics, and the task's outputs alone."""
        super().install_norms(net, task)
        rows = self._rows(self._tasks.checked(task))
        if rows is not None:
            assert self._network.last is not None
            shrink(net, self._network.last, rows)

    @contextmanager
    def blended(self, alpha: Tensor) -> Iterator[nn.Module]:
        """Return a context in which :attr:`net` has a blend of all tasks' weights.

        Statistics of normalisation are blended alike, and so are the tasks' own outputs, in order.

        Args:
            alpha: (tasks,), a factor for each task that was added; gradients flow to it.

        Raises:
            ValueError: There is not one factor for each task, or the tasks have different numbers
                of outputs.
        """
        self._tasks.check_factors(alpha)
        check_blendable(self.tasks, self.task_heads)
        weights = sum_of((self._generated(task) for task in range(len(alpha))), alpha)
        with self._network.applied(weights, self.norms.blended(alpha)) as net:
            yield net

    @property
    def _most_outputs(self) -> int:
        return max(len(record.classes or ()) for record in self.tasks)

    def _padded(self, outputs: Any) -> Any:
        """Return logits with -inf for the classes that other tasks have more."""
        if self.task_heads == "shared" or not isinstance(outputs, Tensor):
            return outputs
        return padded(outputs, self._most_outputs, self.class_dim)

    def _forward_one(self, x: Batch, task: int) -> Any:
        return self._padded(super()._forward_one(x, task))

    def _outputs_at_once(
        self, x: Batch, ids: Sequence[int], task_of_row: Tensor | None = None
    ) -> Tensor | None:
        """Generate the weights of many tasks together, in one pass over the head."""
        if len(ids) == 1 or isinstance(x, Inputs) or torch.is_grad_enabled():
            return None
        together = max(1, _ENTRIES_AT_ONCE // self._network.size)
        outputs: list[Tensor] = []
        for first in range(0, len(ids), together):
            group = ids[first : first + together]
            for task, logits in zip(group, self.hypernetwork.logits(self._ids(group)), strict=True):
                weights = self._weights(logits, self._rows(task))
                rows = x if task_of_row is None else x[task_of_row == len(outputs)]
                with self.activated(task, weights) as net:
                    outputs.append(self._padded(run(net, rows, self._input)))
        together_again = cat(outputs)
        if not isinstance(together_again, Tensor):
            return None
        if task_of_row is None:
            return together_again
        return together_again[task_of_row.argsort(stable=True).argsort()]
