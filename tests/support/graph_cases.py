"""Tasks, networks and learners within a task, for the tests of CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.scenarios import ImageDataset, ImageSet, Task, split

BATCH = 8


def make_tasks(count: int = 3, **options: Any) -> list[Task]:
    images = torch.randint(0, 256, (90, 1, 6, 6)).to(torch.uint8)
    data = ImageSet(images, torch.arange(90) % (2 * count))
    dataset = ImageDataset("made", data, data, tuple("abcdefghij"[: 2 * count]))
    return list(split(dataset, classes_per_task=2, **options))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(48, 2),
    )


def mlp() -> nn.Module:
    return MLP(36, (7,), 2)


def make_learner(
    net: Callable[[], nn.Module],
    earlier: int,
    tasks: Sequence[Task],
    ramp: int = 0,
    device: str | None = None,
    **options: Any,
) -> HyperMask:
    """A learner within its task after some others, with residuals and drifts."""
    settings = {"embedding_dim": 3, "hidden": (4,), "sparsity": 30.0, "beta": 0.5, "capacity": 5}
    made = net() if device is None else net().to(device)
    learner = HyperMask(made, **{**settings, **options})  # type: ignore[arg-type]
    learner._prepare(torch.zeros(1, 1, 6, 6, device=next(learner.parameters()).device))
    for j in range(earlier + 1):
        learner.add_task(tasks[j].name, tasks[j].classes)
        learner.begin_task(j, steps=ramp)
        if j < earlier:
            learner.end_task()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return learner.train()
