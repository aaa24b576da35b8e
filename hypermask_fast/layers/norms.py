"""Normalisation layers whose parameters and statistics can be replaced in a forward."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hypermask_fast.errors import shown
from hypermask_fast.layers.stand_ins import TaskLayer, is_repeated


class NormState(NamedTuple):
    """What stands in for a layer's own parameters and statistics in a forward.

    Attributes:
        weight, bias: Affine parameters, or None.
        running_mean, running_var: Statistics of a batch norm; None uses the batch's.
        learning: In training mode, use the batch's statistics and move the running ones.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    learning: bool = False


class TaskNorm(TaskLayer):
    """What the converted layers share. Without a state they are the plain layer."""

    active: NormState | None = None
    frozen: bool = False


def check_module(net: nn.Module) -> None:
    """Raise TypeError where a network is no module."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"net is {shown(net)}; give a network, an instance of nn.Module")


def _normalized(x: Tensor, state: NormState, eps: float) -> Tensor:
    """Batch norm by given statistics, which PyTorch's own has no gradients of."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    assert state.running_mean is not None
    assert state.running_var is not None
    scale = torch.rsqrt(state.running_var + eps)
    scale = scale if state.weight is None else scale * state.weight
    y = (x - state.running_mean.view(shape)) * scale.view(shape)
    return y if state.bias is None else y + state.bias.view(shape)


class _TaskBatchNorm(TaskNorm, _BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        state = self.stand_in()
        if state is None:
            return super().forward(x)
        self._check_input_dim(x)
        mean, var = state.running_mean, state.running_var
        uses_batch = mean is None or (state.learning and self.training)
        if mean is not None and not uses_batch and mean.requires_grad:
            return self.ran(_normalized(x, state, self.eps))
        if uses_batch and mean is not None and is_repeated():
            mean, var = mean.clone(), var.clone()  # The layer's own moved when it ran first.
        momentum = self.momentum or 0.0
        return self.ran(
            F.batch_norm(x, mean, var, state.weight, state.bias, uses_batch, momentum, self.eps)
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
        state = self.stand_in()
        if state is None:
            return super().forward(x)
        y = F.layer_norm(x, self.normalized_shape, state.weight, state.bias, self.eps)
        return self.ran(y)


class TaskGroupNorm(TaskNorm, nn.GroupNorm):
    """``nn.GroupNorm`` with affine parameters for each task."""

    plain = nn.GroupNorm

    def forward(self, x: Tensor) -> Tensor:
        state = self.stand_in()
        if state is None:
            return super().forward(x)
        return self.ran(F.group_norm(x, self.num_groups, state.weight, state.bias, self.eps))


TASK_NORMS: dict[type[nn.Module], type[TaskNorm]] = {
    cls.plain: cls for cls in (TaskBatchNorm1d, TaskBatchNorm2d, TaskLayerNorm, TaskGroupNorm)
}
