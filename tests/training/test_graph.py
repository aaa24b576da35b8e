"""Steps as CUDA graphs: what follows from a capture."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast import doctor
from hypermask_fast.errors import ConfigError, TrainingError
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.methods.steps import Steps
from hypermask_fast.methods.tasks import TaskList
from hypermask_fast.native import library
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.training import trainer as trainer_module
from hypermask_fast.training.graph import GraphedStep
from hypermask_fast.training.loss_watch import Copy, LossWatch
from hypermask_fast.training.schedules import Schedule
from hypermask_fast.training.step import TrainingStep
from hypermask_fast.training.trainer import Trainer
from tests.support.graph_cases import BATCH, convolutional, make_learner, make_tasks, mlp
from tests.support.graph_stand_ins import RecordedGraphs
from tests.support.hypermask_cases import adam_of


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of a step that a GPU takes, on the CPU."""
    monkeypatch.setattr(library, "load", lambda: None)
    monkeypatch.setattr(Steps, "next", lambda self: self._taken + 1)
    # It reads the labels, on a CPU only.
    monkeypatch.setattr(TaskList, "check_labels", lambda *_: None)


def optimizer_of(learner: HyperMask, lr: float = 1e-2) -> FactoredAdam:
    """The trainer's optimizer, as it is on a GPU."""
    optimizer = adam_of(learner, lr=lr, weight_decay=0.1)
    for group in optimizer.param_groups:
        group |= {"capturable": True, "lr": torch.tensor(lr)}
    return optimizer


Change = Callable[[HyperMask, torch.optim.Optimizer], None]


def train(
    graphed: bool,
    net: Callable[[], nn.Module] = convolutional,
    earlier: int = 2,
    changes: dict[int, Change] | None = None,
    failing: str = "",
    mode: bool | str = True,
    observed: Sequence[int] = (),
    numbers: Sequence[int] = range(20),
    **options: Any,
) -> tuple[dict[str, Tensor], list[list[float]], RecordedGraphs, GraphedStep]:
    """Twenty steps: parameters and moments at the end, the losses of each, and what took them."""
    torch.manual_seed(3)
    tasks = make_tasks(crop=1, flip=True)
    learner = make_learner(net, earlier, tasks, **options)
    optimizer = optimizer_of(learner)
    cuda = RecordedGraphs(learner, optimizer, failing)
    step = GraphedStep(mode if graphed else False, cuda=cuda)
    step.begin(TrainingStep(learner, optimizer), tasks[earlier].stream(BATCH), earlier)
    seen: list[list[float]] = []
    for number in numbers:
        (changes or {}).get(number, lambda *_: None)(learner, optimizer)
        called: list[int] = []
        losses = step(number, (lambda: called.append(1)) if number in observed else None)  # noqa: B023
        assert len(called) == (number in observed)
        seen.append([float(value) for value in losses.scalars().values()])
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    for name, p in learner.named_parameters():
        state |= {f"{name}.{key}": v for key, v in optimizer.state.get(p, {}).items()}
    state["steps"] = torch.tensor(learner.steps_taken)
    return state, seen, cuda, step


