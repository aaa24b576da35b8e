"""The predictor's answers are those of exported networks, whoever asks, and never of the past."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hypermask_fast as hmf
from hypermask_fast.inference import predictor as module
from hypermask_fast.methods import registry
from hypermask_fast.methods.base import Learner
from tests.support import alternating
from tests.support.conversion_cases import wrap

alternating.register()

X = torch.linspace(-1, 1, 15).view(3, 5)


def learner(tasks: int = 5) -> hmf.HyperMask:
    made = wrap(hmf.networks.MLP(5, (6,), 3), sparsity=20.0)
    for number in range(2, tasks):
        made.add_task(f"new {number}", classes=[0, 1] if number == 2 else None)
    made.eval()(X, 0)
    return made


def answers(made: Learner, tasks: int) -> list[Tensor]:
    with torch.no_grad():
        return [hmf.export_subnet(made, task)(X) for task in range(tasks)]


@pytest.mark.long
def test_answers_of_many_threads_are_those_of_one() -> None:
    made = learner()
    predict = hmf.MultiTaskPredictor(made, max_tasks=4)
    wanted = [predict(X, task) for task in range(5)]
    wrong: list[object] = []

    def ask(thread: int) -> None:
        try:
            for call in range(1250):
                task = (call // 25 + thread) % 5
                if not torch.equal(predict(X, task), wanted[task]):
                    wrong.append((thread, call))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(predict.tasks) == 4
    for task, outputs in enumerate(answers(made, 5)):
        assert torch.equal(outputs[:, :2], wanted[task][:, :2])
    assert torch.equal(wanted[2][:, 2], torch.full((3,), -torch.inf))


def test_threads_that_ask_together_make_a_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, exported = learner(), []

    def slow(it: Learner, task: int) -> Any:
        exported.append(task)
        time.sleep(0.05)
        return hmf.export_subnet(it, task)

    monkeypatch.setattr(module, "export_subnet", slow)
    predict = hmf.MultiTaskPredictor(made)
    threads = [threading.Thread(target=predict, args=(X, task)) for task in (0, 1, 0, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(exported) == [0, 1]


def test_networks_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner()
    exported: list[int] = []

    def noting(it: Learner, task: int) -> Any:
        exported.append(task)
        return hmf.export_subnet(it, task)

    monkeypatch.setattr(module, "export_subnet", noting)
    predict = hmf.MultiTaskPredictor(made, max_tasks=2)
    for task in (0, 1, 0, 2, 0, "task 1", 0):
        predict(X, task)
    assert exported == [0, 1, 2, 1]
    assert predict.tasks == (1, 0)
    predict.clear()
    assert predict.tasks == ()
    predict(X, 1)
    assert exported[-1] == 1


def _set(name: str, value: float) -> Callable[[hmf.HyperMask], object]:
    return lambda it: setattr(it, name, value)


@torch.no_grad()
def _in_place(made: hmf.HyperMask) -> None:
    made.net.get_parameter("classifier.weight").mul_(2)


CHANGES: dict[str, Callable[[hmf.HyperMask], object]] = {
    "in place": _in_place,
    "a state": lambda it: it.load_state_dict(learner().state_dict()),
    "a setting": _set("sparsity", 60.0),
    "another memory": lambda it: it.net.get_parameter("classifier.weight").__setattr__(
        "data", torch.ones(3, 6)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: str) -> None:
    made = learner()
    predict = hmf.MultiTaskPredictor(made)
    before = predict(X, 1)
    CHANGES[change](made)
    made.eval()(X, 0)
    after = predict(X, 1)
    assert not torch.equal(after, before)
    assert torch.equal(after, answers(made, 2)[1])


@pytest.mark.parametrize("asked", [False, True], ids=["not-within", "within"])
@pytest.mark.parametrize("method", [*registry.methods(), alternating.NAME])
def test_training_is_noticed(method: str, asked: bool) -> None:
    """Where weights are written past PyTorch's counters too, as a replayed CUDA graph does."""
    cls: Any = registry.learner_of(method)
    options = {"input_shape": (1, 1, 5)} if cls.takes_input_shape else {}
    made: Learner = cls(hmf.networks.MLP(5, (6,), 3), **options)
    for _ in range(2):
        made.add_task()
    x = torch.rand(4, 1, 1, 5)
    made.eval()(x, 0)
    predict = hmf.MultiTaskPredictor(made)
    before = predict(x, 0)
    assert predict.tasks == (0,)
    made.begin_task(0, steps=2)
    if asked:
        predict(x, 0)
    for parameter in made.parameters():
        parameter.data.add_(torch.rand_like(parameter), alpha=0.5)
    if asked:
        assert predict.tasks == ()
        torch.testing.assert_close(predict(x, 0), made(x, 0).detach(), rtol=1e-5, atol=1e-5)
    made.end_task()
    after = predict(x, 0)
    torch.testing.assert_close(after, made(x, 0).detach(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(after, before)
