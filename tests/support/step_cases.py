"""A float64 learner with earlier tasks, and steps of its training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.networks import MLP
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.training.step import TrainingStep

CLASSES = 3


def learner_at(task: int, **options: object) -> HyperMask:
    """A float64 learner whose current task has ``task`` earlier ones, with residuals."""
    torch.manual_seed(1)
    net = MLP(6, (5,), CLASSES).double()
    learner = HyperMask(
        net,
        embedding_dim=3,
        hidden=(4,),
        sparsity=30.0,
        beta=0.5,
        capacity=5,
        **options,  # type: ignore[arg-type]
    )
    for j in range(task + 1):
        learner.add_task()
        learner.begin_task(j)
        if j < task:
            learner.end_task()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return learner


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(CLASSES, (8,), generator=generator)


def run(learner: HyperMask, optimizer: torch.optim.Optimizer, task: int) -> list[Losses]:
    step = TrainingStep(learner, optimizer)
    return [step(*batch(seed), task) for seed in range(20)]


def one_pass(learner: HyperMask, **options: Any) -> FactoredAdam:
    return FactoredAdam(learner.parameters(), step_in_backward=True, **options)


def state_of(learner: HyperMask, optimizer: FactoredAdam) -> dict[str, Tensor]:
    """Copies of parameters, moments and step counts."""
    state = {}
    for name, p in learner.named_parameters():
        state[name] = p.detach().clone()
        state |= {f"{name}.{key}": v.clone() for key, v in optimizer.state[p].items()}
    return state


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
