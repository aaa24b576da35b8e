"""Dropout layers that a forward can turn off, whatever their mode."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from hypermask_fast.layers.stand_ins import TaskLayer


class TaskDropout(TaskLayer, _DropoutNd):
    """What the converted layers share. They are the plain layer but where True stands in."""

    active: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.stand_in():
            return x
        return self.ran(super().forward(x))


class TaskDropout0d(TaskDropout, nn.Dropout):
    """``nn.Dropout`` that a forward can turn off."""

    plain = nn.Dropout


class TaskDropout1d(TaskDropout, nn.Dropout1d):
    """``nn.Dropout1d`` that a forward can turn off."""

    plain = nn.Dropout1d


class TaskDropout2d(TaskDropout, nn.Dropout2d):
    """``nn.Dropout2d`` that a forward can turn off."""

    plain = nn.Dropout2d


class TaskDropout3d(TaskDropout, nn.Dropout3d):
    """``nn.Dropout3d`` that a forward can turn off."""

    plain = nn.Dropout3d


class TaskAlphaDropout(TaskDropout, nn.AlphaDropout):
    """``nn.AlphaDropout`` that a forward can turn off."""

    plain = nn.AlphaDropout


class TaskFeatureAlphaDropout(TaskDropout, nn.FeatureAlphaDropout):
    """``nn.FeatureAlphaDropout`` that a forward can turn off."""

    plain = nn.FeatureAlphaDropout


TASK_DROPOUTS: dict[type[nn.Module], type[TaskDropout]] = {
    cls.plain: cls
    for cls in (
        TaskDropout0d,
        TaskDropout1d,
        TaskDropout2d,
        TaskDropout3d,
        TaskAlphaDropout,
        TaskFeatureAlphaDropout,
    )
}
