"""A trainer's tasks are those that its learner has by these names now, whatever their ids were."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from hypermask_fast.errors import CheckpointError
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.scenarios import Scenario, split_digits
from hypermask_fast.training.trainer import Trainer


@pytest.fixture(scope="module")
def digits() -> Scenario:
    return split_digits(tasks=3)


def make() -> Trainer:
    torch.manual_seed(0)
    learner = HyperMask(MLP(64, (12,), 2), embedding_dim=4, hidden=(8,), capacity=4)
    return Trainer(learner, steps=12, lr=5e-3, batch_size=16, progress=False)


def stop(trainer: Trainer) -> None:
    raise KeyboardInterrupt


def assert_same_accuracy(one: Trainer, other: Trainer) -> None:
    assert one.columns == other.columns
    np.testing.assert_array_equal(one.accuracy, other.accuracy)


def test_a_state_is_loaded_whatever_the_order_of_adding(digits: Scenario) -> None:
    trainer, other = make(), make()
    for task in digits[:2]:
        trainer.fit(task)
    for task in (digits[2], digits[1], digits[0]):
        other.add(task)
    other.load_state(*trainer.state())
    assert [other.evaluate(i) for i in (0, 1)] == [trainer.evaluate(i) for i in (0, 1)]
    assert_same_accuracy(other, trainer)
    trainer.fit(digits[2])
    other.fit(digits[2])
    assert_same_accuracy(other, trainer)


def test_a_state_of_other_classes_is_refused(digits: Scenario) -> None:
    trainer, other = make(), make()
    trainer.fit(digits[0])
    other.add(replace(digits[1], name=digits[0].name))
    with pytest.raises(CheckpointError, match=r"classes \(2, 3\) and the checkpoint.*\(0, 1\)"):
        other.load_state(*trainer.state())
    assert other.learner.learned == ()


def test_a_removed_task_leaves_nothing_to_the_next_of_its_id(digits: Scenario) -> None:
    trainer, other = make(), make()
    for each in (trainer, other):
        each.fit(digits[0])
    trainer.hooks.append(stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(digits[1])
    trainer.hooks.clear()
    trainer.learner.abandon_task()
    trainer.learner.remove_task(1)
    assert trainer.columns == (0,)
    for each in (trainer, other):
        torch.manual_seed(1)
        each.fit(digits[2])
    assert_same_accuracy(trainer, other)


@pytest.mark.parametrize("added", [False, True])
def test_after_a_return_to_an_earlier_state_the_record_is_as_then(
    digits: Scenario, added: bool
) -> None:
    trainer, other = make(), make()
    for each in (trainer, other):
        for task in digits if added else ():
            each.add(task)
        each.fit(digits[0])
    state = copy.deepcopy(trainer.learner.state_dict())
    trainer.fit(digits[1])
    trainer.learner.load_state_dict(state)
    for each in (trainer, other):
        torch.manual_seed(1)
        each.fit(digits[2])
    assert_same_accuracy(trainer, other)


def test_an_id_of_a_task_by_hand_is_not_evaluated_on_another_tasks_examples(
    digits: Scenario,
) -> None:
    trainer = make()
    trainer.fit(digits[0])
    trainer.add(digits[1])
    trainer.learner.remove_task(1)
    trainer.learner.add_task("by hand", classes=(0, 1))
    with pytest.raises(ValueError, match="task 1 is not among the tasks of this trainer"):
        trainer.evaluate(1)
