"""Copies and the state of a HyperMask learner: a twin continues bit for bit."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.methods.hypermask.learner import HyperMask
from tests.support.hypermask_cases import batch, make, mixed_net, train, train_step

COPIES: list[Any] = [
    pytest.param(copy.deepcopy, id="deepcopy"),
    pytest.param(lambda learner: pickle.loads(pickle.dumps(learner)), id="pickle"),
]


def saved(learner: HyperMask) -> HyperMask:
    buffer = io.BytesIO()
    torch.save(learner, buffer)
    buffer.seek(0)
    twin = torch.load(buffer, weights_only=False)
    assert isinstance(twin, HyperMask)
    return twin


def restored(learner: HyperMask) -> HyperMask:
    """A new learner from the state_dict and the task state, by way of JSON."""
    twin = make(mixed_net(), tasks=1, sparsity=30.0, dropout="first_step", bn=learner.bn)
    tensors, state = learner.task_state()
    twin.load_task_state({k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(state)))
    twin.load_state_dict(learner.state_dict())
    return twin


@pytest.mark.parametrize("bn", ["per_task", "batch"])
@pytest.mark.parametrize(
    "copy_of", [*COPIES, pytest.param(saved, id="save"), pytest.param(restored, id="state")]
)
@pytest.mark.parametrize("task", [None, 0, 1])
def test_a_copy_continues_bit_identically(
    copy_of: Callable[[HyperMask], HyperMask], bn: str, task: int | None
) -> None:
    """Between tasks, in the ramp of the first task, and in the second."""
    learner = make(mixed_net(), sparsity=30.0, dropout="first_step", bn=bn)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    if task == 1:
        train(learner, 0)
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    if task is not None:
        learner.begin_task(task, steps=5)
        for _ in range(2):
            train_step(learner, optimizer, task, *batch(learner))
    twin = copy_of(learner).train()
    assert twin.tasks == learner.tasks
    assert twin.learned == learner.learned
    assert twin.current == learner.current
    assert twin.manifest() == learner.manifest()
    assert twin.step_sparsity == learner.step_sparsity
    twins = torch.optim.Adam(twin.parameters(), lr=0.05)
    if task is not None:
        twins.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        learner.begin_task(0)
        twin.begin_task(0)
    for _ in range(2):
        x, y = batch(learner)
        states = []
        for one, its in ((learner, optimizer), (twin, twins)):
            torch.manual_seed(5)
            out = train_step(one, its, task or 0, x, y)
            states.append({**one.state_dict(), "total": out.total, "reg": out.output_reg})
        for key, value in states[0].items():
            assert torch.equal(value, states[1][key]), key
    twin.end_task()
    assert learner.current == (task or 0)


def test_the_state_within_a_task_moves_with_the_learner() -> None:
    learner = make()
    train(learner, 0)
    learner.begin_task(1)
    learner.double()
    out = learner.losses(*batch(learner), 1)
    assert out.total.dtype == torch.float64
    assert set(learner.state_dict()) == set(make().state_dict())


def test_a_dry_forward_leaves_no_trace() -> None:
    """Neither in the random numbers, nor in modes, statistics or gradients."""
    net = mixed_net()
    learner = make(net)
    before = {k: v.clone() for k, v in weights_of(learner).items()}
    modes = {name: m.training for name, m in learner.named_modules()}
    x, _ = batch(learner)
    state = torch.get_rng_state()
    learner.begin_task(0)
    learner._prepare(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: m.training for name, m in learner.named_modules()} == modes
    assert learner.exempt == "4.bias"
    for key, value in weights_of(learner).items():
        assert torch.equal(value, before[key]), key
