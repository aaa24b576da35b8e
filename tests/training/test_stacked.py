"""Learners of several seeds in one batched step, against each of them alone, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hypermask_fast as hmf
from hypermask_fast.errors import ConfigError, TrainingError
from hypermask_fast.training.stacked import fit_together
from hypermask_fast.training.trainer import Trainer
from tests.support.scenario_cases import make_dataset

SEEDS = (3, 4, 5)
# Where a gradient is below Adam's eps of 1e-8 its rounding, 1e-16, moves a step by lr 1e-16 / 1e-8:
# for 1e-10 after 16 steps the rate is below 6e-4.
SETTINGS: dict[str, Any] = {"steps": 8, "batch_size": 5, "lr": 1e-4, "schedule": "cosine"}
OPTIONS: dict[str, Any] = {"beta": 0.1, "lam": 0.01, "sparsity": 40.0, "capacity": 3}


def made(seed: int, net: nn.Module | None = None, **changes: Any) -> Trainer:
    torch.manual_seed(seed)
    options = {**OPTIONS, **{k: v for k, v in changes.items() if k not in SETTINGS}}
    settings = {**SETTINGS, **{k: v for k, v in changes.items() if k in SETTINGS}}
    net = net or hmf.networks.MLP(16, (7,), 6)
    learner = hmf.HyperMask(net, embedding_dim=3, hidden=(6, 5), **options).double()
    return Trainer(learner, progress=False, seed=seed, **settings)


def tasks(seed: int) -> list[Any]:
    scenario = hmf.scenarios.permuted(make_dataset(), 2, validation=0, seed=seed)
    return list(scenario)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="hypermask"),
        pytest.param({"masked_l1": True, "schedule": "constant"}, id="masked-l1"),
        pytest.param({"train_target": False, "ramp": False}, id="fixed-target"),
    ],
)
def test_numbers_are_those_of_each_seed_alone(changes: dict[str, Any]) -> None:
    together = [made(seed, **changes) for seed in SEEDS]
    of_seed = [tasks(seed) for seed in SEEDS]
    rows = [fit_together(together, each) for each in zip(*of_seed, strict=True)]
    begun = [made(seed, **changes) for seed in SEEDS]
    for index, (alone, seeds_tasks) in enumerate(zip(begun, of_seed, strict=True)):
        start = {name: p.detach().clone() for name, p in alone.learner.named_parameters()}
        expected = [alone.fit(task) for task in seeds_tasks]
        np.testing.assert_array_equal(rows[-1][index], expected[-1])
        np.testing.assert_array_equal(together[index].accuracy, alone.accuracy)
        found = dict(together[index].learner.named_parameters())
        moved = 0.0
        for name, value in alone.learner.named_parameters():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)
            moved = max(moved, float((value.detach() - start[name]).abs().max()))
        assert moved > 5e-4
        # What is learned goes on alone, too.
        assert together[index].learner.learned == alone.learner.learned
    assert not torch.equal(*(t.learner.hypernetwork.head.weight for t in together[:2]))


def normed() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 6))


def dropped() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Dropout(), nn.Linear(4, 6))


@pytest.mark.parametrize(
    ("trainers", "words"),
    [
        pytest.param(lambda: [made(1, head="chunked", chunk_size=9)], "head='full'", id="chunked"),
        pytest.param(lambda: [made(1, targets="bfloat16")], "targets", id="targets"),
        pytest.param(lambda: [made(1, normed())], "buffers", id="norm"),
        pytest.param(lambda: [made(1, dropped())], "random numbers in", id="dropout"),
        pytest.param(lambda: [made(1), made(2, lr=0.1)], "not the same", id="settings"),
        pytest.param(
            lambda: [made(1), made(2, hmf.networks.MLP(16, (8,), 6))], "not the same", id="sizes"
        ),
        pytest.param(
            lambda: [Trainer(hmf.SupSup(hmf.networks.MLP(16, (7,), 6)), progress=False, steps=1)],
            "is SupSup, expected HyperMask",
            id="method",
        ),
    ],
)
def test_what_cannot_train_together_is_a_sentence(trainers: Any, words: str) -> None:
    given = trainers()
    with pytest.raises(ConfigError) as caught:
        fit_together(given, [tasks(1)[0]] * len(given))
    assert words in str(caught.value)
    assert str(caught.value).endswith("one after the other, or in processes of their own")
    assert not any(trainer.learner.tasks for trainer in given)


def test_a_loss_that_is_not_finite_names_its_seed() -> None:
    given = [made(seed) for seed in (1, 2)]
    with torch.no_grad():
        given[1].learner.net.get_parameter("classifier.bias").fill_(torch.inf)
    with pytest.raises(TrainingError, match="the loss of seed 2 is not finite after step 1"):
        fit_together(given, [tasks(seed)[0] for seed in (1, 2)])
