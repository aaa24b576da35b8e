"""The accuracy matrix of a trainer, against accuracies measured by hand, in any order of tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.metrics import continual
from hypermask_fast.networks import MLP
from hypermask_fast.scenarios import Scenario, split_digits
from hypermask_fast.training.accuracy import AccuracyRecord, Counts
from hypermask_fast.training.trainer import Trainer


@pytest.fixture(scope="module")
def digits() -> Scenario:
    return split_digits(tasks=3)


def make_learner() -> HyperMask:
    torch.manual_seed(0)
    return HyperMask(MLP(64, (12,), 2), embedding_dim=4, hidden=(8,), capacity=4)


def make(learner: HyperMask) -> Trainer:
    return Trainer(learner, steps=25, lr=5e-3, batch_size=16, progress=False)


class ByHand:
    """Accuracy of each task, measured from the logits; a row whenever asked."""

    def __init__(self, learner: HyperMask, digits: Scenario) -> None:
        self.learner, self.digits = learner, digits
        self.rows: list[list[float]] = []

    def measure(self) -> None:
        row = []
        for task in self.digits:
            x, y = next(iter(task.evaluation_batches("test")))
            with torch.no_grad():
                answers = self.learner.eval()(x, self.learner.task_id(task.name)).argmax(1)
            row.append(100.0 * int((answers == y).sum()) / len(y))
        self.rows.append(row)


@pytest.mark.parametrize(
    "order",
    [(0, 1, 2), (2, 0, 1), (1, 2), (0, 1, 0), (2, 2, 1, 0, 1)],
    ids=lambda order: "".join(map(str, order)),
)
def test_metrics_are_their_definitions_in_every_order(
    digits: Scenario, order: tuple[int, ...]
) -> None:
    learner = make_learner()
    trainer, hand = make(learner), ByHand(learner, digits)
    ids = [trainer.add(task) for task in digits]
    hand.measure()
    for place, i in enumerate(order):
        row = trainer.fit(digits[i])
        hand.measure()
        assert row[place] == hand.rows[-1][i]
    r, t = np.array(hand.rows), len(order)
    left = [i for i in ids if i not in order]
    assert trainer.columns == (*order, *left)
    matrix = trainer.accuracy
    assert matrix.shape == (t + len(left) + 1, t + len(left))
    measured = ~np.isnan(matrix[: t + 1])
    assert np.tril(measured[1:, :t]).sum() == t * (t + 1) // 2
    np.testing.assert_array_equal(matrix[: t + 1][measured], r[:, list(trainer.columns)][measured])
    expected = {
        "acc_final": np.mean([r[t, i] for i in order]),
        "bwt_gem": np.mean([r[t, i] - r[j + 1, i] for j, i in enumerate(order[:-1])]),
        "fwt_gem": np.mean([r[j, i] - r[0, i] for j, i in enumerate(order) if j]),
        "learning_acc": np.mean([r[j + 1, i] for j, i in enumerate(order)]),
    }
    result = continual.summary(matrix)
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def learned_by_hand(trainer: Trainer, task: Any) -> None:
    learner = trainer.learner
    learner.begin_task(learner.add_task(task.name, task.classes))
    learner.end_task()


def interrupted_and_ended(trainer: Trainer, task: Any) -> None:
    def stop(t: Trainer) -> None:
        if t.step == 3:
            raise KeyboardInterrupt

    trainer.hooks.append(stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(task)
    trainer.hooks.remove(stop)
    trainer.learner.end_task()


def learned_by_another(trainer: Trainer, task: Any) -> None:
    make(trainer.learner).fit(task)


@pytest.mark.parametrize("before", [learned_by_hand, interrupted_and_ended, learned_by_another])
def test_tasks_learned_otherwise_have_a_row_and_a_column(
    digits: Scenario, before: Callable[[Trainer, Any], None]
) -> None:
    trainer = make(make_learner())
    before(trainer, digits[0])
    trainer.add(digits[0])
    hand = ByHand(trainer.learner, digits[:2])
    trainer.add(digits[1])
    hand.measure()
    trainer.fit(digits[1])
    hand.measure()
    assert (trainer.columns, trainer.tasks_done) == ((0, 1), 2)
    np.testing.assert_array_equal(trainer.accuracy[2], hand.rows[1])
    assert trainer.accuracy[1, 1] == hand.rows[0][1]
    assert math.isnan(trainer.accuracy[1, 0])
    assert continual.acc_final(trainer.accuracy) == pytest.approx(np.mean(hand.rows[1]))
    assert math.isnan(continual.bwt_gem(trainer.accuracy))


def test_a_checkpoint_keeps_the_order(digits: Scenario) -> None:
    trainer, other = make(make_learner()), make(make_learner())
    for t in (trainer, other):
        for task in digits:
            t.add(task)
    trainer.fit(digits[2])
    trainer.fit(digits[0])
    other.load_state(*trainer.state())
    assert other.columns == (2, 0, 1)
    np.testing.assert_array_equal(other.accuracy, trainer.accuracy)
    np.testing.assert_array_equal(other.fit(digits[1]), trainer.fit(digits[1]))


def test_a_measurement_that_fails_leaves_the_record_as_it_was() -> None:
    record = AccuracyRecord()
    right, wrong = np.array([[3, 1], [0, 4]]), MemoryError("none left")

    def fails(task: int) -> Counts:
        if task == 1:
            raise wrong
        return right

    record.begin(0, (), (0, 1), lambda task: right)
    record.end(0, (0, 1), lambda task: right)
    with pytest.raises(MemoryError):
        record.end(1, (0, 1), fails)
    assert record.order == [0]
    assert {*record.confusions} == {0, 1}
    # The next task finds that one was learned meanwhile, of which nothing is known.
    record.begin(2, (0, 1), (0, 1, 2), lambda task: right)
    record.end(2, (0, 1, 2), lambda task: right)
    matrix = record.matrix((0, 1, 2))
    assert np.isnan(matrix[2, :2]).all()
    assert (matrix[3] == 87.5).all()
