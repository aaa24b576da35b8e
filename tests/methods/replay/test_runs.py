"""HNET+TIR and HNET+R as runs: presets, plan, resume, inference, and what replay is good for."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hypermask_fast import cli
from hypermask_fast.errors import ConfigError
from hypermask_fast.inference.evaluation import evaluate
from hypermask_fast.inference.registry import make_score
from hypermask_fast.planning.plan import plan
from hypermask_fast.runs import run
from hypermask_fast.scenarios import published
from hypermask_fast.scenarios.catalogue import SCENARIOS
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.trainer import Trainer
from tests.support.run_cases import assert_same_run, stopped

METHODS = ["hnet-tir", "hnet-r"]
SCORES = {"hnet-tir": "tir", "hnet-r": "max_logit"}
SHORT: dict[str, Any] = {
    **{"tasks": 3, "steps": 4, "mlp_hidden": (8,), "batch_size": 8, "device": "cpu"},
    **{"encoder_hidden": (8,), "decoder_hidden": (8,), "latent_dim": 3, "log_every": 1},
    **{"replay_hidden": (5,), "replay_chunk_size": 200, "capacity": 3, "checkpoint_every": 0.0},
}


def short(method: str, **options: Any) -> RunConfig:
    return RunConfig.from_preset(f"{method}-split-digits", **{**SHORT, **options})


_SPLIT = {
    **{"encoder_hidden": (400, 400), "latent_dim": 100, "replay_embedding_dim": 96},
    **{"replay_chunk_embedding_dim": 96, "replay_hidden": (10, 10), "replay_activation": "elu"},
    **{"replay_chunk_size": 50_000, "replay_beta": 0.01, "conditions": 5, "lr": 1e-3},
    **{"steps": 2000, "batch_size": 128, "mlp_hidden": (400, 400), "normalize": False},
    **{"augment": False, "replay_weight": 0.5},
}
_PERMUTED = {
    **{"encoder_hidden": (1000, 1000), "latent_dim": 100, "replay_embedding_dim": 24},
    **{"replay_chunk_embedding_dim": 8, "replay_hidden": (25, 25), "replay_activation": "elu"},
    **{"replay_chunk_size": 85_000, "replay_beta": 0.1, "conditions": 10, "lr": 1e-4},
    **{"steps": 5000, "batch_size": 128, "mlp_hidden": (1000, 1000), "identity_first": True},
}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        pytest.param(
            "hnet-tir-split-mnist",
            {**_SPLIT, "decoder_hidden": (50, 150), "task_hidden": (400, 400), "beta": 0.01},
            id="tir-split",
        ),
        pytest.param(
            "hnet-r-split-mnist",
            {**_SPLIT, "decoder_hidden": (250, 350), "temperature": 2.0},
            id="r-split",
        ),
        pytest.param(
            "hnet-tir-permuted-mnist-10",
            {**_PERMUTED, "decoder_hidden": (1000, 1000), "beta": 0.1, "chunk_size": 78_000},
            id="tir-permuted",
        ),
        pytest.param(
            "hnet-r-permuted-mnist-10",
            {**_PERMUTED, "decoder_hidden": (400, 400), "task_heads": "growing"},
            id="r-permuted",
        ),
    ],
)
def test_presets_hold_the_published_settings(name: str, published: dict[str, Any]) -> None:
    config = RunConfig.from_preset(name)
    assert name.startswith(config.method_name)
    values = config.options()
    assert {key: values[key] for key in published} == published


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_catalogue_knows_which_images_are_normalized(name: str) -> None:
    build = published._BUILDERS[name]
    option = inspect.signature(build).parameters.get("normalize")
    always = name in ("permuted-mnist-28", "rotated-mnist")
    assert SCENARIOS[name].normalized is (always if option is None else option.default)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"scenario": "split-mnist"}, "use normalize=False", id="mnist"),
        pytest.param({"conditions": 2}, "conditions=2 is less than tasks=3", id="conditions"),
        pytest.param({"capacity": 2}, "capacity=2 is less than tasks=3", id="capacity"),
        pytest.param({"moments": "bfloat16"}, "moments='bfloat16' needs", id="moments"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    method: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        short(method, **options)


@pytest.mark.parametrize("method", METHODS)
def test_normalized_images_are_refused_when_a_task_begins(method: str) -> None:
    scenario, trainer = run.build(short(method))
    task = scenario.tasks[0]
    trainer.add(task)
    for split in ("train_preprocess", "eval_preprocess"):
        made = type(task.train_preprocess)(mean=[0.1], std=[0.3])
        object.__setattr__(task, split, made)
    fresh = Trainer(run.build(short(method))[1].learner, progress=False, steps=2)
    with pytest.raises(ConfigError, match="are normalized by Preprocess"):
        fresh.fit(task)
    assert fresh.learner.current is None


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_continues_with_the_same_bits(method: str, tmp_path: Path) -> None:
    """Stopped in the third task, where decoders of two earlier ones are kept."""
    config = short(method)
    run.train(config, tmp_path / "whole", show_progress=False)
    stopped(config, tmp_path / "stopped", after=10)
    run.resume(tmp_path / "stopped", show_progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tasks", [1, 3])
def test_the_plan_knows_checkpoint_and_learner(method: str, tasks: int) -> None:
    config = short(method, tasks=tasks)
    found = plan(config).found
    scenario, trainer = run.build(config)
    for task in scenario.tasks[:-1]:
        trainer.fit(task)
    tensors: dict[str, torch.Tensor] = {}
    trainer.hooks.append(lambda t: tensors.update(t.state()[0]))
    trainer.fit(scenario.tasks[-1])
    del tensors["rng/cpu"]
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    # The plan counts ids and counters that are saved as JSON.
    assert 0 <= found.checkpoint - sum(sizes.values()) <= 100
    assert found.learner == sum(v for k, v in sizes.items() if k.startswith("learner/"))
    kept = 4 * (tasks - 1) * found.facts["decoder_weights"]
    parts = found.peaks["training step"]
    assert parts.get("replay: decoders of earlier tasks", 0) == pytest.approx(kept, abs=100)


@pytest.mark.parametrize("method", METHODS)
def test_replay_tells_the_classes_of_all_tasks_apart(method: str) -> None:
    """Digits without task ids, with replayed images and without their share in the loss."""
    found = {}
    for weight in (0.5, 0.0):
        config = RunConfig.from_preset(
            f"{method}-split-digits", tasks=2, steps=60, replay_weight=weight, lr=5e-3
        )
        scenario, trainer = run.build(config)
        for task in scenario:
            trainer.fit(task)
        report = evaluate(trainer.learner, trainer.tasks, make_score(SCORES[method]))
        found[weight] = report.to_json()["mean"]["before"]["class_accuracy"]
    # A model of the last task alone is right in half.
    assert found[0.5] > 80
    assert found[0.0] < 60


@pytest.mark.parametrize("method", METHODS)
def test_the_command_line_infers_tasks(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.train(short(method), tmp_path / "run", show_progress=False)
    arguments = ["eval", str(tmp_path / "run"), "--infer", SCORES[method], "--calibrate", "--json"]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["mean"]) == {"before", "after"}
    other = cli.main(["eval", str(tmp_path / "run"), "--infer", "tir"])
    assert other == (0 if method == "hnet-tir" else 2)
    if method == "hnet-r":
        assert "HNETR has none; train with method='hnet-tir'" in capsys.readouterr().err
