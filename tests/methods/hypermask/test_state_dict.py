"""A learner's state_dict is whole: weights, tasks, what was learned, and the rows for them."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hypermask_fast.errors import CheckpointError
from hypermask_fast.methods.extra_state import EXTRA_STATE, weights_of
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.scenarios import split
from hypermask_fast.training.trainer import Trainer
from tests.support.hypermask_cases import adam_of, batch, make, mixed_net, train
from tests.support.scenario_cases import make_dataset

State = Mapping[str, Tensor]


def learned(**options: Any) -> HyperMask:
    torch.manual_seed(3)
    learner = make(mixed_net(), capacity=2, **options)
    for task in (2, 0):
        train(learner, task)
    return learner


def through_file(state: State, path: Path) -> State:
    torch.save(state, path)
    loaded: State = torch.load(path, weights_only=True)
    return loaded


def through_safetensors(state: State, path: Path) -> State:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return load_file(path)


WAYS = [
    pytest.param(lambda state, path: state, id="as-it-is"),
    pytest.param(lambda state, path: copy.deepcopy(state), id="deepcopy"),
    pytest.param(through_file, id="torch-save"),
    pytest.param(through_safetensors, id="safetensors"),
]


def assert_same_tasks(one: HyperMask, other: HyperMask) -> None:
    for name in ("tasks", "learned", "current", "capacity", "exempt"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("way", WAYS)
def test_a_new_learner_protects_what_was_learned(
    way: Callable[[State, Path], State], tmp_path: Path
) -> None:
    first = learned()
    second = make(mixed_net(), tasks=0, capacity=2)
    second.load_state_dict(way(first.state_dict(), tmp_path / "state"))
    assert_same_tasks(first, second)
    assert first.learned == (2, 0)
    ends = []
    for learner in (first, second):
        torch.manual_seed(5)
        outs = train(learner, 1)
        assert outs[1].output_reg.item() > 0
        ends.append(learner.state_dict())
    for name, value in ends[0].items():
        if name != EXTRA_STATE:  # It holds the seed that earlier tasks are drawn with.
            assert torch.equal(value, ends[1][name]), name


def test_another_process_protects_it_too(tmp_path: Path) -> None:
    first = learned()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    program = (
        "import sys, torch\n"
        "from tests.support.hypermask_cases import make, mixed_net\n"
        "learner = make(mixed_net(), tasks=0, capacity=2)\n"
        "learner.load_state_dict(torch.load(sys.argv[1], weights_only=True))\n"
        "print(learner.learned, learner.current, learner.capacity, learner.exempt)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "state.pt")]
    root = Path(__file__).parents[3]
    out = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.split("\n")[0] == f"(2, 0) None 4 {first.exempt}"


def test_within_a_task_the_same_learner_goes_on() -> None:
    ends = []
    for reloads in (False, True):
        learner = learned()
        learner.begin_task(1)
        optimizer, (x, y) = adam_of(learner), batch(learner)
        for _ in range(3):
            learner.step(x, y, 1, {"main": optimizer})
            if reloads:
                learner.load_state_dict(copy.deepcopy(learner.state_dict()))
        ends.append(weights_of(learner))
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_within_a_later_task_another_learner_cannot_go_on_but_begin_anew() -> None:
    first = learned()
    first.begin_task(1)
    second = make(mixed_net(), tasks=0, capacity=2)
    second.load_state_dict(first.state_dict())
    assert_same_tasks(first, second)
    assert second.current == 1
    with pytest.raises(RuntimeError, match="what the earlier tasks keep is not known"):
        second.losses(*batch(second), 1)
    with pytest.raises(RuntimeError, match="weights at the start of task 1 were not kept"):
        second.abandon_task()
    second.abandon_task(restore=False)
    outs = train(second, 1)
    assert outs[1].output_reg.item() > 0


def test_within_the_first_task_another_learner_goes_on() -> None:
    first = make()
    first.begin_task(1)
    x, y = batch(first)
    first.losses(x, y, 1)
    second = make(tasks=0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.losses(x, y, 1).total, first.losses(x, y, 1).total)


def without_tasks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != EXTRA_STATE}


def with_foreign_tasks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, EXTRA_STATE: torch.tensor([1, 2], dtype=torch.uint8)}


def without_a_weight(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != "net.0.bias"}


def with_another_weight(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "net.9.bias": torch.ones(3)}


def of_another_shape(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "net.0.bias": torch.ones(9)}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("change", "message", "strict_only"),
    [
        (without_tasks, "the state has no _extra_state", False),
        (with_foreign_tasks, r"_extra_state is 'tensor\(\[1, 2\]", False),
        (without_a_weight, "the state lacks net.0.bias", True),
        (with_another_weight, "the state has net.9.bias", True),
        (of_another_shape, r"net.0.bias of shape \(9,\) and the learner of \(6,\)", True),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    strict_only: bool,
    strict: bool,
) -> None:
    if strict_only and not strict:
        pytest.skip("strict=False takes what there is")
    learner, other = learned(), make(mixed_net(), tasks=0, capacity=2)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        other.load_state_dict(change(dict(learner.state_dict())), strict=strict)
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_grown_learner_refuses_a_smaller_state() -> None:
    small = make(mixed_net(), tasks=1, capacity=2)
    learner = learned()
    with pytest.raises(CheckpointError, match=r"of shape \(2, .*; load it into a new learner"):
        learner.load_state_dict(small.state_dict())
    assert learner.learned == (2, 0)


def test_a_learner_in_another_module_is_loaded_too() -> None:
    class Wrapped(nn.Module):
        def __init__(self, learner: HyperMask) -> None:
            super().__init__()
            self.learner = learner

    first, second = Wrapped(learned()), Wrapped(make(mixed_net(), tasks=0, capacity=2))
    second.load_state_dict(first.state_dict())
    assert_same_tasks(first.learner, second.learner)
    state = {n: v for n, v in first.state_dict().items() if not n.endswith(EXTRA_STATE)}
    with pytest.raises(CheckpointError, match=r"the state has no learner\._extra_state"):
        second.load_state_dict(state, strict=False)


@pytest.mark.parametrize("options", [{}, {"targets": "frozen_head"}], ids=str)
def test_an_average_of_weights_is_one_at_any_time(options: dict[str, Any]) -> None:
    learner = learned(lam=0.1, **options)
    average = AveragedModel(learner, use_buffers=False)
    learner.begin_task(1)
    inside = AveragedModel(learner)
    optimizer, (x, y) = adam_of(learner), batch(learner)
    for _ in range(3):
        learner.step(x, y, 1, {"main": optimizer})
        for each in (average, inside):
            each.update_parameters(learner)
    learner.end_task()
    inside.update_parameters(learner)
    assert torch.isfinite(average(x, 1)).all()
    assert not torch.equal(inside(x, 1), learner(x, 1))


def test_what_is_kept_moves_with_the_learner() -> None:
    learner = learned(lam=0.1, dropout="off")
    learner.begin_task(1)
    learner.double()
    x, y = batch(learner)
    assert learner.losses(x, y, 1).total.dtype == torch.float64
    twin = io.BytesIO()
    torch.save(learner, twin)
    twin.seek(0)
    again = torch.load(twin, weights_only=False)
    assert torch.equal(again.losses(x, y, 1).total, learner.losses(x, y, 1).total)


def test_a_return_within_a_task_takes_the_ramp_back_too() -> None:
    learner = make(mixed_net(), tasks=1, sparsity=40.0)
    learner.begin_task(0, steps=10)
    for _ in range(2):
        learner.losses(*batch(learner), 0)
    state = copy.deepcopy(learner.state_dict())
    for _ in range(3):
        learner.losses(*batch(learner), 0)
    assert learner.step_sparsity == 20.0
    learner.load_state_dict(state)
    assert learner.steps_taken == 2
    learner.losses(*batch(learner), 0)
    assert learner.step_sparsity == 12.0


@pytest.mark.parametrize("state", [None, 3, []])
def test_what_is_no_state_is_refused(state: Any) -> None:
    learner = make()
    optimizer = adam_of(learner)
    for call in (learner.load_state_dict, optimizer.load_state_dict):
        with pytest.raises(CheckpointError, match=r"state is .*; give what state_dict"):
            call(state)


@pytest.mark.parametrize("moment", [None, 1.0, [0.0]])
def test_moments_that_are_no_tensors_are_refused(moment: Any) -> None:
    learner = make(tasks=1)
    optimizer = adam_of(learner)
    learner.begin_task(0)
    out = learner.losses(*batch(learner), 0, optimizer=optimizer)
    out.total.backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    next(iter(state["state"].values()))["exp_avg"] = moment
    with pytest.raises(CheckpointError, match="moments of shapes"):
        optimizer.load_state_dict(state)


class WithState(nn.Linear):
    """A layer beside the masked ones that keeps a state of its own."""

    def __init__(self, value: object) -> None:
        super().__init__(16, 5)
        self.value = value

    def get_extra_state(self) -> object:
        return self.value

    def set_extra_state(self, state: object) -> None:
        self.value = state


def net_with_state(value: object) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), WithState(value), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)
    )


def trainer_of(value: object) -> Trainer:
    learner = HyperMask(net_with_state(value), embedding_dim=3, hidden=(6,), exclude="1")
    return Trainer(learner, progress=False, steps=2)


def test_a_modules_own_state_is_saved_if_it_is_a_tensor() -> None:
    task = split(make_dataset(classes=6, shape=(1, 4, 4)), 2)[0]
    trainer = trainer_of(torch.tensor([7.0]))
    trainer.fit(task)
    other = trainer_of(torch.tensor([0.0]))
    other.add(task)
    other.load_state(*trainer.state())
    assert torch.equal(other.learner.net[1].value, torch.tensor([7.0]))
    with pytest.raises(CheckpointError, match=r"net\.1\._extra_state of the network is a dict"):
        trainer_of({"a": 1}).state()


def test_weights_that_lack_one_are_not_restored() -> None:
    learner = make()
    weights = weights_of(learner)
    del weights["net.classifier.bias"]
    with pytest.raises(CheckpointError, match=r"the weights lack net\.classifier\.bias"):
        learner.restore(weights)
