"""Frozen tasks in states: saved, loaded, copied, and refused where they do not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import hypermask_fast as hmf
from hypermask_fast.errors import CheckpointError
from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.scenarios import split
from hypermask_fast.training.trainer import Trainer
from tests.support.frozen_cases import (
    assert_same,
    bits_of,
    learn,
    made,
)
from tests.support.hypermask_cases import make
from tests.support.scenario_cases import make_dataset


def states(tmp_path: Path) -> Iterator[tuple[str, Callable[[HyperMask, HyperMask], HyperMask]]]:
    def by_state_dict(learner: HyperMask, twin: HyperMask) -> HyperMask:
        torch.save(learner.state_dict(), tmp_path / "state")
        twin.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        return twin

    def in_a_module(learner: HyperMask, twin: HyperMask) -> HyperMask:
        nn.Sequential(twin).load_state_dict(nn.Sequential(learner).state_dict())
        return twin

    def by_file(learner: HyperMask, twin: HyperMask) -> HyperMask:
        hmf.save(learner, tmp_path / "file")
        loaded = hmf.load(tmp_path / "file", twin.net)
        assert isinstance(loaded, HyperMask)
        return loaded

    yield "state_dict", by_state_dict
    yield "in a module", in_a_module
    yield "file", by_file
    yield "deepcopy", lambda learner, twin: copy.deepcopy(learner)


@pytest.mark.filterwarnings("ignore:.*what all tasks share:UserWarning")
@pytest.mark.parametrize("name", ["mlp", "norm-per-task", "buffer-and-shared", "weight-norm"])
def test_states_hold_frozen_tasks(name: str, tmp_path: Path) -> None:
    learner = made(name, earlier="frozen")
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05)
    learn(learner, optimizer, 0, 1)
    before = bits_of(learner)
    learn(learner, optimizer, 2)
    ends = []
    for way, copied in states(tmp_path):
        twin = made(name, earlier="frozen")
        if way == "file":
            hmf.unconvert(twin.net)
        twin = copied(learner, twin)
        assert twin.frozen == (0, 1, 2), way
        assert_same(bits_of(twin), before)
        torch.manual_seed(6)
        learn(twin, torch.optim.SGD(twin.parameters(), lr=0.05), 3)
        ends.append(weights_of(twin))
        assert_same(bits_of(twin), before)
    for end in ends[1:]:
        assert_same(end, ends[0])


def test_a_state_without_frozen_tasks_is_as_before() -> None:
    learner = made()
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0)
    earlier = copy.deepcopy(learner.state_dict())
    assert not any(key.startswith("frozen") for key in earlier)
    assert "frozen" not in learner.task_state()[1]
    learner.freeze_masks()
    learner.load_state_dict(earlier)
    assert learner.frozen == ()


@pytest.mark.parametrize("what", ["lacks", "shape", "not learned", "no ids"])
def test_states_that_do_not_fit_are_refused(what: str) -> None:
    learner = made(earlier="frozen")
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0, 1)
    before = bits_of(learner)
    state, (tensors, task_state) = dict(learner.state_dict()), learner.task_state()
    if what == "lacks":
        del state["frozen_tasks.1.0"]
    elif what == "shape":
        state["frozen_tasks.1.0"] = torch.zeros(2, 2)
    else:
        task_state["frozen"] = [3] if what == "not learned" else "all"
        with pytest.raises(CheckpointError, match="give what task_state"):
            learner.load_task_state(tensors, task_state)
    if what in ("lacks", "shape"):
        with pytest.raises(CheckpointError, match=r"frozen_tasks\.1\.0"):
            learner.load_state_dict(state)
    assert_same(bits_of(learner), before)


def test_resume_within_a_later_task_is_bit_identical() -> None:
    scenario = split(make_dataset(), 2, validation=8)

    def trainer() -> Trainer:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), MLP(16, (6,), 2))
        learner = make(net, tasks=0, earlier="frozen", sparsity=20.0)
        return Trainer(learner, lr=0.01, batch_size=4, steps=4, seed=0, selection="best")

    whole, states = trainer(), []

    def note(one: Trainer) -> None:
        if one.learner.current == 2 and one.step == 2:
            tensors, state = one.state()
            states.append(({k: v.clone() for k, v in tensors.items()}, state))

    whole.hooks.append(note)
    for task in scenario:
        whole.fit(task)
    assert whole.learner.frozen == (0, 1, 2)
    resumed = trainer()
    for task in scenario:
        resumed.add(task)
    resumed.load_state(*states[0])
    assert resumed.learner.frozen == (0, 1)
    resumed.fit(scenario[2])
    assert_same(weights_of(resumed.learner), weights_of(whole.learner))
    # A state that is refused takes nothing.
    tensors, state = states[0]
    del tensors["learner/frozen_tasks.1.0"]
    with pytest.raises(CheckpointError):
        resumed.load_state(tensors, state)
    assert_same(weights_of(resumed.learner), weights_of(whole.learner))
