"""Which outputs of the target network belong to a task, and the output layer's rows for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.conversion.network import ConvertedNetwork
from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.tasks import TaskList, TaskRecord


def check_classes(classes: Sequence[int] | None, mode: str) -> None:
    """Raise ValueError where a task with outputs of its own does not say how many."""
    if mode != "shared" and classes is None:
        raise ValueError(
            f"classes is None and task_heads={mode!r} gives each task outputs of its own; give the "
            "classes, or use task_heads='shared'"
        )


def check_blendable(tasks: Sequence[TaskRecord], mode: str) -> None:
    """Raise ValueError where tasks with outputs of their own have different numbers of them."""
    counts = {len(record.classes or ()) for record in tasks}
    if mode != "shared" and len(counts) > 1:
        raise ValueError(
            f"the tasks have {sorted(counts)} classes, and outputs of different numbers cannot "
            "be blended; use task_heads='shared'"
        )


def refuse_criterion(criterion: object) -> None:
    """Raise ConfigError where a softmax over several tasks' outputs would have a criterion."""
    if criterion is not None:
        raise ConfigError(
            "task_heads='growing' learns the cross-entropy over the outputs of all tasks so far, "
            "and a criterion is given; use task_heads='multi' or 'shared', or criterion=None"
        )


def padded(outputs: Tensor, count: int, dim: int | None) -> Tensor:
    """Return outputs with -inf until there are ``count`` along a dimension; None: the last one."""
    dim = -1 if dim is None else dim
    more = count - outputs.shape[dim]
    if more <= 0:
        return outputs
    after = [0] * (2 * (outputs.dim() - 1 - dim % outputs.dim()))
    return F.pad(outputs, (*after, 0, more), value=-torch.inf)


def rows_of(tasks: Sequence[TaskRecord], task: int, outputs: int, *, so_far: bool = False) -> slice:
    """Return the rows of the output layer that belong to a task.

    Args:
        tasks: All tasks; each has as many outputs as classes, in their order.
        task: One of them.
        outputs: Rows of the output layer.
        so_far: Those of the tasks before it as well.

    Raises:
        ValueError: The layer has too few rows.
    """
    sizes = [len(record.classes or ()) for record in tasks[: task + 1]]
    end = sum(sizes)
    if end > outputs:
        raise ValueError(
            f"tasks 0 to {task} have {end} classes together and the network {outputs} outputs; "
            "build it with outputs for the classes of all tasks, or use task_heads='shared'"
        )
    return slice(0 if so_far else end - sizes[-1], end)


def with_rows(weights: Mapping[str, Tensor], layer: str, rows: slice) -> dict[str, Tensor]:
    """Return weights by name with only some rows of the output layer's."""
    prefix = f"{layer}.".lstrip(".")
    own = {f"{prefix}{key}" for key in ("weight", "bias")}
    return {name: w[rows] if name in own else w for name, w in weights.items()}


def shrink(net: nn.Module, layer: str, rows: slice) -> None:
    """Leave some rows of a plain network's output layer, in place."""
    module = net.get_submodule(layer)
    for key in ("weight", "bias"):
        value = getattr(module, key)
        if value is not None:
            setattr(module, key, nn.Parameter(value.detach()[rows].clone(), value.requires_grad))
    name = "out_features" if isinstance(module, nn.Linear) else "out_channels"
    setattr(module, name, rows.stop - rows.start)


class OwnOutputs:
    """Frees, in what is kept of tasks, the weights of outputs that are not their own.

    Args:
        network: The target network, whose output layer is known when this is called.
        tasks: All tasks; each has as many outputs as classes, in their order.
    """

    def __init__(self, network: ConvertedNetwork, tasks: TaskList) -> None:
        self._network, self._tasks = network, tasks
        self._sizes = torch.empty(0, dtype=torch.int64)

    def __call__(self, logits: Tensor, ids: Tensor) -> None:
        """Set the others' weights to NaN in those of the tasks ``ids``, (k, N) and int64 (k,)."""
        records, device = self._tasks.records, logits.device
        if len(self._sizes) != len(records) or self._sizes.device != device:
            # Only then, for a CUDA graph cannot copy from the host.
            sizes = [len(record.classes or ()) for record in records]
            self._sizes = torch.tensor(sizes, device=device)
        ends = self._sizes.cumsum(0)
        first, end = (ends - self._sizes)[ids, None], ends[ids, None]
        for entry in self._network.tensors:
            if entry.name.rpartition(".")[0] != self._network.last:
                continue
            row = torch.arange(entry.shape[0], device=device)
            of_layer = logits[:, entry.offset : entry.offset + entry.size]
            others = ((row < first) | (row >= end)).repeat_interleave(entry.size // len(row), dim=1)
            of_layer.masked_fill_(others, torch.nan)
