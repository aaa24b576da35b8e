"""A state whose JSON part was altered is refused when it is loaded, not while it trains."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hypermask_fast as hmf
from hypermask_fast.errors import CheckpointError
from hypermask_fast.methods.base import Learner
from hypermask_fast.training.optimizers import make_optimizers
from hypermask_fast.training.settings import TrainingSettings

X, Y = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
_SMALL: dict[str, Any] = {"embedding_dim": 2, "hidden": (3,), "capacity": 3}


def _net() -> hmf.networks.MLP:
    return hmf.networks.MLP(5, (4,), 4)


MAKE: dict[str, Callable[[], Learner]] = {
    "hypermask": lambda: hmf.HyperMask(_net(), **_SMALL, sparsity=30.0, example_input=X),
    "hnet": lambda: hmf.HNET(_net(), **_SMALL, task_heads="multi", example_input=X),
    "hyperinterval": lambda: hmf.HyperInterval(_net(), **_SMALL),
    "supsup": lambda: hmf.SupSup(_net()),
    "exssnet": lambda: hmf.ExSSNeT(_net(), kkt="knn_always", kkt_neighbours=2, density=0.5),
}
NOT_COUNTS: list[Any] = ["x", -1, 1.5, True, [], {}, [1]]
NOT_IDS: list[Any] = ["x", None, 1.5, {}, ["x"], [1.5], [None], [-1], [7], [True], [0, 0]]
# Entries of a state, and what they cannot be.
WRONG: dict[str, list[Any]] = {
    "tasks": ["x", None, 3, {}, [], ["x"], [{}], [{"name": 3, "classes": [0]}]],
    "learned": NOT_IDS,
    "current": ["x", -1, 1.5, True, [], {}, [0], 7],
    "phase": ["x", None, 3, [], {}],
    "capacity": [None, *NOT_COUNTS],
    "ids": ["x", -1, 1.5, {}, [], ["x"], [1.5], [0], [1], [0, 1], [1, 0, 0], [1, 7]],
    "targets": ["x", None, 3, [], {}],
    "sampling_seed": [None, *NOT_COUNTS],
    "score_seed": [None, *NOT_COUNTS],
    "step": [None, *NOT_COUNTS],
    "ramp_steps": [None, *NOT_COUNTS],
    "output_layer": ["x", 3, [], {}, "classifier.weight"],
    "exempt": ["x", 3, [], {}],
}
NEEDED = {"tasks", "learned", "current"}


def within_the_second_task(name: str) -> Learner:
    torch.manual_seed(0)
    learner = MAKE[name]()
    for task in range(2):
        learner.add_task(f"task {task}", classes=[2 * task, 2 * task + 1])
        learner.begin_task(task, steps=2, data=[(X, Y)] * 4)
        for phase in learner.phases(task, 2):
            learner.begin_phase(phase.name)
            optimizers = make_optimizers(learner, TrainingSettings(lr=1e-2))
            learner.step(X, Y, task, optimizers)
        if task == 0:
            learner.end_task([(X, Y)])
    return learner


@pytest.mark.parametrize("name", MAKE)
def test_wrong_entries_are_refused_and_change_nothing(name: str) -> None:
    learner = within_the_second_task(name)
    tensors, made = learner.task_state()
    state = json.loads(json.dumps(made))
    assert state.keys() - WRONG.keys() <= {"traced"}
    for key in state.keys() & WRONG.keys():
        for value in WRONG[key]:
            with pytest.raises((CheckpointError, hmf.errors.ConfigError)) as caught:
                learner.load_task_state(tensors, {**copy.deepcopy(state), key: value})
            assert "\n" not in str(caught.value), (key, value)
            if key not in ("targets", "exempt"):
                assert json.loads(json.dumps(learner.task_state()[1])) == state, (key, value)
    for key in NEEDED:
        with pytest.raises(CheckpointError, match=f"lacks .*{key}"):
            learner.load_task_state(tensors, {k: v for k, v in state.items() if k != key})
    learner.load_task_state(tensors, state)
    assert json.loads(json.dumps(learner.task_state()[1])) == state


@pytest.mark.parametrize(
    "classes", ["x", 3, [], {}, ["x"], [1.5], [True], [0, 0]], ids=lambda value: repr(value)
)
def test_classes_that_are_none_are_refused(classes: Any) -> None:
    learner = within_the_second_task("supsup")
    tensors, state = learner.task_state()
    state["tasks"][1]["classes"] = classes
    with pytest.raises(CheckpointError, match="the state has the task"):
        learner.load_task_state(tensors, state)
    assert [record.classes for record in learner.tasks] == [(0, 1), (2, 3)]


def test_tasks_of_one_name_are_refused() -> None:
    learner = within_the_second_task("supsup")
    tensors, state = learner.task_state()
    state["tasks"][1]["name"] = "task 0"
    with pytest.raises(CheckpointError, match="each name once"):
        learner.load_task_state(tensors, state)
