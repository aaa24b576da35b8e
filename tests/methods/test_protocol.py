"""A method of another shape trains, is stopped, resumed, planned, exported and chosen by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast import cli, export_subnet
from hypermask_fast.files import checkpoint
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.planning.plan import plan
from hypermask_fast.planning.simulation import MOMENTS, TARGET
from hypermask_fast.records.metrics_log import read
from hypermask_fast.runs import run
from hypermask_fast.scenarios import Scenario, Task
from hypermask_fast.settings import build
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.trainer import Trainer
from tests.support import alternating
from tests.support.alternating import AlternatingLearner

STEPS = 10

alternating.register()


def config(**options: Any) -> RunConfig:
    small = {"tasks": 3, "steps": STEPS, "mlp_hidden": (12,), "batch_size": 16, "device": "cpu"}
    return RunConfig.from_options(method=alternating.NAME, **{**small, "log_every": 1, **options})


def made(**options: Any) -> tuple[Scenario, Trainer]:
    chosen = config(**options)
    torch.manual_seed(chosen.run.seed)
    scenario = build.make_scenario(chosen)
    learner = build.make_learner(chosen, scenario.input_shape, scenario.num_classes)
    trainer = build.make_trainer(chosen, learner)
    for task in scenario:
        trainer.add(task)
    return scenario, trainer


def test_phases_have_optimizers_of_their_own_and_terms_their_names() -> None:
    scenario, trainer = made(schedule="cosine")
    seen: list[tuple[str, list[str], list[float]]] = []
    terms: list[Losses] = []

    def note(t: Trainer) -> None:
        assert t._step_fn is not None
        assert t.losses is not None
        optimizers = t._step_fn.optimizers
        rates = [o.param_groups[0]["lr"] for o in optimizers.values()]
        seen.append((t.learner.phase, list(optimizers), rates))
        terms.append(t.losses)

    trainer.hooks.append(note)
    for task in scenario:
        trainer.fit(task)
    learner = trainer.learner
    assert isinstance(learner, AlternatingLearner)
    assert [(phase, names) for phase, names, _ in seen[:STEPS]] == [
        *[("apart", ["classifier", "body"])] * 5,
        *[("together", ["main"])] * 5,
    ]
    # Each phase begins with the rates of its groups.
    assert seen[0][2] == [1e-3, 1e-2]
    assert seen[5][2] == [1e-3]
    assert seen[4][2][0] < 5e-4
    assert all(isinstance(data, Task) for data in learner.seen)
    assert terms[0].drift == 0
    assert terms[2 * STEPS - 1].drift > 0
    last = terms[-1]
    assert list(last.scalars()) == ["total", "task", "drift"]
    assert float(last.total) == pytest.approx(float(last.task + 0.1 * last.drift), rel=1e-6)
    with pytest.raises(AttributeError, match=r"have no 'weight_reg'.*the terms drift"):
        _ = last.weight_reg


@pytest.mark.parametrize("stop", [3, 5, 6, STEPS], ids=lambda s: f"after-{s}")
@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd", "momentum": 0.9}], ids=str)
def test_a_stopped_task_continues_bit_identically(
    stop: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """In the first phase, between the phases, in the second phase, and after its last step."""
    found: list[dict[str, Tensor]] = []
    for stops in (False, True):
        scenario, trainer = made(warmup_steps=3, **options)
        trainer.fit(scenario[0])
        if stops:

            def interrupt(t: Trainer) -> None:
                if t.step == stop:
                    checkpoint.save(tmp_path / str(options), stop, *t.state())
                    raise KeyboardInterrupt

            trainer.hooks.append(interrupt)
            with pytest.raises(KeyboardInterrupt):
                trainer.fit(scenario[1])
            saved = checkpoint.load_latest(tmp_path / str(options))
            scenario, trainer = made(warmup_steps=3, **options)
            trainer.load_state(saved.tensors, json.loads(json.dumps(saved.state)))
        trainer.fit(scenario[1])
        found.append(trainer.state()[0])
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_a_run_in_a_folder(tmp_path: Path) -> None:
    chosen = config(steps=60, lr=5e-3)
    result = run.train(chosen, tmp_path / "run", show_progress=False)
    assert result.accuracy[3, 2] > 80
    assert RunConfig.from_toml(tmp_path / "run" / "config.toml") == chosen
    rows = [row for row in read(tmp_path / "run" / "metrics.jsonl") if "step" in row]
    losses = ["loss", "task_loss", "drift"]
    names = ["task", "task_name", "step", *losses, "lr", "time", "steps_per_second"]
    assert list(rows[-1]) == names
    assert rows[-1]["drift"] > 0
    again = run.resume(tmp_path / "run", show_progress=False)
    assert str(again.accuracy) == str(result.accuracy)
    learner = run.load(tmp_path / "run").learner
    assert isinstance(learner, AlternatingLearner)
    assert tuple(learner.learned) == (0, 1, 2)


def test_a_plan_has_the_methods_own_parts() -> None:
    found = plan(config(moments="float32"))
    parameters = 64 * 12 + 12 + 12 * 2 + 2
    assert found.found.facts == {"parameters": parameters}
    assert f"parameters: {parameters:,}" in found.table()
    parts = found.found.peaks["training step"]
    assert parts[TARGET] == 4 * parameters
    assert parts[MOMENTS] == 2 * 4 * parameters
    assert parts["weights to stay near"] == 4 * parameters
    assert "hypernetwork: head" not in parts
    other = plan(config(eval_batch_size=1))
    assert dict(other.alternatives())["decay=0.0"].peak < other.peak
    tight = plan(config(), memory=1000)
    assert not tight.fits()
    assert plan(config(optimizer="sgd")).found.peaks["training step"].get(MOMENTS, 0) == 0


def test_outputs_features_and_export() -> None:
    scenario, trainer = made()
    trainer.fit(scenario[0])
    learner, x = trainer.learner.eval(), torch.randn(5, 1, 8, 8)
    plain = export_subnet(learner, 0)
    assert type(plain) is type(learner.net)
    assert plain is not learner.net
    assert torch.equal(plain(x), learner(x, 0))
    assert torch.equal(learner.all_outputs(x)[0], learner(x, 0))
    assert torch.equal(learner.features(x, 0), learner.net.features(x))
    doubled = {name: 2 * value for name, value in learner.task_weights(0).items()}
    with learner.activated(0, doubled) as net:
        assert not torch.equal(net(x), plain(x))
    assert torch.equal(learner(x, 0), plain(x))


def test_the_command_line_shows_the_methods_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--method", alternating.NAME, "--help"])
    assert not ended.value.code
    text = capsys.readouterr().out
    assert "--body-lr" in text
    assert "--sparsity" not in text
    assert cli.main(["plan", "--method", alternating.NAME, "--body-lr", "-1"]) == 2
    assert "body_lr=-1.0 is out of range" in capsys.readouterr().err


def test_phases_must_make_up_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, trainer = made()
    phases = AlternatingLearner.phases
    monkeypatch.setattr(AlternatingLearner, "phases", lambda *a: phases(*a)[:1])
    with pytest.raises(Exception, match="do not make up the task's 10 steps"):
        trainer.fit(scenario[0])
