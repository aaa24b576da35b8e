"""Under autocast the target network runs in a lower precision, and the hypernetwork does not."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast import FactoredAdam, Trainer
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.scenarios import split
from tests.support.hypermask_cases import batch, make
from tests.support.scenario_cases import make_dataset

KEPT: list[dict[str, Any]] = [
    {},
    {"targets": "bfloat16"},
    {"targets": "frozen_head"},
    {"regularized_tasks": 1},
    {"targets": "frozen_head", "regularized_tasks": 1},
    {"head": "chunked", "chunk_size": 7, "chunk_embedding_dim": 2},
]


def autocast(enabled: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if enabled else nullcontext()


def learn(
    options: dict[str, Any], in_backward: bool, begun_under: bool, ended_under: bool
) -> tuple[HyperMask, list[Tensor]]:
    torch.manual_seed(0)
    learner = make(MLP(5, (4,), 3), **options)
    x, y = batch(learner)
    first = []
    for task in range(3):
        optimizer = FactoredAdam(learner.parameters(), lr=0.01, step_in_backward=in_backward)
        with autocast(begun_under):
            learner.begin_task(task)
        for step in range(3):
            optimizer.zero_grad()
            with autocast(True):
                losses = learner.losses(x, y, task, optimizer=optimizer)
            with autocast(ended_under):
                losses.total.backward()
                optimizer.step()
            if not step:
                first.append(losses.output_reg.detach())
        learner.end_task()
    return learner, first


@pytest.mark.parametrize("options", KEPT, ids=str)
@pytest.mark.parametrize("in_backward", [False, True])
def test_what_is_kept_does_not_depend_on_it(options: dict[str, Any], in_backward: bool) -> None:
    if in_backward and "head" in options:
        pytest.skip("a chunked head is not updated in the backward pass")
    for ended_under in (False, True):
        ends = []
        for begun_under in (False, True):
            learner, first = learn(options, in_backward, begun_under, ended_under)
            # Nothing has changed since the task was begun.
            assert all(float(reg) == 0 for reg in first)
            ends.append(learner.hypernetwork.state_dict())
        for name, value in ends[0].items():
            assert value.dtype == torch.float32
            assert torch.equal(ends[1][name], value), name


def test_only_the_target_rounds() -> None:
    torch.manual_seed(0)
    learner = make(MLP(5, (4,), 3))
    x, _ = batch(learner)
    learner(x, 0)
    expected = learner.task_weights(0)
    with autocast(True):
        assert learner(x, 0).dtype == torch.bfloat16
        for name, value in learner.task_weights(0).items():
            assert torch.equal(value, expected[name])


def test_a_trainer_runs_under_it() -> None:
    scenario = split(make_dataset(classes=6), 2)
    learner = HyperMask(MLP(16, (8,), 2), embedding_dim=3, hidden=(6,), targets="frozen_head")
    trainer = Trainer(learner, progress=False, steps=3)
    with autocast(True):
        for task in scenario:
            trainer.fit(task)
    assert trainer.tasks_done == 3
