"""Small HyperMask learners, and steps of their training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.training.optimizers import make_optimizers
from hypermask_fast.training.settings import TrainingSettings


def make(net: nn.Module | None = None, tasks: int = 3, **options: Any) -> HyperMask:
    defaults: dict[str, Any] = {"embedding_dim": 3, "hidden": (6, 5), "capacity": 5}
    learner = HyperMask(MLP(5, (4,), 3) if net is None else net, **{**defaults, **options})
    for _ in range(tasks):
        learner.add_task()
    return learner


def adam_of(learner: Learner, lr: float = 1e-3, weight_decay: float = 0.0) -> FactoredAdam:
    """The trainer's optimizer."""
    made = make_optimizers(learner, TrainingSettings(lr=lr, weight_decay=weight_decay))
    optimizer = made["main"]
    assert isinstance(optimizer, FactoredAdam)
    return optimizer


def tables(learner: Learner) -> list[nn.Parameter]:
    """The parameters with a row for each task."""
    return [p for group in learner.parameter_groups() if group.row_sparse for p in group.params]


def batch(
    learner: HyperMask, n: int = 8, shape: tuple[int, ...] = (5,), classes: int = 3
) -> tuple[Tensor, Tensor]:
    dtype = learner.hypernetwork.embeddings.dtype
    return torch.randn(n, *shape, dtype=dtype), torch.randint(classes, (n,))


def train(
    learner: HyperMask,
    task: int,
    steps: int = 2,
    shape: tuple[int, ...] = (5,),
    **options: Any,
) -> list[Any]:
    """Train a task with an Adam of its own; return the losses of each step."""
    learner.train()
    learner.begin_task(task, steps=options.pop("ramp_steps", 0))
    optimizer = torch.optim.Adam(learner.parameters(), **{"lr": 0.05, **options})
    batches = [batch(learner, shape=shape) for _ in range(steps)]
    outs = [train_step(learner, optimizer, task, x, y) for x, y in batches]
    learner.end_task()
    return outs


def train_step(
    learner: HyperMask, optimizer: torch.optim.Optimizer, task: int, x: Tensor, y: Tensor
) -> Any:
    out = learner.losses(x, y, task)
    optimizer.zero_grad()
    out.total.backward()
    optimizer.step()
    return out


def perturb(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def mixed_net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3)
    )
