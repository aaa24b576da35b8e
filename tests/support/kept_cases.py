"""Learners that keep something of earlier tasks, and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP

FORMS = ("full", "bfloat16", "frozen_head")
DOUBLE: Any = {"dtype": torch.float64}


def learner_in(task: int, dtype: torch.dtype = torch.float64, **options: Any) -> HyperMask:
    """A learner in a task with ``task`` earlier ones, in the state that it began with."""
    torch.manual_seed(1)
    settings = {"embedding_dim": 3, "hidden": (7, 4), "beta": 0.5, "capacity": 40, **options}
    learner = HyperMask(MLP(9, (11,), 3).to(dtype), **settings)
    for j in range(task + 1):
        learner.add_task()
        learner.begin_task(j)
        if j < task:
            learner.end_task()
    return learner


def moved(learner: HyperMask) -> HyperMask:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return learner


def batch(learner: HyperMask, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 9, generator=generator).to(learner.hypernetwork.head.weight.dtype)
    return x, torch.randint(3, (8,), generator=generator)


def gradients(learner: HyperMask, task: int) -> list[Tensor]:
    learner.zero_grad()
    out = learner.losses(*batch(learner), task)
    out.total.backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters()]
    return [out.output_reg.detach(), *(grad.to_dense() for grad in found)]
