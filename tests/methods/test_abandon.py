"""A task can be left as if it had not been begun, and a call that fails changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.errors import CheckpointError, ConfigError, TrainingError
from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.metrics import continual
from hypermask_fast.networks import MLP
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.scenarios import Scenario, split
from hypermask_fast.training import optimizers
from hypermask_fast.training.trainer import Trainer
from tests.support.hypermask_cases import adam_of, batch, make, mixed_net, train
from tests.support.scenario_cases import make_dataset


def snapshot(learner: HyperMask) -> dict[str, Any]:
    weights = {name: value.clone() for name, value in weights_of(learner).items()}
    state = (learner.tasks, learner.learned, learner.current, learner.phase)
    return {**weights, "state": state}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        theirs = other[name]
        assert torch.equal(value, theirs) if isinstance(value, Tensor) else value == theirs, name


@pytest.mark.parametrize("in_backward", [False, True])
def test_weights_and_state_are_those_before(in_backward: bool) -> None:
    learner = make(mixed_net(), lam=0.1)
    train(learner, 0)
    before = snapshot(learner)
    learner.begin_task(1, steps=3)
    optimizer = FactoredAdam(learner.parameters(), lr=0.05, step_in_backward=in_backward)
    for _ in range(3):
        learner.step(*batch(learner), 1, {"main": optimizer})
    assert not torch.equal(learner.net[0].weight, before["net.0.weight"])
    learner.abandon_task()
    assert_same(before, snapshot(learner))
    assert not learner._kept.held_tensors()
    assert not learner.held_tensors()


def test_after_nan_it_is_as_a_first_try() -> None:
    ends = []
    for fails in (False, True):
        torch.manual_seed(0)
        learner = make(mixed_net())
        train(learner, 0)
        if fails:
            state = torch.get_rng_state()
            learner.begin_task(1)
            with torch.no_grad():
                learner.hypernetwork.head.weight.fill_(torch.nan)
            learner.abandon_task()
            torch.set_rng_state(state)
        train(learner, 1)
        ends.append(snapshot(learner))
    assert_same(*ends)


def test_tasks_added_meanwhile_stay() -> None:
    learner = make(mixed_net(), tasks=2, capacity=2)
    before = learner.hypernetwork.embeddings.detach().clone()
    learner.begin_task(1)
    learner.step(*batch(learner), 1, {"main": adam_of(learner)})
    learner.add_task("late")
    learner.abandon_task()
    assert [task.name for task in learner.tasks] == ["task 0", "task 1", "late"]
    assert torch.equal(learner.hypernetwork.embeddings[:2], before)
    assert learner.capacity == 4


def test_without_a_copy_of_the_start_it_says_so() -> None:
    learner = make()
    learner.keeps_start = False
    learner.begin_task(0)
    assert not learner.memory_parts()["weights at the start of the task"]
    with pytest.raises(RuntimeError, match="the weights at the start of task 0 were not kept"):
        learner.abandon_task()
    assert learner.current == 0
    learner.abandon_task(restore=False)
    assert learner.current is None
    with pytest.raises(RuntimeError, match=r"begin_task\(\) before abandon_task\(\)"):
        learner.abandon_task()


def test_only_the_last_task_that_was_not_begun_can_be_removed() -> None:
    learner = make(tasks=2)
    with pytest.raises(ValueError, match="task 0 is not the one that was added last, 1"):
        learner.remove_task(0)
    learner.begin_task(1)
    with pytest.raises(RuntimeError, match="task 1 was begun"):
        learner.remove_task(1)
    learner.end_task()
    with pytest.raises(RuntimeError, match="task 1 was begun"):
        learner.remove_task(1)
    assert learner.add_task("wrong") == 2
    learner.remove_task(2)
    assert learner.add_task("right") == 2


class Breaking(nn.Module):
    """Refuses inputs that are not as wide as the network's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP(16, (8,), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def tasks_of(shape: tuple[int, ...] = (1, 4, 4), name: str = "made") -> Scenario:
    return split(make_dataset(classes=6, shape=shape, name=name), 2)


