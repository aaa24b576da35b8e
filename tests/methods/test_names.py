"""A task's name stands for its id, everywhere; tasks are renamed, copied and removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hypermask_fast as hmf
from hypermask_fast.inference.calibration import calibrate
from hypermask_fast.inference.fecam import FeCAM
from hypermask_fast.inference.one_shot import one_shot

X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 0, 1, 0, 1])
SMALL: dict[str, Any] = {"embedding_dim": 3, "hidden": (4,), "capacity": 2}


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


REPLAY: dict[str, Any] = {"input_shape": (1, 4, 4), "encoder_hidden": (4,), "decoder_hidden": (4,)}
METHODS: dict[str, Callable[[], hmf.Learner]] = {
    "hypermask": lambda: hmf.HyperMask(net(), **SMALL),
    "hnet": lambda: hmf.HNET(net(), **SMALL, head="full", lookahead=False),
    "hyperinterval": lambda: hmf.HyperInterval(net(), **SMALL, mode="task", evaluates="task"),
    "supsup": lambda: hmf.SupSup(net(), density=0.5),
    "exssnet": lambda: hmf.ExSSNeT(net(), density=0.5),
    "hnet_r": lambda: hmf.HNETR(net(), **REPLAY),
    "hnet_tir": lambda: hmf.HNETTIR(net(), **REPLAY, **SMALL, activation="elu"),
}


def learned(name: str, count: int = 2) -> hmf.Learner:
    torch.manual_seed(0)
    learner = METHODS[name]()
    for task in range(count):
        learner.add_task(f"t{task}", classes=[2 * task, 2 * task + 1])
        train(learner, f"t{task}")
    return learner.eval()


def train(learner: hmf.Learner, task: Any, steps: int = 3) -> None:
    learner.begin_task(task, steps=steps)
    for phase in learner.phases(task, steps):
        if learner.phase != phase.name:
            learner.begin_phase(phase.name)
        groups: dict[str, list[nn.Parameter]] = {}
        for group in learner.parameter_groups(learner.phase):
            groups.setdefault(group.optimizer, []).extend(group.params)
        optimizers = {key: hmf.FactoredAdam(params, lr=0.05) for key, params in groups.items()}
        for _ in range(phase.steps):
            learner.step(X, Y, task, optimizers)
    learner.end_task()


@pytest.mark.parametrize("name", METHODS)
def test_a_name_gives_what_its_id_gives(name: str) -> None:
    learner = learned(name)
    calls: list[Callable[[Any], Any]] = [
        lambda task: learner(X, task=task),
        lambda task: learner(X, task),
        lambda task: learner.features(X, task),
        lambda task: learner.all_outputs(X, [task]),
        lambda task: learner.competing_outputs(X, [task]),
        lambda task: learner.net_for(task)(X),
        lambda task: torch.cat([w.flatten() for w in learner.task_weights(task).values()]),
        lambda task: hmf.export_subnet(learner, task)(X),
    ]
    for place, call in enumerate(calls):
        assert torch.equal(call("t1"), call(1)), place
    with learner.activated("t1") as named:
        found = named(X)
    with learner.activated(1) as numbered:
        assert torch.equal(found, numbered(X))


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_name_is_refused_with_the_names_there_are(name: str) -> None:
    learner = learned(name, 1)
    calls: list[Callable[[], Any]] = [
        lambda: learner(X, task="t9"),
        lambda: learner(X, task=["t0", "t9", "t0", "t0", "t0", "t0"]),
        lambda: learner.begin_task("t9"),
        lambda: learner.losses(X, Y, "t9"),
        lambda: learner.features(X, "t9"),
        lambda: learner.all_outputs(X, ["t0", "t9"]),
        lambda: learner.task_weights("t9"),
        lambda: learner.remove_task("t9"),
        lambda: learner.rename_task("t9", "other"),
        lambda: learner.copy_task("t9"),
        lambda: learner.net_for("t9"),
        lambda: learner.regularization("t9"),
        lambda: hmf.export_subnet(learner, "t9"),  # type: ignore[arg-type]
        lambda: learner.predict(X, tasks=["t9"]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"no task is called 't9'.*; the tasks are \['t0'\]"):
            call()


def test_names_for_each_row_are_ids_for_each_row() -> None:
    learner = learned("hypermask")
    names = ["t1", "t0", "t0", "t1", "t1", "t0"]
    ids = torch.tensor([1, 0, 0, 1, 1, 0])
    assert torch.equal(learner(X, task=names), learner(X, task=ids))
    assert torch.equal(learner(X, task=("t1",) * 6), learner(X, task=1))
    with pytest.raises(ValueError, match=r"task has shape \(2,\) for a batch of 6"):
        learner(X, task=["t0", "t1"])


def test_inference_takes_names() -> None:
    learner = learned("hypermask")
    data: dict[Any, Any] = {"t0": [(X, Y)], 1: [(X.flip(0), Y)]}
    score = FeCAM(shrinkage=1).fitted(learner, data)
    assert list(score.models) == [0, 1]
    calibration = calibrate(learner, score, {"t1": [(X, Y)], "t0": [(X, Y)]})
    assert calibration.tasks == (0, 1)
    found = learner.predict(X, score, tasks=["t1", "t0"], calibration=calibration)
    assert found.competing == (0, 1)
    assert one_shot(learner, X, tasks=["t1"]).task == 1
    with pytest.raises(ValueError, match="task 0 is given twice"):
        FeCAM(shrinkage=1).fitted(learner, {"t0": [(X, Y)], 0: [(X, Y)]})


def test_a_renamed_task_is_the_same_task() -> None:
    learner = learned("hypermask")
    before = learner(X, task="t1")
    learner.rename_task("t1", "birds")
    assert [task.name for task in learner.tasks] == ["t0", "birds"]
    assert torch.equal(learner(X, task="birds"), before)
    learner.rename_task("birds", "birds")
    with pytest.raises(ValueError, match="a task named 't0' was added already"):
        learner.rename_task("birds", "t0")
    with pytest.raises(TypeError, match="name is None"):
        learner.rename_task("birds", None)  # type: ignore[arg-type]
    other = METHODS["hypermask"]()
    other.load_state_dict(learner.state_dict())
    assert other.task_id("birds") == 1


def test_a_trainer_follows_names() -> None:
    torch.manual_seed(0)
    learner = METHODS["hypermask"]()
    trainer = hmf.Trainer(learner, steps=3, batch_size=4, progress=False)
    for place, name in enumerate(("a", "b")):
        trainer.fit((X, Y + 2 * place), name=name, test=(X, Y + 2 * place))
    matrix = trainer.accuracy
    learner.rename_task("a", "spare")
    learner.rename_task("b", "a")
    learner.rename_task("spare", "b")
    assert trainer.columns == (0, 1)
    np.testing.assert_array_equal(trainer.accuracy, matrix)
    assert [task.name for task in trainer.tasks.values()] == ["b", "a"]
    assert trainer.evaluate("a") == trainer.evaluate(1)
    with pytest.raises(ValueError, match=r"the tasks are \['b', 'a'\]"):
        trainer.evaluate("c")
    trainer.fit((X, Y), name="b", test=(X, Y))
    assert trainer.columns == (0, 1, 0)


def of_task(learner: hmf.Learner, task: Any) -> Tensor:
    return torch.cat([w.flatten() for w in learner.task_weights(task).values()])


@pytest.mark.parametrize("name", METHODS)
def test_a_copy_starts_as_the_task_that_it_is_of(name: str) -> None:
    learner = learned(name)
    others = of_task(learner, 0)
    made = learner.copy_task("t1", "more", classes=[7, 8])
    assert learner.tasks[made] == hmf.methods.tasks.TaskRecord("more", (7, 8), like=1)
    assert torch.equal(of_task(learner, "more"), of_task(learner, "t1"))
    assert torch.equal(learner(X, task="more"), learner(X, task="t1"))
    assert torch.equal(of_task(learner, 0), others)
    saved = learner.state_dict()
    other = METHODS[name]()
    other.load_state_dict(saved)
    assert torch.equal(of_task(other, "more"), of_task(learner, "more"))
    # It is a copy, not the task: what it learns leaves the other alone as ever.
    before = learner(X, task="t1")
    train(learner, "more")
    if name in ("supsup", "exssnet"):
        assert torch.equal(learner.eval()(X, task="t1"), before)
    if name != "hnet_r":  # which has one network for all tasks
        assert not torch.equal(of_task(learner, "more"), of_task(learner, "t1"))
    assert made in learner.learned


@pytest.mark.parametrize("name", ["hypermask", "hnet", "hyperinterval", "supsup", "exssnet"])
def test_what_comes_after_a_removed_copy_does_not_start_as_it(name: str) -> None:
    learner = learned(name)
    learner.remove_task(learner.copy_task("t1", "more"))
    assert [task.name for task in learner.tasks] == ["t0", "t1"]
    learner.add_task("new", classes=[4, 5])
    assert not torch.equal(of_task(learner, "new"), of_task(learner, "t1"))


def test_a_copy_has_the_normalisation_and_copies_of_its_task() -> None:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    learner = hmf.HyperMask(made, **SMALL, bn="per_task", per_task=["0.bias"])
    for task in range(2):
        learner.add_task()
        learner.begin_task(task)
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            learner.losses(X.flatten(1)[:, :4], Y, task).total.backward()
            optimizer.step()
        learner.end_task()
    x = X.flatten(1)[:, :4]
    learner.eval().copy_task(0, "copy")
    assert torch.equal(learner(x, task="copy"), learner(x, task=0))
    assert not torch.equal(learner(x, task="copy"), learner(x, task=1))
    learner.remove_task("copy")
    third = learner.add_task()
    fresh = learner.norms.states(third, learning=False)
    own = dict(learner.norms.copies.state(third).values)
    assert torch.equal(own["0.bias"], learner.net.get_parameter("0.bias"))
    assert torch.equal(fresh[0][1].running_mean, torch.zeros(3))


def test_a_copy_within_a_task_is_refused_for_abandoning_would_take_it_back() -> None:
    learner = learned("hypermask")
    learner.copy_task(0, "copy")
    learner.begin_task(0)
    with pytest.raises(RuntimeError, match=r"task 0 is being learned.* before copy_task"):
        learner.copy_task(1)
    with pytest.raises(RuntimeError, match="task 2 is a copy and task 0 is being learned"):
        learner.remove_task("copy")


def test_hyperinterval_begins_a_copy_where_it_is_and_not_as_the_task_before() -> None:
    torch.manual_seed(0)
    learner = hmf.HyperInterval(net(), **SMALL, new_embedding="previous", evaluates="task")
    for task in range(2):
        learner.add_task()
        train(learner, task)
    copied = learner.copy_task(0)
    learner.begin_task(copied)
    table = learner.hypernetwork.embeddings
    assert torch.equal(table[copied], table[0])