def set_lr(learner: HyperMask, optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 1e-3


def fill_lr(learner: HyperMask, optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr"].fill_(1e-3)


def set_beta(learner: HyperMask, optimizer: torch.optim.Optimizer) -> None:
    learner.beta = 5.0


def add_task(learner: HyperMask, optimizer: torch.optim.Optimizer) -> None:
    learner.add_task()
    assert learner.capacity == 6


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("options", "captures", "replays"),
    [
        pytest.param({}, 1, 17, id="whole-run"),
        pytest.param({"ramp": 12, "earlier": 0, "net": mlp}, 1, 17, id="ramp"),
        pytest.param({"regularized_tasks": 1, "net": mlp}, 1, 17, id="sampled"),
        pytest.param({"dropout": "first_step", "bn": "batch", "earlier": 0}, 1, 17, id="published"),
        pytest.param({"targets": "frozen_head"}, 1, 17, id="frozen-head"),
        pytest.param({"changes": {9: fill_lr}}, 1, 17, id="rate-in-a-tensor"),
        pytest.param({"changes": {9: set_lr}}, 2, 14, id="rate-as-a-number"),
        pytest.param({"changes": {5: set_beta, 7: set_lr, 12: set_beta}}, 2, 12, id="changes"),
        pytest.param({"changes": {9: add_task}, "capacity": 3}, 2, 14, id="tables-grow"),
        pytest.param({"observed": (0, 7, 8, 15)}, 1, 13, id="observed-steps"),
        pytest.param({"numbers": [*range(40, 50), *range(3, 13)]}, 1, 17, id="jump"),
    ],
)
def test_graphed_steps_are_those_of_ordinary_ones(
    options: dict[str, Any], captures: int, replays: int
) -> None:
    state, losses, cuda, step = train(True, **options)
    expected, expected_losses, *_ = train(False, **options)
    assert losses == expected_losses
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert (cuda.captures, cuda.replays) == (captures, replays)
    step.end()
    assert step.status == "yes"


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("net", [mlp, convolutional])
def test_a_step_that_cannot_be_captured_goes_on_with_one_warning(
    net: Callable[[], nn.Module],
) -> None:
    with pytest.warns(RuntimeWarning, match=r"kernel by kernel.*graph=False accepts it") as seen:
        state, losses, cuda, step = train(True, net, mode="auto", failing="no\nmemcpy")
    assert len(seen) == 1
    expected, expected_losses, *_ = train(False, net)
    assert losses == expected_losses
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert (cuda.captures, cuda.replays) == (1, 0)
    # The first of the two errors is the reason.
    assert step.status == "no: the capture failed (no memcpy while capturing)"
    with pytest.raises(TrainingError, match=r"graph is True and .* \(no memcpy while capturing\)"):
        train(True, net, failing="no memcpy")


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_new_task_is_captured_anew_and_a_failure_is_not_tried_again() -> None:
    tasks = make_tasks()
    learner = make_learner(mlp, 0, tasks)
    for failing, captures in (("", 2), ("no", 1)):
        optimizer = optimizer_of(learner)
        cuda = RecordedGraphs(learner, optimizer, failing)
        step = GraphedStep("auto", cuda=cuda)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(2):
                step.begin(TrainingStep(learner, optimizer), tasks[0].stream(BATCH), 0)
                for number in range(5):
                    step(number)
                step.end()
        assert len(seen) == bool(failing)
        assert cuda.captures == captures


@pytest.mark.usefixtures("as_on_a_gpu")
def test_modes_and_where_a_graph_can_be() -> None:
    tasks = make_tasks()
    learner = make_learner(mlp, 0, tasks)
    optimizer = optimizer_of(learner)
    started = TrainingStep(learner, optimizer), tasks[0].stream(BATCH), 0
    with pytest.raises(ConfigError, match="graph is 'yes'; choose one of True, False, 'auto'"):
        GraphedStep("yes")
    with pytest.raises(ConfigError, match="graph is True and the learner is on cpu"):
        GraphedStep(True).begin(*started)
    step = GraphedStep()
    assert step.status == "not yet: no step was captured"
    step.begin(*started)
    assert step.status == "no: the learner is on cpu"
    assert GraphedStep(False).status == "no: it is off"


def begin(
    trainer: Trainer, learner: HyperMask, graphed: bool, cudas: list[RecordedGraphs], _: int
) -> None:
    """What a trainer does at the start of a task, with stand-ins."""
    optimizer = optimizer_of(learner)
    trainer._step_fn = TrainingStep(learner, optimizer)
    trainer._schedule = Schedule(trainer.settings.schedule, [optimizer], steps=20)
    cudas.append(RecordedGraphs(learner, optimizer))
    trainer._graphed = GraphedStep(graphed, cuda=cudas[-1])


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param(
            {"selection": "best_published", "check_every": 3, "schedule": "plateau"}, id="selects"
        ),
    ],
)
def test_a_trainer_with_graphs_is_one_without(options: dict[str, Any]) -> None:
    results = []
    for graphed in (False, True):
        torch.manual_seed(0)
        learner = HyperMask(mlp(), embedding_dim=3, hidden=(4,), sparsity=30.0, capacity=4)
        trainer = Trainer(learner, lr=1e-2, batch_size=BATCH, steps=20, progress=False, **options)
        cudas: list[RecordedGraphs] = []
        trainer._make_optimizers = partial(begin, trainer, learner, graphed, cudas)  # type: ignore[method-assign]
        torch.manual_seed(1)
        tasks = make_tasks(validation=6)
        for task in tasks:
            trainer.add(task)
        for task in tasks[:2]:
            trainer.fit(task)
        assert [c.captures for c in cudas] == [graphed] * 2
        # With checks, two thirds of the steps are looked at and so ordinary.
        assert all(c.replays >= 3 * graphed for c in cudas)
        results.append((learner.state_dict(), trainer.accuracy.tolist()))
    (state, accuracy), (expected, expected_accuracy) = results
    assert str(accuracy) == str(expected_accuracy)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def late(task: str, device: torch.device, every: int) -> LossWatch:
    """A watch as of a GPU, whose copies are there when they are asked for."""
    return LossWatch(
        task, torch.device("meta"), every=every, copy=lambda v: Copy(v, lambda: True, lambda: None)
    )


