"""Runs of SupSup and ExSSNeT: stopped and resumed, in a folder, on digits, and planned."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hypermask_fast.files import checkpoint
from hypermask_fast.planning.plan import plan
from hypermask_fast.planning.simulation import MOMENTS
from hypermask_fast.runs import run
from hypermask_fast.settings import build
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.trainer import Trainer
from tests.support.subnetwork_cases import KINDS


def config(method: str, **options: Any) -> RunConfig:
    small = {"tasks": 3, "steps": 10, "mlp_hidden": (12,), "batch_size": 16, "device": "cpu"}
    return RunConfig.from_options(method=method, **{**small, "log_every": 1, **options})


def made(method: str, **options: Any) -> tuple[Any, Trainer]:
    chosen = config(method, **options)
    torch.manual_seed(chosen.run.seed)
    scenario = build.make_scenario(chosen)
    learner = build.make_learner(chosen, scenario.input_shape, scenario.num_classes)
    trainer = build.make_trainer(chosen, learner)
    for task in scenario:
        trainer.add(task)
    return scenario, trainer


@pytest.mark.parametrize("stop", [3, 5, 7, 10], ids=lambda s: f"after-{s}")
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("supsup", {"score_init": "mean", "density": 0.3}),
        ("supsup", {"rule": "threshold", "optimizer": "rmsprop", "superfluous": 3}),
        ("exssnet", {"density": 0.3, "kkt": "knn_always"}),
        ("exssnet", {"density": 0.3, "optimizer": "sgd", "momentum": 0.9, "selection": "best"}),
    ],
    ids=str,
)
def test_a_stopped_task_continues_bit_identically(
    method: str, options: dict[str, Any], stop: int, tmp_path: Path
) -> None:
    found = []
    for stops in (False, True):
        scenario, trainer = made(method, **options)
        trainer.fit(scenario[0])
        if stops:

            def interrupt(t: Trainer) -> None:
                if t.step == stop:
                    checkpoint.save(tmp_path, stop, *t.state())
                    raise KeyboardInterrupt

            trainer.hooks.append(interrupt)
            with pytest.raises(KeyboardInterrupt):
                trainer.fit(scenario[1])
            saved = checkpoint.load_latest(tmp_path)
            scenario, trainer = made(method, **options)
            trainer.load_state(saved.tensors, json.loads(json.dumps(saved.state)))
        trainer.fit(scenario[1])
        trainer.fit(scenario[2])
        found.append(trainer.state()[0])
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


@pytest.mark.parametrize("method", KINDS)
def test_a_run_in_a_folder(method: str, tmp_path: Path) -> None:
    chosen = config(method, density=0.3, steps=150, lr=0.01, mlp_hidden=(40,))
    result = run.train(chosen, tmp_path / "run", show_progress=False)
    assert result.accuracy[3, 2] > 85
    # Nothing is forgotten: the last row is the diagonal.
    assert [result.accuracy[3, i] for i in range(3)] == [
        result.accuracy[i + 1, i] for i in range(3)
    ]
    learner = run.load(tmp_path / "run").learner
    assert type(learner) is KINDS[method]
    assert tuple(learner.learned) == (0, 1, 2)


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_digits_are_learned_by_the_weights_and_kept_by_the_exclusive_set(density: float) -> None:
    """At 5 % of a small network masks alone reach 95 %; at 50 % the masks overlap."""
    scenario, trainer = made(
        "exssnet", density=density, steps=100, lr=0.01, mlp_hidden=(40,), seed=1
    )
    kept = []
    for task in scenario:
        accuracy = trainer.fit(task)
        x = torch.cat([x for x, _ in scenario[0].evaluation_batches("test")])
        kept.append(trainer.learner.eval()(x, 0))
    assert accuracy.mean() > 97
    assert all(torch.equal(logits, kept[0]) for logits in kept)


def test_digits_that_were_learned_before_begin_with_a_learned_mask() -> None:
    """KKT: before a step is taken, the mask is that of an earlier task."""
    # All 84 references would vote for the larger class.
    kkt = {"kkt": "knn_best", "kkt_neighbours": 5}
    scenario, trainer = made("exssnet", density=0.3, steps=60, lr=0.01, seed=1, **kkt)
    for task in scenario.tasks[:2]:
        trainer.fit(task)
    learner = trainer.learner
    again = trainer.add(dataclasses.replace(scenario[0], name="again"))
    learner.begin_task(again, data=scenario[0])
    mask = learner._flat_mask(again)
    assert any(torch.equal(mask, learner._flat_mask(task)) for task in (0, 1))


@pytest.mark.parametrize("method", KINDS)
def test_a_plan_tells_bits_scores_and_moments(method: str) -> None:
    weights = 64 * 12 + 12 * 2
    found = plan(config(method, density=0.1))
    assert found.found.facts == {"mask_entries": weights, "mask_bytes_a_task": weights // 8}
    parts = found.found.peaks["training step"]
    assert parts["scores"] == 4 * weights
    assert parts["masks of the tasks"] == 3 * (weights // 8)
    # After the last phase, in which ExSSNeT trains a tenth of the weights.
    trained = weights if method == "supsup" else 77 + 3
    assert found.found.peaks["evaluation"][MOMENTS] == 2 * 4 * trained
    if method == "exssnet":
        other = plan(config(method, kkt="knn_best"))
        assert other.found.learner - found.found.learner == 3 * 4 * weights
