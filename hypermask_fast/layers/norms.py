"""Normalisation layers whose parameters and statistics can be replaced in a forward."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from hypermask_fast.errors import shown
from hypermask_fast.layers.own import MadeModule, forward_of, made_class, readable
from hypermask_fast.layers.stand_ins import TaskLayer, is_repeated


class NormState(NamedTuple):
    """What stands in for a layer's own parameters and statistics in a forward.

    Attributes:
        weight, bias: Affine parameters, or None.
        running_mean, running_var: Statistics of a batch or instance norm; None uses the batch's.
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


class _Statistics(NamedTuple):
    """What a forward normalises by: running statistics or, where ``uses_batch``, the batch's."""

    mean: Tensor | None
    var: Tensor | None
    uses_batch: bool


def _statistics(state: NormState, training: bool) -> _Statistics:
    mean, var = state.running_mean, state.running_var
    uses_batch = mean is None or var is None or (state.learning and training)
    if uses_batch and mean is not None and var is not None and is_repeated():
        mean, var = mean.clone(), var.clone()  # The layer's own moved when it ran first.
    return _Statistics(mean, var, uses_batch)


class _TaskBatchNorm(TaskNorm, _BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        state = self.stand_in()
        if state is None:
            return super().forward(x)
        self._check_input_dim(x)
        found = _statistics(state, self.training)
        if found.mean is not None and not found.uses_batch and found.mean.requires_grad:
            return self.ran(_normalized(x, state, self.eps))
        momentum = self.momentum or 0.0
        return self.ran(
            F.batch_norm(
                *(x, found.mean, found.var, state.weight, state.bias),
                *(found.uses_batch, momentum, self.eps),
            )
        )


class _TaskInstanceNorm(TaskNorm, _InstanceNorm):
    def _apply_instance_norm(self, x: Tensor) -> Tensor:
        state = self.stand_in()
        if state is None:
            applied: Tensor = super()._apply_instance_norm(x)
            return applied
        found = _statistics(state, self.training)
        if found.mean is not None and not found.uses_batch and found.mean.requires_grad:
            return self.ran(_normalized(x, state, self.eps))
        momentum = self.momentum or 0.0
        return self.ran(
            F.instance_norm(
                *(x, found.mean, found.var, state.weight, state.bias),
                *(found.uses_batch, momentum, self.eps),
            )
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


class _MadeNorm(MadeModule, TaskNorm):
    """A normalisation without running statistics, whose forward reads its scale and shift."""


class _MadeBatchNorm(MadeModule, _TaskBatchNorm):
    """A batch norm of another class, whose forward is PyTorch's."""


class _MadeInstanceNorm(MadeModule, _TaskInstanceNorm):
    """An instance norm, whose forward is PyTorch's."""


TASK_NORMS: dict[type[nn.Module], type[TaskNorm]] = {
    cls.plain: cls for cls in (TaskBatchNorm1d, TaskBatchNorm2d, TaskLayerNorm, TaskGroupNorm)
}
NORM_KEYS = ("weight", "bias")
"""The names of a normalisation's own parameters."""
_AFFINE = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _of_state(state: NormState, key: str, own: Any) -> Any:
    return getattr(state, key)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalisation: of PyTorch's kinds, with their parameters."""
    if not isinstance(module, (_BatchNorm, _InstanceNorm, *_AFFINE)):
        return False
    return {key for key, p in module._parameters.items() if p is not None} <= {*NORM_KEYS}


@cache
def norm_class(plain: Any) -> type[TaskNorm] | None:
    """Return what a normalisation becomes, a subclass of its class; None where it cannot.

    Subclasses with a forward of their own may read scale and shift as they like; with running
    statistics they must keep PyTorch's.

    Args:
        plain: Its class.
    """
    if plain in TASK_NORMS:
        return TASK_NORMS[plain]
    body: dict[str, Any] = {"plain": plain, "_hypermask_fast_made": (norm_class, plain)}
    if issubclass(plain, _AFFINE):
        body |= {key: readable(key, _of_state) for key in NORM_KEYS}
        return made_class(plain, _MadeNorm, forward=forward_of(plain), **body)
    if issubclass(plain, _BatchNorm) and plain.forward is _BatchNorm.forward:
        return made_class(plain, _MadeBatchNorm, **body)
    if issubclass(plain, _InstanceNorm):
        unchanged = (plain.forward, plain._apply_instance_norm) == (
            _InstanceNorm.forward,
            _InstanceNorm._apply_instance_norm,
        )
        return made_class(plain, _MadeInstanceNorm, **body) if unchanged else None
    return None
