"""What a learner refuses, and the sentence it says."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP

X, Y = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])


def make(**options: Any) -> HyperMask:
    return HyperMask(MLP(5, (4,), 3), embedding_dim=2, hidden=(2,), capacity=3, **options)


def with_tasks(count: int = 2) -> HyperMask:
    learner = make()
    for _ in range(count):
        learner.add_task()
    return learner


def learning(classes: list[int] | None = None) -> HyperMask:
    learner = make()
    learner.begin_task(learner.add_task(classes=classes))
    return learner


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        pytest.param(2, ValueError, r"task 2 was not added \(0 to 1 were\)", id="unknown"),
        pytest.param(-1, ValueError, "task -1 was not added", id="negative"),
        pytest.param(1.0, TypeError, r"task is 1.0; give the id that add_task\(\)", id="float"),
        pytest.param(True, TypeError, "task is True", id="bool"),
        pytest.param("digits", ValueError, "is called .digits.; the tasks are", id="name"),
        pytest.param(None, TypeError, "task is None", id="none"),
        pytest.param(torch.tensor(1.0), TypeError, "task is torch.float32; give", id="float-0d"),
        pytest.param(torch.tensor(True), TypeError, "task is torch.bool", id="bool-0d"),
        pytest.param(torch.tensor(7), ValueError, "task 7 was not added", id="unknown-0d"),
        pytest.param(torch.tensor([0, 5, 1, 0]), ValueError, "task 5 was not added", id="rows"),
        pytest.param(torch.tensor([0, -2, 1, 0]), ValueError, "task -2 was", id="negative-row"),
        pytest.param(torch.zeros(4), TypeError, "task is torch.float32", id="float-rows"),
        pytest.param(torch.zeros(4) > 0, TypeError, "task is torch.bool", id="bool-rows"),
        pytest.param(
            torch.tensor([0, 1]), ValueError, r"task has shape \(2,\) for a batch of 4", id="few"
        ),
        pytest.param(
            torch.zeros(4, 1, dtype=torch.int64), ValueError, r"shape \(4, 1\)", id="matrix"
        ),
    ],
)
def test_wrong_task_ids(task: Any, error: type[Exception], message: str) -> None:
    learner = with_tasks()
    with pytest.raises(error, match=message):
        learner(X, task)


def test_an_empty_batch_of_ids() -> None:
    with pytest.raises(ValueError, match="task ids are empty; give one id"):
        with_tasks()(X[:0], torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda learner, task: learner.begin_task(task), id="begin"),
        pytest.param(lambda learner, task: learner.losses(X, Y, task), id="losses"),
        pytest.param(lambda learner, task: learner.task_weights(task), id="masked-weights"),
        pytest.param(lambda learner, task: learner.masks(task), id="masks"),
        pytest.param(lambda learner, task: learner.activated(task).__enter__(), id="activated"),
    ],
)
def test_every_method_checks_the_task(call: Callable[[HyperMask, Any], object]) -> None:
    learner = with_tasks()
    learner(X, 0)
    with pytest.raises(ValueError, match="task 2 was not added"):
        call(learner, 2)
    with pytest.raises(TypeError, match=r"task is 0\.0"):
        call(learner, 0.0)
    with pytest.raises(ValueError, match=r"task has shape \(2,\); give a single id"):
        call(learner, torch.tensor([0, 1]))


def test_no_task_was_added() -> None:
    with pytest.raises(ValueError, match=r"task 0 was not added \(none was\)"):
        make()(X, 0)


def test_names_of_tasks() -> None:
    learner = make()
    assert learner.add_task() == 0
    assert learner.add_task("digits") == 1
    assert [record.name for record in learner.tasks] == ["task 0", "digits"]
    assert learner.task_id("digits") == 1
    with pytest.raises(ValueError, match="named 'digits' was added already"):
        learner.add_task("digits")
    with pytest.raises(ValueError, match=r"no task is called 'digit' .did you mean 'digits'"):
        learner.task_id("digit")


@pytest.mark.parametrize("classes", [[], [1, 1]])
def test_classes_of_tasks(classes: list[int]) -> None:
    learner = make()
    with pytest.raises(ValueError, match="at least one, and each once"):
        learner.add_task(classes=classes)
    assert len(learner.tasks) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": 3}, "name is 3; give a string"),
        ({"classes": [0, 1.5]}, "classes has 1.5; give a list of their global ids"),
        ({"classes": [True, False]}, "classes has True"),
        ({"classes": torch.tensor([0.0, 1.0])}, "classes has tensor"),
        ({"classes": "01"}, "classes has '0'"),
        ({"classes": 2}, "classes is 2"),
    ],
)
def test_other_types_of_names_and_classes(options: dict[str, Any], message: str) -> None:
    learner = make()
    with pytest.raises(TypeError, match=message):
        learner.add_task(**options)
    assert len(learner.tasks) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda it: it(X.numpy(), 0), "inputs are a ndarray; give a tensor"),
        (lambda it: it(X.tolist(), 0), "inputs are a list; give a tensor"),
        (lambda it: it.all_outputs(X.numpy()), "inputs are a ndarray"),
        (lambda it: it.losses(X, Y.tolist(), 0), "labels are a list"),
        (lambda it: it.losses([(X, Y)], Y, 0), "inputs are a list"),
        (lambda it: it(X, [0, 0, 1, 1]), r"task is \[0, 0, 1, 1\]; .* a tensor of ids"),
        (lambda it: it(X, np.zeros(4, int)), r"task is array\(\[0, 0, 0, 0\]\); .* tensor of ids"),
        (lambda it: it(X, ("task 0", 0, 0, 0)), r"task is \('task 0', 0, 0, 0\)"),
        (lambda it: it(X, True), "task is True"),
    ],
)
def test_other_types_of_inputs_labels_and_tasks(call: Callable[[Any], Any], message: str) -> None:
    learner = with_tasks()
    learner.begin_task(0)
    with pytest.raises(TypeError, match=message):
        call(learner)


def test_classes_are_kept_as_plain_integers() -> None:
    learner = make()
    learner.add_task(classes=torch.tensor([4, 2]))
    learner.add_task(classes=np.array([1, 0]))
    assert [record.classes for record in learner.tasks] == [(4, 2), (1, 0)]
    assert all(type(c) is int for record in learner.tasks for c in record.classes)


def test_more_classes_than_outputs() -> None:
    learner = make()
    learner.add_task(classes=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="task 0 has 4 classes and the network 3 outputs"):
        learner(X, 0)


def test_calls_out_of_order() -> None:
    learner = with_tasks()
    with pytest.raises(RuntimeError, match=r"no task is being learned; call begin_task\(\)"):
        learner.end_task()
    with pytest.raises(RuntimeError, match=r"losses of task 0 .* while no task .* begin_task\(0\)"):
        learner.losses(X, Y, 0)
    learner.begin_task(0)
    with pytest.raises(RuntimeError, match="task 0 is still being learned; call end_task"):
        learner.begin_task(1)
    with pytest.raises(RuntimeError, match=r"losses of task 1 .* while task 0"):
        learner.losses(X, Y, 1)
    assert learner.current == 0
    learner.end_task()
    with pytest.raises(RuntimeError, match="while no task"):
        learner.losses(X, Y, 0)
    with pytest.raises(ValueError, match="steps is -1; give 0 or more"):
        learner.begin_task(1, steps=-1)
    assert learner.current is None
    assert learner.learned == (0,)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        pytest.param(X, Y.int(), r"labels are torch.int32 .* give int64 labels", id="dtype"),
        pytest.param(X, Y.float(), "labels are torch.float32", id="float"),
        pytest.param(X, Y[:3], r"shape \(3,\) for inputs of shape \(4, 5\)", id="few"),
        pytest.param(X, Y[:, None], r"shape \(4, 1\)", id="column"),
        pytest.param(X[:0], Y[:0], r"inputs have shape \(0, 5\); a loss needs", id="empty"),
        pytest.param(X, Y + 1, "labels reach from 1 to 3 and task 0 has 3 classes", id="high"),
        pytest.param(X, Y - 100, "labels reach from -100 to -98", id="ignored"),
        pytest.param(X.to("meta"), Y, "inputs are on meta and the learner on cpu", id="x-device"),
        pytest.param(X, Y.to("meta"), "labels are on meta and the learner on cpu", id="y-device"),
        pytest.param(X[:, :4], Y, r"an input of shape \(4, 4\) .* through MLP", id="shape"),
        pytest.param(X.double(), Y, r"an input of shape \(4, 5\) and torch.float64", id="double"),
    ],
)
def test_wrong_batches(x: Tensor, y: Tensor, message: str) -> None:
    learner = learning()
    with pytest.raises(ValueError, match=message):
        learner.losses(x, y, 0)
    # A refused batch is not a step.
    assert learner.task_state()[1]["step"] == 0
    learner.losses(X, Y, 0)


def test_a_label_beyond_the_tasks_classes_but_within_the_outputs() -> None:
    learner = learning(classes=[4, 5])
    with pytest.raises(ValueError, match="reach from 0 to 2 and task 0 has 2 classes"):
        learner.losses(X, Y, 0)


def test_wrong_inputs_of_a_forward() -> None:
    learner = with_tasks()
    with pytest.raises(ValueError, match="inputs are on meta"):
        learner(X.to("meta"), 0)
    with pytest.raises(ValueError, match=r"an input of shape \(4, 9\)"):
        learner(torch.randn(4, 9), 0)
    with pytest.raises(ValueError, match=r"an input of shape \(5,\)"):
        learner(torch.randn(5), 0)
    assert learner(X, 0).shape == (4, 3)


def test_masks_are_unknown_before_an_input() -> None:
    learner = with_tasks()
    for call in (learner.masks, learner.task_weights):
        with pytest.raises(RuntimeError, match=r"still unknown; run learner\(x, task\)"):
            call(0)
    with (
        pytest.raises(RuntimeError, match="example_input= or exempt="),
        learner.activated(0),
    ):
        pass
    learner(X, 0)
    with learner.activated(0) as net:
        assert net(X).shape == (4, 3)
    assert set(make(exempt="classifier.bias").manifest()[0]) == {
        "name",
        "shape",
        "offset",
        "masked",
        "reason",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"sparsity": -1.0}, r"sparsity=-1.0 .*; give at least 0", id="negative"),
        pytest.param({"sparsity": 101.0}, "sparsity=101.0 .*; give at most 100", id="above"),
        pytest.param({"sparsity": math.nan}, "sparsity=nan .*; give a finite number", id="nan"),
        pytest.param({"beta": -0.1}, "beta=-0.1 is out of range; give at least 0", id="beta"),
        pytest.param({"lam": math.inf}, "lam=inf .*; give a finite number", id="lam"),
        pytest.param(
            {"bn": "pertask"}, "bn='pertask' is unknown .did you mean 'per_task'", id="bn"
        ),
        pytest.param({"dropout": "first"}, "choose one of always, first_step, off", id="dropout"),
        pytest.param({"head": "chunk"}, "did you mean 'chunked'", id="head"),
        pytest.param({"init": "hyperfann"}, "did you mean 'hyperfan'", id="init"),
        pytest.param(
            {"spasity": 3.0}, "option of HyperMask 'spasity' .*mean 'sparsity'", id="name"
        ),
        pytest.param({"settings": 3}, "of type int; give HyperMaskSettings", id="settings"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)


@pytest.mark.parametrize("sparsity", [0.0, 1.0, 30.0, 100.0])
def test_a_percentage_is_silent(sparsity: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(sparsity=sparsity)


def test_a_fraction_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="0.3 is in percent.*give 30 if a fraction") as caught:
        make(sparsity=0.3)
    assert caught[0].filename == __file__


def test_sparsity_of_masks_is_checked() -> None:
    learner = with_tasks()
    learner(X, 0)
    for call in (learner.masks, learner.task_weights):
        with pytest.raises(ValueError, match="120"):
            call(0, sparsity=120.0)
