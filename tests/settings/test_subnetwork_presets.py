"""The presets of SupSup and ExSSNeT: published numbers, and each of them runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hypermask_fast.planning.plan import plan
from hypermask_fast.runs import run
from hypermask_fast.scenarios import make_scenario
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.presets import presets
from tests.support.scenario_cases import replace_datasets

NAMES = [name for name in presets() if name.startswith(("supsup", "exssnet"))]
SUPSUP_CIFAR = {"lr": 1e-3, "weight_decay": 1e-4, "epochs": 250, "batch_size": 128, "er_scale": 16}
INFERRED = {"rule": "threshold", "optimizer": "rmsprop", "lr": 1e-4, "steps": 1000}
EXSSNET = {"lr": 1e-3, "weight_lr": None, "weight_decay": 0, "epochs": 100, "batch_size": 64}
TESTED = {"schedule": "cosine_plateau", "selection": "best_on_test_data", "validation": 0}


@pytest.mark.parametrize(
    ("name", "outputs", "published"),
    [
        ("supsup-split-cifar100", 5, SUPSUP_CIFAR | {"schedule": "cosine_epochs", "tasks": 20}),
        ("supsup-split-cifar100-transfer", 5, SUPSUP_CIFAR | {"score_init": "mean"}),
        ("supsup-permuted-mnist", 500, INFERRED | {"tasks": 250, "network": "fc1024"}),
        ("supsup-permuted-mnist-lenet", 100, INFERRED | {"tasks": 250}),
        ("supsup-permuted-mnist-lenet-2500", 500, INFERRED | {"tasks": 2500}),
        ("supsup-rotated-mnist", 200, INFERRED | {"tasks": 36, "network": "fc1024"}),
        ("exssnet-split-mnist-as-published", 2, EXSSNET | TESTED),
        ("exssnet-permuted-mnist-as-published", 10, EXSSNET | TESTED),
        ("exssnet-split-cifar100-as-published", 5, EXSSNET | TESTED),
    ],
)
def test_published_settings(name: str, outputs: int, published: dict[str, Any]) -> None:
    config = RunConfig.from_preset(name)
    values = config.options()
    assert {setting: values[setting] for setting in published} == published
    classes = {"split-mnist": 2}.get(values["scenario"], 5 if "cifar" in name else 10)
    assert config.method.outputs(tasks=config.tasks, classes=classes) == outputs


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_planned_and_takes_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_datasets(monkeypatch, 200)
    size = {"device": "cpu", "batch_size": 2, "eval_batch_size": 20}
    assert plan(RunConfig.from_preset(name, device="cpu"), memory=2**37).fits()
    config = RunConfig.from_preset(name, **size, tasks=2, steps=2)
    config = config.replace(validation=min(config.options()["validation"], 40))
    scenario, trainer = run.build(config)
    # Black images of which a few are enough.
    trainer.fit(scenario[0])
    assert trainer.tasks_done == 1
    assert np.isfinite(trainer.accuracy[1, 0])


def test_classes_are_drawn_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_datasets(monkeypatch, 200)
    for seed in (0, 3, 2**32):
        scenario = make_scenario("split-cifar100-5-random", "data", seed=seed)
        order = np.random.RandomState(seed % 2**32).permutation(100)
        assert [c for task in scenario for c in task.classes] == order.tolist()
        assert len(scenario) == 20
