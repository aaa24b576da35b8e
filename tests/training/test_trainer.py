"""The trainer: schedules, selection, the accuracy matrix and what stops it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hypermask_fast.errors import ConfigError, TrainingError
from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.runs import run
from hypermask_fast.scenarios import Preprocess, Scenario, split_digits
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.trainer import Trainer


@pytest.fixture(scope="module")
def digits() -> Scenario:
    return split_digits(tasks=3)


def make(digits: Scenario, *, ramp: bool = True, **options: object) -> Trainer:
    torch.manual_seed(0)
    net = MLP(64, (12,), digits.num_classes)
    learner = HyperMask(net, embedding_dim=4, hidden=(8,), sparsity=20.0, capacity=4, ramp=ramp)
    defaults = {"steps": 6, "batch_size": 16, "progress": False}
    trainer = Trainer(learner, **{**defaults, **options})  # type: ignore[arg-type]
    for task in digits:
        trainer.add(task)
    return trainer


def test_the_matrix_has_a_row_before_training_and_looks_one_task_ahead(digits: Scenario) -> None:
    trainer = make(digits)
    first = trainer.fit(digits[0])
    assert trainer.accuracy.shape == (4, 3)
    assert not np.isnan(trainer.accuracy[0]).any()
    assert not np.isnan(first[:2]).any()
    assert np.isnan(first[2])
    trainer.fit(digits[1])
    trainer.fit(digits[2])
    assert not np.isnan(trainer.accuracy[3]).any()
    assert trainer.tasks_done == 3


def test_accuracy_is_the_share_of_right_answers(digits: Scenario) -> None:
    trainer = make(digits)
    trainer.fit(digits[0])
    task = digits[0]
    x = torch.cat([x for x, _ in task.evaluation_batches("test")])
    with torch.no_grad():
        answers = trainer.learner.eval()(x, 0).argmax(1)
    expected = 100 * (answers == task.test.labels).double().mean().item()
    assert trainer.evaluate(0) == pytest.approx(expected, abs=1e-9)


def test_what_cannot_be_evaluated_is_refused(digits: Scenario) -> None:
    trainer = make(digits)
    with pytest.raises(ValueError, match=r"task 7 is not among .* \[0, 1, 2\]; call add"):
        trainer.evaluate(7)
    trainer.add(replace(digits[0], name="x", validation=split_digits(validation=0)[0].validation))
    with pytest.raises(ValueError, match="task 'x' has no validation examples"):
        trainer.evaluate(3, "validation")


def test_adam_is_new_for_each_task(digits: Scenario) -> None:
    trainer = make(digits)
    seen = []

    def record(_: Trainer) -> None:
        assert trainer._step_fn is not None
        state = trainer._step_fn.optimizers["main"].state
        seen.append(int(next(iter(state.values()))["step"]))

    trainer.hooks.append(record)
    trainer.fit(digits[0])
    trainer.fit(digits[1])
    assert seen == [1, 2, 3, 4, 5, 6] * 2


def test_the_sparsity_rises_over_the_first_task_only(digits: Scenario) -> None:
    trainer = make(digits)
    learner = trainer.learner
    assert isinstance(learner, HyperMask)
    seen: list[float] = []
    trainer.hooks.append(lambda _: seen.append(learner.step_sparsity))
    trainer.fit(digits[0])
    trainer.fit(digits[1])
    ramp = [20.0 * i / 6 for i in range(1, 7)]
    assert seen == pytest.approx(ramp + [20.0] * 6)


def test_epochs_are_rounded_up_to_whole_steps(digits: Scenario) -> None:
    trainer = make(digits, steps=None, epochs=2, batch_size=100)
    per_epoch = -(-len(digits[0].train) // 100)
    assert trainer.steps_of(digits[0]) == 2 * per_epoch


def test_best_selection_returns_to_the_best_checked_state(digits: Scenario) -> None:
    """A learning rate that destroys the model in the end leaves the best state selected."""
    trainer = make(digits, selection="best", check_every=1, steps=40, lr=5e-3)
    accuracies: list[float] = []

    def destroy(t: Trainer) -> None:
        accuracies.append(t.evaluate(0, "validation"))
        if t.step == 30:
            assert t._step_fn is not None
            t._step_fn.optimizers["main"].param_groups[0]["lr"] = 5.0

    trainer.hooks.append(destroy)
    trainer.fit(digits[0])
    assert accuracies[-1] < max(accuracies)
    assert trainer.evaluate(0, "validation") == max(accuracies)


def test_best_selection_where_tasks_added_meanwhile_need_more_rows(digits: Scenario) -> None:
    trainer = make(digits, selection="best", check_every=2)

    def grow(t: Trainer) -> None:
        if t.step == 3:
            for _ in range(3):
                t.learner.add_task()

    trainer.hooks.append(grow)
    trainer.fit(digits[0])
    assert trainer.learner.capacity == 8
    trainer.fit(digits[1])


def test_best_published_measures_before_the_update_and_keeps_what_follows(
    digits: Scenario,
) -> None:
    trainer = make(digits, selection="best_published", check_every=1, steps=2, ramp=False)
    states: list[dict[str, torch.Tensor]] = []
    accuracies = [trainer_accuracy_at_start(trainer, digits)]

    def record(t: Trainer) -> None:
        states.append({k: v.clone() for k, v in weights_of(t.learner).items()})
        accuracies.append(t.evaluate(0, "validation"))

    trainer.hooks.append(record)
    trainer.fit(digits[0])
    # Step i is judged by the weights before it; ties keep the earlier.
    kept = states[int(accuracies[1] > accuracies[0])]
    final = weights_of(trainer.learner)
    for name, value in kept.items():
        assert torch.equal(final[name], value), name


def trainer_accuracy_at_start(trainer: Trainer, digits: Scenario) -> float:
    x, _ = next(digits[0].evaluation_batches("validation"))
    trainer.learner(x, 0)
    return trainer.evaluate(0, "validation")


def test_plateau_lowers_the_rate_after_six_epochs_without_progress(digits: Scenario) -> None:
    trainer = make(digits, schedule="plateau", steps=None, epochs=9, batch_size=1000, lr=1e-9)
    rates: list[float] = []

    def record(t: Trainer) -> None:
        assert t._step_fn is not None
        rates.append(t._step_fn.optimizers["main"].param_groups[0]["lr"])

    trainer.hooks.append(record)
    trainer.fit(digits[0])
    # The first epoch sets the best accuracy; patience is 5.
    # min_lr is 5e-7, above this rate: the scheduler never raises it.
    assert rates == [1e-9] * 9
    trainer = make(digits, schedule="plateau", steps=None, epochs=9, batch_size=1000, lr=1e-6)
    rates.clear()
    trainer.hooks.append(record)
    trainer.fit(digits[0])
    assert rates == pytest.approx([1e-6] * 6 + [5e-7] * 3)


def test_a_loss_that_is_not_finite_stops_training(digits: Scenario) -> None:
    trainer = make(digits, lr=1e30)
    with pytest.raises(TrainingError, match=r"loss of task .* is not finite at step \d+"):
        trainer.fit(digits[0])


def test_settings_are_checked(digits: Scenario) -> None:
    learner = make(digits).learner
    with pytest.raises(ConfigError, match="steps=3 and epochs=2"):
        Trainer(learner, steps=3, epochs=2)
    with pytest.raises(ConfigError, match=r"selection='bst' is unknown \(did you mean 'best'\?\)"):
        Trainer(learner, selection="bst")
    trainer = make(digits, selection="best")
    empty = replace(digits[0], name="empty", validation=split_digits(validation=0)[0].validation)
    with pytest.raises(ConfigError, match="no validation examples"):
        trainer.fit(empty)

    assert "empty" not in [record.name for record in trainer.learner.tasks]


def test_a_name_is_of_one_task_only(digits: Scenario) -> None:
    trainer = make(digits)
    same = split_digits(tasks=3)
    assert [trainer.add(task) for task in same] == [0, 1, 2]
    assert trainer.add(replace(digits[0], name="another")) == 3
    for other in (
        replace(digits[1], name=digits[0].name, classes=digits[0].classes),
        replace(digits[0], test=digits[0].validation),
        replace(digits[0], eval_preprocess=Preprocess(permutation=torch.arange(64).flip(0))),
    ):
        with pytest.raises(ConfigError, match="has other examples than the task that was added"):
            trainer.fit(other)
    with pytest.raises(ConfigError, match=r"has the classes \(1, 0\) and was added with \(0, 1\)"):
        trainer.fit(replace(digits[0], classes=(1, 0)))
    assert (trainer.tasks_done, len(trainer.learner.tasks)) == (0, 4)


def test_a_task_whose_data_were_mended_is_learned_after_what_the_refusal_says() -> None:
    torch.manual_seed(0)
    learner = HyperMask(torch.nn.Linear(4, 2), embedding_dim=3, hidden=(4,))
    trainer = Trainer(learner, steps=2, batch_size=4, progress=False)
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    trainer.fit((x, y), name="first", test=(x, y))
    with pytest.raises(TrainingError, match="not finite"):
        trainer.fit((x / 0, y), name="second", test=(x, y))
    with pytest.raises(ConfigError, match=r"or call abandon_task\(\) and remove_task\(\) of the"):
        trainer.fit((x, y), name="second", test=(x, y))
    learner.abandon_task()
    learner.remove_task("second")
    assert trainer.fit((x, y), name="second", test=(x, y)).shape == (2,)
    with pytest.raises(ConfigError, match=r"give it another name$"):
        trainer.fit((x + 1, y), name="second", test=(x, y))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"epochs": 0, "steps": None},
        {"check_every": 0},
        {"batch_size": 2.5},
        {"lr": "0.1"},
        {"weight_decay": -1},
        {"eval_batch_size": 0},
        {"lr": float("nan")},
    ],
)
def test_the_constructor_says_of_a_setting_what_a_run_does(
    digits: Scenario, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as of_trainer:
        make(digits, **options)
    with pytest.raises(ConfigError) as of_run:
        RunConfig.from_options(**options)
    assert str(of_trainer.value) == str(of_run.value)


def test_state_continues_bit_identically_in_memory(digits: Scenario) -> None:
    """Stop after step 4 of the second task, with best-so-far and plateau state in flight."""
    options = {
        "selection": "best",
        "check_every": 2,
        "schedule": "plateau",
        "steps": 7,
        "batch_size": 100,
    }
    whole = make(digits, **options)
    for task in digits:
        whole.fit(task)

    class Halt(Exception):
        pass

    part = make(digits, **options)
    part.fit(digits[0])

    def halt(t: Trainer) -> None:
        if t.step == 4:
            raise Halt

    part.hooks.append(halt)
    with pytest.raises(Halt):
        part.fit(digits[1])
    tensors, state = part.state()
    tensors = {name: value.clone() for name, value in tensors.items()}
    torch.manual_seed(99)
    again = make(digits, **options)
    again.load_state(tensors, state)
    again.fit(digits[1])
    again.fit(digits[2])
    for (name, a), b in zip(
        whole.learner.state_dict().items(), again.learner.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    np.testing.assert_array_equal(whole.accuracy, again.accuracy)


def test_a_run_turns_off_what_its_settings_turn_off() -> None:
    def status(**settings: bool) -> dict[str, str]:
        config = RunConfig.from_preset("split-digits", tasks=1, steps=1, device="cpu", **settings)
        return run.build(config)[1].status()

    assert status(graph=False, compile=False) == {
        "graph": "no: it is off",
        "compile": "no: it is off",
    }
    assert "no: it is off" not in status().values()