def trainer_of(**options: Any) -> Trainer:
    torch.manual_seed(0)
    learner = HyperMask(Breaking(), embedding_dim=3, hidden=(6,))
    return Trainer(learner, progress=False, **{"steps": 4, **options})


class TestTrainer:
    def test_a_refused_task_does_not_stay(self) -> None:
        trainer, good = trainer_of(), tasks_of()
        trainer.fit(good[0])
        before, accuracy = snapshot(trainer.learner), trainer.accuracy
        wide = tasks_of((1, 5, 5))[1]
        with pytest.raises((ValueError, RuntimeError), match="shape"):
            trainer.fit(wide)
        assert_same(before, snapshot(trainer.learner))
        torch.testing.assert_close(trainer.accuracy, accuracy, equal_nan=True, rtol=0, atol=0)
        trainer.fit(good[1])
        assert continual.acc_final(trainer.accuracy) > 0

    def test_a_setting_found_wrong_late_leaves_it_free(self, monkeypatch: Any) -> None:
        trainer, good = trainer_of(), tasks_of()
        trainer.fit(good[0])
        before = snapshot(trainer.learner)

        def refuse(*_: Any) -> Any:
            raise ConfigError("no")

        with monkeypatch.context() as patch:
            patch.setattr(optimizers, "make_optimizers", refuse)
            with pytest.raises(ConfigError, match="no"):
                trainer.fit(good[1])
        assert_same(before, snapshot(trainer.learner))
        trainer.fit(good[1])
        assert trainer.tasks_done == 2

    @pytest.mark.parametrize("kind", ["nan", "interrupt"])
    def test_a_task_that_failed_can_be_started_over(self, kind: str) -> None:
        ends = []
        for fails in (False, True):
            trainer, good = trainer_of(), tasks_of()
            trainer.fit(good[0])
            torch.manual_seed(1)
            if fails:
                self.fail(trainer, good, kind)
                torch.manual_seed(1)
            trainer.fit(good[1])
            ends.append(
                {**snapshot(trainer.learner), "r": torch.tensor(trainer.accuracy).nan_to_num()}
            )
        assert_same(*ends)

    @staticmethod
    def fail(trainer: Trainer, good: Scenario, kind: str) -> None:
        def break_it(t: Trainer) -> None:
            if t.step == 2:
                if kind == "interrupt":
                    raise KeyboardInterrupt
                with torch.no_grad():
                    t.learner.net.net.classifier.weight.fill_(torch.nan)

        trainer.hooks.append(break_it)
        with pytest.raises(TrainingError if kind == "nan" else KeyboardInterrupt):
            trainer.fit(good[1])
        trainer.hooks.clear()
        assert trainer.learner.current == 1
        with pytest.raises(TrainingError, match=r"is being learned, so .* cannot begin"):
            trainer.fit(good[2])
        assert len(trainer.learner.tasks) == 2
        trainer.learner.abandon_task()

    def test_a_task_begun_by_hand_is_not_taken_over(self) -> None:
        trainer, good = trainer_of(), tasks_of()
        trainer.learner.begin_task(trainer.add(good[0]))
        with pytest.raises(TrainingError, match="was not begun by this trainer"):
            trainer.fit(good[0])
        trainer.learner.abandon_task()
        trainer.fit(good[0])

    def test_a_state_of_tasks_that_were_not_added_is_refused(self) -> None:
        trainer, good = trainer_of(), tasks_of()
        trainer.add(good[0])
        trainer.fit(good[0])
        tensors, state = trainer.state()
        other = trainer_of()
        before = snapshot(other.learner)
        with pytest.raises(CheckpointError, match=r"learned from \['.*'\], and this trainer has"):
            other.load_state(tensors, state)
        assert_same(before, snapshot(other.learner))
        other.add(good[0])
        other.load_state(tensors, state)
        assert_same(snapshot(trainer.learner), snapshot(other.learner))
