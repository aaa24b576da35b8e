"""The memory of a run, told before it starts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import hypermask_fast
from hypermask_fast import cli
from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.base import Learner
from hypermask_fast.planning.plan import Plan, plan
from hypermask_fast.planning.simulation import MOMENTS, TARGET
from hypermask_fast.runs import run
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.trainer import Trainer
from tests.support.plan_cases import measured_peak, small

MIB = 2**20
HEAD, KEPT_OUTPUTS = "hypernetwork: head", "outputs kept of earlier tasks"
PREVIOUS = "weights of the last task"
ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_planned_peak_is_within_a_tenth_of_the_measured_one(tmp_path: Path) -> None:
    settings = {
        "tasks": 2,
        "steps": 2,
        "mlp_hidden": (650, 700),
        "hidden": (100,),
        "batch_size": 128,
        "device": "cpu",
    }
    found = plan(RunConfig.from_options(**settings))
    assert found.found.facts["head_parameters"] > 50e6
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("/proc/self/clear_refs cannot be written: peak memory is measured on Linux")
    if not found.available or found.available < 3 * found.peak:
        pytest.skip(f"{found.available} bytes of memory are available, and it takes {found.peak}")
    measured = measured_peak(settings, tmp_path)
    assert found.peak == pytest.approx(measured, rel=0.1)


def test_parts_are_those_of_the_formulas() -> None:
    # N = 9 * 65 + 9 * 2 mask entries, H = 5, two earlier tasks.
    parts = plan(small(hidden=(6, 5))).found.peaks["training step"]
    n = 64 * 8 + 8 + 8 * 2 + 2
    assert parts[TARGET] == 4 * n
    assert parts[HEAD] == 4 * n * 6
    trunk = 48 * 6 + 6 + 6 * 5 + 5 + 128 * 48
    assert parts[MOMENTS] == 2 * 4 * (n + n * 6 + trunk)
    assert parts[PREVIOUS] == 4 * n
    # Beside them ids and counters.
    assert 0 <= parts[KEPT_OUTPUTS] - 2 * 4 * n <= 100


def test_frozen_tasks_keep_their_weights_and_nothing_else() -> None:
    peaks = plan(small(hidden=(6, 5), earlier="frozen")).found.peaks
    n = 64 * 8 + 8 + 8 * 2 + 2
    for moment, tasks in (("training step", 2), ("evaluation", 3)):
        assert peaks[moment]["weights of frozen tasks"] == tasks * 4 * n
        assert peaks[moment].get(PREVIOUS, 0) == 0
        assert 0 <= peaks[moment][KEPT_OUTPUTS] <= 100


@pytest.mark.long
@pytest.mark.parametrize("method", ["supsup", pytest.param("exssnet", marks=pytest.mark.slow)])
def test_the_plan_of_subnetworks_is_near_the_measured_peak(method: str, tmp_path: Path) -> None:
    settings = {
        "method": method,
        "tasks": 2,
        "steps": 2,
        "mlp_hidden": (3000, 3000),
        "batch_size": 32,
        "device": "cpu",
    }
    found = plan(RunConfig.from_options(**settings))
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("/proc/self/clear_refs cannot be written: peak memory is measured on Linux")
    if not found.available or found.available < 3 * found.peak:
        pytest.skip(f"{found.available} bytes of memory are available, and it takes {found.peak}")
    assert found.peak == pytest.approx(measured_peak(settings, tmp_path), rel=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="full"),
        pytest.param({"targets": "bfloat16"}, id="bfloat16-targets"),
        pytest.param({"targets": "frozen_head"}, id="frozen-head"),
        pytest.param({"moments": "bfloat16"}, id="bfloat16-moments"),
        pytest.param({"earlier": "frozen"}, id="frozen"),
        pytest.param({"earlier": "frozen", "selection": "best"}, id="frozen-best"),
        pytest.param({"head": "chunked", "chunk_size": 50}, id="chunked"),
        pytest.param({"selection": "best", "check_every": 1}, id="best"),
        pytest.param({"lam": 0.0, "train_target": False}, id="fixed-target"),
        pytest.param({"network": "resnet", "resnet_n": 1, "resnet_k": 1}, id="norms"),
    ],
)
def test_checkpoint_and_learner_are_those_of_a_trainer(settings: dict[str, object]) -> None:
    config = small(**settings)
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


def test_too_many_tasks_are_refused_as_by_the_scenario() -> None:
    with pytest.raises(ConfigError, match="tasks is 6; it must be 1 to 5"):
        plan(RunConfig.from_options(steps=1, tasks=6))


@pytest.mark.parametrize("gib", ["1.7e308", "1e400", "nan", "0"])
def test_memory_out_of_range_is_a_sentence(gib: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--memory-gib", gib]) == 2
    assert "memory-gib=" in capsys.readouterr().err


def test_a_plan_makes_nothing_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    # 27 GB of target weights: the head alone takes more than any machine has.
    found = plan(RunConfig.from_options(steps=1, mlp_hidden=(80000, 80000), device="cpu"))
    assert found.peak > 3 * 4 * 6.4e9 * 100
    assert not found.fits()
    assert torch.equal(before, torch.get_rng_state())


def test_what_would_fit_does_fit() -> None:
    config = small(mlp_hidden=(200,), hidden=(100,))
    whole = plan(config)
    tight = plan(config, memory=whole.needed() - 2 * MIB)
    assert whole.fits()
    assert not tight.fits()
    found = dict(tight.alternatives())
    (narrowed,) = [text for text in found if text.startswith("hidden=")]
    width = found[narrowed].found.facts["head_width"]
    assert found[narrowed].fits()
    assert not plan(config.replace(hidden=(width + 1,)), memory=tight.available).fits()
    assert {"moments='bfloat16'", "head='chunked'"} <= set(found)
    with pytest.raises(ConfigError, match=r"what would fit: .*head='chunked'.*hidden=\(") as caught:
        tight.require()
    assert f"{tight.needed() / MIB:,.1f} MiB" in str(caught.value)


def test_selection_and_moments_count() -> None:
    config = small(mlp_hidden=(200,), hidden=(100,), validation=40)
    last, best = plan(config), plan(config.replace(selection="best"))
    head = last.parts[HEAD]
    # The best model, whose memory the next best one takes.
    assert best.peak - last.peak == pytest.approx(head, rel=0.1)
    halved = plan(config.replace(moments="bfloat16"))
    assert last.peak - halved.peak == pytest.approx(head, rel=0.1)


def test_plan_of_another_machine() -> None:
    config = small(device="cuda")
    assert plan(config, memory=80 * 2**30).fits()
    assert not plan(config, memory=MIB).fits()
    assert "memory of the host" in plan(config).table()


def planned(found: Plan) -> str:
    return f"{found.peak / MIB:,.1f} MiB"


ARGUMENTS = ["--tasks", "2", "--steps", "2", "--mlp-hidden", "8", "--device", "cpu"]


def test_plan_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig.from_preset("split-digits", tasks=2, steps=2, mlp_hidden=(8,), device="cpu")
    assert cli.main(["plan", *ARGUMENTS]) == 0
    printed = capsys.readouterr().out
    assert planned(plan(config)) in printed
    assert "checkpoints on disk" in printed
    assert cli.main(["plan", *ARGUMENTS, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["peak"] == sum(values["parts"].values()) == hypermask_fast.plan(config).peak
    assert values["fits"] is True


def test_what_does_not_fit_is_refused_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["plan", *ARGUMENTS, "--memory-gib", "0.01"]) == 2
    printed = capsys.readouterr()
    assert "peak" in printed.out
    assert "10.2 MiB are available" in printed.err
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run, "build", lambda config: pytest.fail("something was built"))
        arguments = ["train", *ARGUMENTS, "--out", str(out), "--memory-gib", "0.01"]
        assert cli.main(arguments) == 2
    assert not out.exists()
    assert cli.main(["train", *ARGUMENTS, "--out", str(out)]) == 0
    assert cli.main(["resume", str(out), "--memory-gib", "0.01"]) == 2
    assert "checkpoint that is loaded" in capsys.readouterr().err
    assert cli.main(["plan", "--memory-gib", "-1"]) == 2
    assert "memory-gib=-1.0" in capsys.readouterr().err


def test_trainer_uses_bfloat16_moments(tmp_path: Path) -> None:
    scenario, trainer = run.build(small(moments="bfloat16"))
    dtypes = set()
    trainer.hooks.append(
        lambda t: dtypes.update(
            (k.rpartition("/")[2], v.dtype) for k, v in t.state()[0].items() if "optimizer/" in k
        )
    )
    trainer.fit(scenario[0])
    assert ("exp_avg", torch.bfloat16) in dtypes
    with pytest.raises(ConfigError, match="moments='bfloat16' needs head='full'"):
        small(moments="bfloat16", head="chunked")
    with pytest.raises(ConfigError, match=r"moments='bfloat' .*did you mean 'bfloat16'"):
        Trainer(Learner(torch.nn.Linear(1, 1), 1), moments="bfloat")