@pytest.mark.parametrize("saves_at", [None, 5])
def test_losses_that_were_not_read_yet_are_before_a_checkpoint_and_the_end(
    saves_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "LossWatch", late)
    learner = HyperMask(mlp(), embedding_dim=3, hidden=(4,), capacity=4)
    trainer = Trainer(learner, lr=1e30, batch_size=BATCH, steps=9, progress=False)
    trainer.hooks.append(lambda t: t.state() and None if t.step == saves_at else None)
    with pytest.raises(TrainingError, match=f"not finite at step {saves_at or 9} "):
        trainer.fit(make_tasks()[0])


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_rate_in_a_tensor_is_a_number_in_a_checkpoint() -> None:
    trainers = []
    for _ in range(2):
        torch.manual_seed(0)
        learner = HyperMask(mlp(), embedding_dim=3, hidden=(4,), capacity=4)
        trainer = Trainer(learner, batch_size=BATCH, steps=9, progress=False, schedule="plateau")
        trainer._make_optimizers = partial(begin, trainer, learner, False, [])  # type: ignore[method-assign]
        trainers.append(trainer)
    saved: list[str] = []

    def save(t: Trainer) -> None:
        assert t._step_fn is not None
        for group in t._step_fn.optimizers["main"].param_groups:
            group["lr"].fill_(0.25)
        tensors, state = t.state()
        saved.append(json.dumps(state))
        trainers[1].add(task)
        trainers[1].load_state(tensors, json.loads(saved[-1]))
        raise KeyboardInterrupt

    trainers[0].hooks.append(save)
    task = make_tasks(validation=6)[0]
    with pytest.raises(KeyboardInterrupt):
        trainers[0].fit(task)
    assert trainers[1]._step_fn is not None
    rates = [group["lr"] for group in trainers[1]._step_fn.optimizers["main"].param_groups]
    assert all(isinstance(lr, Tensor) for lr in rates)
    assert rates == [0.25, 0.25]
    assert rates[0] is not rates[1]


def test_a_trainer_tells_what_is_active() -> None:
    trainer = Trainer(HyperMask(mlp(), embedding_dim=3), steps=1, progress=False, compile=False)
    trainer.fit(make_tasks()[0])
    assert trainer.status() == {"graph": "no: the learner is on cpu", "compile": "no: it is off"}
    assert set(trainer.losses_read) == set()


def test_steps_are_counted_where_they_are_taken() -> None:
    """On a device by a tensor, with the bits that the host computes; on a CPU by a number."""
    steps = Steps(torch.device("cpu"))
    steps.start(ramp=7, taken=2)
    for number in range(3, 12):
        assert steps.next() == number
        assert isinstance(steps.next(), int)
        expected = 33.3 * number / 7 if number < 7 else 33.3
        assert steps.sparsity(33.3, number) == expected
        on_device = steps.sparsity(33.3, torch.tensor(number))
        assert isinstance(on_device, Tensor)
        assert on_device.item() == expected
        steps.count()
        assert (steps.taken, int(steps._taken)) == (number, number)
    steps.start(ramp=0)
    assert steps.sparsity(33.3, torch.tensor(1)) == 33.3
    assert isinstance(Steps(torch.device("meta")).next(), Tensor)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("net", "earlier", "options"),
    [
        pytest.param(mlp, 0, {"ramp": 12}, id="ramp"),
        pytest.param(mlp, 2, {}, id="mlp"),
        pytest.param(convolutional, 2, {}, id="conv-norm-dropout"),
    ],
)
def test_twenty_graphed_steps_are_bitwise_twenty_ordinary_ones(
    net: Callable[[], nn.Module],
    earlier: int,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    results = []
    for mode in (False, True):
        torch.manual_seed(3)
        tasks = [task.to("cuda") for task in make_tasks(crop=1, flip=True)]
        learner = make_learner(net, earlier, tasks, device="cuda", **options)
        optimizer = adam_of(learner, lr=1e-2, weight_decay=0.1)
        step = GraphedStep(mode)
        step.begin(TrainingStep(learner, optimizer), tasks[earlier].stream(BATCH), earlier)
        torch.cuda.manual_seed(7)
        seen = [
            torch.stack([v.clone() for v in step(number).scalars().values()])
            for number in range(20)
        ]
        assert step.status.startswith("yes" if mode else "no")
        state = {**learner.state_dict(), "losses": torch.stack(seen)}
        for name, p in learner.named_parameters():
            state |= {f"{name}.{key}": v for key, v in optimizer.state.get(p, {}).items()}
        results.append(copy.deepcopy(state))
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value), name


def test_the_doctor_tells_why_there_is_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    facts = dict(doctor._facts())
    assert facts["CUDA graph"] == "no: torch sees no CUDA device"
    assert facts["torch.compile"].startswith("no: torch sees no CUDA device; compile=True")


@pytest.mark.gpu
def test_the_doctor_tries_both() -> None:
    facts = dict(doctor._facts())
    assert facts["CUDA graph"] == facts["torch.compile"] == "yes"
