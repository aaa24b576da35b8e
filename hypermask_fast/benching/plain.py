"""What a learner's ordinary loop in PyTorch is made of: dense gradients and torch's optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.protocol import ParameterGroup
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.training.optimizers import make_optimizer, make_optimizers
from hypermask_fast.training.settings import TrainingSettings


class DenseHypernetwork(Hypernetwork):
    """A hypernetwork with an ordinary head, whose gradient is dense."""

    @property
    def can_update(self) -> bool:
        return False


class TorchAdam(torch.optim.Adam):
    """PyTorch's Adam, made as :class:`FactoredAdam` is."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], *, moments_dtype: object, lr: float, **options: Any
    ) -> None:
        plain = [{"params": group["params"], "lr": float(group["lr"])} for group in groups]
        super().__init__(plain, lr=lr, **options)


_ADAM = cast(type[FactoredAdam], TorchAdam)


def torch_optimizer(parameters: Sequence[nn.Parameter], settings: TrainingSettings) -> Optimizer:
    """Return PyTorch's optimizer over parameters that all train alike; see `torch_optimizers`."""
    return make_optimizer([ParameterGroup(parameters)], settings, _ADAM)


def torch_optimizers(learner: Learner, settings: TrainingSettings) -> dict[str, Optimizer]:
    """Return PyTorch's optimizers over a learner's parameters in its phase, by name.

    Args:
        learner: The learner.
        settings: The kind of optimizer and its numbers.
    """
    return make_optimizers(learner, settings, adam=_ADAM)


def make_dense(learner: Learner) -> None:
    """Give the head of a learner's hypernetwork a dense gradient, where it has a full one."""
    hypernetwork = getattr(learner, "hypernetwork", None)
    if type(hypernetwork) is Hypernetwork:
        hypernetwork.__class__ = DenseHypernetwork
