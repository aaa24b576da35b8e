"""Small HNET learners, and steps of their training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.methods.hnet.learner import HNET
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.networks import MLP
from hypermask_fast.training.optimizers import make_optimizers
from hypermask_fast.training.settings import TrainingSettings
from hypermask_fast.training.step import TrainingStep


def make(net: nn.Module | None = None, tasks: int = 3, classes: int = 2, **options: Any) -> HNET:
    """A learner of small layers; its network has outputs for all tasks."""
    small: dict[str, Any] = {"embedding_dim": 3, "hidden": (6, 5), "capacity": 5}
    small |= {"chunk_size": 17, "chunk_embedding_dim": 2, "task_heads": "multi"}
    learner = HNET(MLP(5, (4,), tasks * classes) if net is None else net, **{**small, **options})
    for task in range(tasks):
        learner.add_task(classes=range(task * classes, (task + 1) * classes))
    return learner


def stepper(learner: HNET, lr: float = 1e-2, **options: Any) -> TrainingStep:
    """The trainer's step."""
    return TrainingStep(learner, make_optimizers(learner, TrainingSettings(lr=lr, **options)))


def batch(learner: HNET, count: int = 8, classes: int = 2) -> tuple[Tensor, Tensor]:
    dtype = learner.hypernetwork.embeddings.dtype
    return torch.randn(count, 5, dtype=dtype), torch.randint(classes, (count,))


def train(learner: HNET, task: int, steps: int = 3, **options: Any) -> list[Losses]:
    """Train a task as the trainer does; return the losses of each step."""
    learner.train()
    learner.begin_task(task)
    step = stepper(learner, **options)
    found = [step(*batch(learner), task) for _ in range(steps)]
    learner.end_task()
    return found
