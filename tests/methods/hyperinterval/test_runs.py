"""HyperInterval's runs: what the method's own steps are worth, resuming, planning, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast import cli
from hypermask_fast.files import checkpoint
from hypermask_fast.methods.hyperinterval.learner import HyperInterval
from hypermask_fast.planning.plan import plan
from hypermask_fast.runs import run
from hypermask_fast.scenarios import Scenario
from hypermask_fast.settings import build
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.trainer import Trainer

STEPS = 12


def config(**options: Any) -> RunConfig:
    small = {
        **{"tasks": 3, "steps": STEPS, "mlp_hidden": (12,), "hidden": (8,), "batch_size": 16},
        **{"embedding_dim": 4, "capacity": 5, "device": "cpu", "log_every": 1, "validation": 20},
    }
    return RunConfig.from_options(method="hyperinterval", **{**small, **options})


def made(**options: Any) -> tuple[Scenario, Trainer]:
    chosen = config(**options)
    torch.manual_seed(chosen.run.seed)
    scenario = build.make_scenario(chosen)
    learner = build.make_learner(chosen, scenario.input_shape, scenario.num_classes)
    trainer = build.make_trainer(chosen, learner)
    for task in scenario:
        trainer.add(task)
    return scenario, trainer


@pytest.mark.parametrize("stop", [3, 6, 9, STEPS], ids=lambda s: f"after-{s}")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "task", "selection": "best_published", "check_every": 2},
        {"extent": 2.0, "selection": "best_published", "check_every": 2, "targets": "bfloat16"},
        {"optimizer": "sgd", "arithmetic": "three_pass", "momentum": 0.9},
    ],
    ids=lambda o: "-".join(map(str, o.values())) or "plain",
)
def test_a_stopped_task_continues_bit_identically(
    stop: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """In the ramp, at its end, after it, and after the last step of the second task."""
    found: list[dict[str, Tensor]] = []
    for stops in (False, True):
        scenario, trainer = made(**options)
        trainer.fit(scenario[0])
        if stops:

            def interrupt(t: Trainer) -> None:
                if t.step == stop:
                    checkpoint.save(tmp_path / "c", stop, *t.state())
                    raise KeyboardInterrupt

            trainer.hooks.append(interrupt)
            with pytest.raises(KeyboardInterrupt):
                trainer.fit(scenario[1])
            saved = checkpoint.load_latest(tmp_path / "c")
            scenario, trainer = made(**options)
            trainer.load_state(saved.tensors, json.loads(json.dumps(saved.state)))
        trainer.fit(scenario[1])
        found.append(trainer.state()[0])
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_the_published_selection_returns_the_start_where_no_extent_is_full() -> None:
    """As the published code does of extents that round to another number."""
    scenario, trainer = made(extent=0.5, selection="best_published", check_every=1)
    before = {k: v.clone() for k, v in trainer.learner.state_dict().items() if "extra" not in k}
    trainer.fit(scenario[0])
    after = trainer.learner.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    scenario, trainer = made(extent=1.0, selection="best_published", check_every=1)
    before = {k: v.clone() for k, v in trainer.learner.state_dict().items() if "extra" not in k}
    trainer.fit(scenario[0])
    after = trainer.learner.state_dict()
    assert not torch.equal(after["hypernetwork.head.weight"], before["hypernetwork.head.weight"])


@pytest.mark.parametrize(("mode", "measured"), [("nested", 0), ("task", STEPS // 3 + 1)])
def test_the_published_selection_measures_what_it_looks_at(mode: str, measured: int) -> None:
    """The first check, one every third step, and the last; of nested tasks by the loss alone."""
    scenario, trainer = made(mode=mode, selection="best_published", check_every=3)
    splits: list[str] = []
    evaluate = trainer.evaluate

    def counted(task: int, split: str = "test", **options: Any) -> float:
        splits.append(split)
        return evaluate(task, split, **options)

    trainer.evaluate = counted  # type: ignore[method-assign]
    trainer.fit(scenario[0])
    assert splits.count("validation") == measured


@pytest.mark.parametrize("mode", ["nested", "task"])
def test_a_run_in_a_folder(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = config(mode=mode)
    result = run.train(chosen, tmp_path / "run", show_progress=False)
    assert RunConfig.from_toml(tmp_path / "run" / "config.toml") == chosen
    again = run.resume(tmp_path / "run", show_progress=False)
    assert str(again.accuracy) == str(result.accuracy)
    learner = run.load(tmp_path / "run").learner
    assert isinstance(learner, HyperInterval)
    if mode == "nested":
        assert learner.universal_network()(torch.rand(2, 1, 8, 8)).shape == (2, 2)
    for score in ("entropy", "box_entropy"):
        words = ["eval", str(tmp_path / "run"), "--infer", score, "--calibrate", "--json"]
        capsys.readouterr()
        assert cli.main(words) == 0
        assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("mode", ["nested", "task"])
def test_a_plan_has_the_methods_own_parts(mode: str) -> None:
    chosen = config(mode=mode, tasks=5)
    found = plan(chosen)
    size = 64 * 12 + 12 + 12 * 2 + 2
    assert found.found.facts == {
        "target_weights": size,
        "head_width": 8,
        "head_parameters": size * 9,
    }
    parts = found.found.peaks["training step"]
    assert parts["hypernetwork: head"] == 4 * 9 * size
    kept = 4 * size * (2 if mode == "nested" else 1) * 4
    assert kept <= parts["outputs kept of earlier tasks"] <= kept + 100
    halved = plan(chosen.replace(targets="bfloat16")).found.peaks["training step"]
    assert halved["outputs kept of earlier tasks"] <= kept // 2 + 100
    assert "targets='bfloat16'" in dict(plan(chosen, memory=10).alternatives())


def test_the_command_line_shows_the_methods_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--method", "hyperinterval", "--help"])
    assert not ended.value.code
    text = capsys.readouterr().out
    assert "--extent" in text
    assert "--sparsity" not in text
    bad = [["--extent", "-1"], ["--mode", "tasks"], ["--kappa", "2"], ["--center", "exchanged"]]
    for words in bad:
        assert cli.main(["plan", "--method", "hyperinterval", *words]) == 2
        message = capsys.readouterr().err
        assert words[0].strip("-") in message
        assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "hyperinterval-split-mnist",
            {"embedding_dim": 24, "hidden": (100,), "batch_size": 64, "beta": 1e-3, "extent": 10.0},
        ),
        (
            "hyperinterval-split-mnist-task",
            {"embedding_dim": 72, "hidden": (75, 75), "batch_size": 128, "beta": 0.01},
        ),
        (
            "hyperinterval-permuted-mnist-10",
            {"embedding_dim": 24, "hidden": (100, 100), "beta": 5e-3, "extent": 5.0},
        ),
        (
            "hyperinterval-permuted-mnist-10-task",
            {"embedding_dim": 24, "hidden": (100, 100), "beta": 0.01, "extent": 0.5},
        ),
    ],
)
def test_presets_hold_the_published_settings(name: str, published: dict[str, Any]) -> None:
    values = RunConfig.from_preset(name).options()
    shared = {
        "mode": "task" if name.endswith("task") else "nested",
        **{"division": "twice", "kappa": 0.5, "lr": 1e-3, "selection": "best_published"},
        **{"check_every": 10, "steps": 2000 if "split" in name else 5000},
        "validation": 1000 if "split" in name else 500,
    }
    wanted = {**published, **shared}
    assert {key: values[key] for key in wanted} == wanted
