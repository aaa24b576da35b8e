"""Normalisation layers under a learner: statistics of the batch, of each task, or frozen."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.errors import ConfigError


class NormState(NamedTuple):
    """Affine parameters and running statistics that stand in for a layer's own in a forward."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    update: bool = False


class TaskNorm(nn.Module):
    """What the converted layers share. Without a state they are the plain layer."""

    plain: ClassVar[type[nn.Module]]
    active: NormState | None = None


class _TaskBatchNorm(TaskNorm):
    eps: float
    momentum: float | None

    def forward(self, x: Tensor) -> Tensor:
        state = self.active
        if state is None:
            return super().forward(x)
        self._check_input_dim(x)
        uses_batch = state.running_mean is None or state.update
        momentum = 0.0 if self.momentum is None else self.momentum
        return F.batch_norm(
            x,
            state.running_mean,
            state.running_var,
            state.weight,
            state.bias,
            uses_batch,
            momentum,
            self.eps,
        )


class TaskBatchNorm1d(_TaskBatchNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` with a state for each task."""

    plain = nn.BatchNorm1d


class TaskBatchNorm2d(_TaskBatchNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with a state for each task."""

    plain = nn.BatchNorm2d


class TaskLayerNorm(TaskNorm, nn.LayerNorm):
    """``nn.LayerNorm`` with affine parameters for each task."""

    plain = nn.LayerNorm

    def forward(self, x: Tensor) -> Tensor:
        state = self.active
        if state is None:
            return super().forward(x)
        return F.layer_norm(x, self.normalized_shape, state.weight, state.bias, self.eps)


class TaskGroupNorm(TaskNorm, nn.GroupNorm):
    """``nn.GroupNorm`` with affine parameters for each task."""

    plain = nn.GroupNorm

    def forward(self, x: Tensor) -> Tensor:
        state = self.active
        if state is None:
            return super().forward(x)
        return F.group_norm(x, self.num_groups, state.weight, state.bias, self.eps)


TASK_NORMS: dict[type[nn.Module], type[TaskNorm]] = {
    cls.plain: cls for cls in (TaskBatchNorm1d, TaskBatchNorm2d, TaskLayerNorm, TaskGroupNorm)
}


class NormTable(nn.Module):
    """The states of one normalisation layer, a row a task; each starts as the layer's own.

    Args:
        layer: The layer, whose parameters and statistics are copied ``capacity`` times.
        capacity: Rows.

    Raises:
        ConfigError: The layer is a batch norm without running statistics, or averages them
            cumulatively (momentum None), which a row a task cannot hold.
    """

    def __init__(self, layer: TaskNorm, capacity: int) -> None:
        super().__init__()
        if isinstance(layer, _TaskBatchNorm) and (
            layer.running_mean is None or layer.momentum is None
        ):
            raise ConfigError(
                f"{layer} keeps no running statistics with a momentum, which bn='per_task' needs; "
                "build it with track_running_stats=True and a momentum, or use bn='batch'"
            )
        for key in ("weight", "bias"):
            value = getattr(layer, key, None)
            rows = None if value is None else nn.Parameter(_rows(value, capacity))
            self.register_parameter(key, rows)
        for key in ("running_mean", "running_var"):
            value = getattr(layer, key, None)
            self.register_buffer(key, None if value is None else _rows(value, capacity))

    def state(self, task: int, training: bool) -> NormState:
        """Return the row of a task; running statistics are views that a forward updates."""
        rows = [
            None if value is None else value[task]
            for value in (self.weight, self.bias, self.running_mean, self.running_var)
        ]
        return NormState(*rows, update=training and self.running_mean is not None)

    def install(self, layer: nn.Module, task: int) -> None:
        """Copy the row of a task into a plain layer."""
        values: dict[str, Any] = self.state(task, training=False)._asdict()
        for key in ("weight", "bias", "running_mean", "running_var"):
            if values[key] is not None:
                with torch.no_grad():
                    getattr(layer, key).copy_(values[key])


def _rows(value: Tensor, capacity: int) -> Tensor:
    return value.detach().expand(capacity, *value.shape).clone()
