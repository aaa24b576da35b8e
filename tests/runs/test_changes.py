"""Settings and environments that change while a run is stopped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from hypermask_fast import cli
from hypermask_fast.errors import HypermaskError
from hypermask_fast.files import checkpoint
from hypermask_fast.records.environment import environment
from hypermask_fast.runs import run
from hypermask_fast.settings.changes import FREE, carry_into
from tests.support.run_cases import STOP, assert_same_run, contents, short, stopped


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped within its second task."""
    path = tmp_path_factory.mktemp("runs") / "half"
    stopped(short(), path)
    return path


def changed(half: Path, path: Path, **changes: object) -> Path:
    shutil.copytree(half, path)
    (path / "config.toml").write_text(short().replace(**changes).to_toml())
    return path


def resume(path: Path, **options: Any) -> run.RunResult:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return run.resume(path, show_progress=False, **options)


CHANGES: list[dict[str, object]] = [
    {"lr": 0.01},
    {"beta": 0.5},
    {"lam": 0.0},
    {"sparsity": 50.0},
    {"seed": 3},
    {"batch_size": 16},
    {"moments": "bfloat16"},
    {"optimizer": "sgd"},
    {"selection": "best"},
    {"schedule": "plateau"},
    {"schedule": "cosine"},
    {"weight_decay": 0.1},
    {"warmup_steps": 3},
    {"train_target": False},
    {"steps": 2},
    {"steps": 60},
    {"epochs": 1},
    {"tasks": 1},
    {"capacity": 3},
    {"validation": 10},
    {"scenario": "permuted-digits"},
    {"mlp_hidden": (7,)},
    {"network": "lenet-300-100"},
    {"targets": "bfloat16"},
    {"activation": "relu"},
    {"bn": "batch"},
    {"eval_batch_size": 7},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_changed_setting_is_refused_with_both_values(
    half: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = changed(half, tmp_path / "run", **change)
    before = contents(path)
    for action in (resume, run.load):
        with pytest.raises(HypermaskError, match="put that back, or accept the change") as caught:
            action(path)
        said = str(caught.value)
        old = short().options()
        for name, value in change.items():
            assert f"{name}={value!r}" in said
            assert f"{name}={old[name]!r}" in said.partition("was made with")[2]
        assert f"hypermask resume --allow-changes {path}" in said
    assert contents(path) == before


def test_what_may_change_does_not_change_a_bit(half: Path, tmp_path: Path) -> None:
    where = ("device", "data_dir", "log_every", "checkpoint_every", "log")
    assert (*where, "graph", "compile", "shard_head") == FREE
    shutil.copytree(half, tmp_path / "same")
    resume(tmp_path / "same")
    free = {"device": "auto", "data_dir": "x", "log_every": 1, "checkpoint_every": 9.0}
    free["shard_head"] = True
    if torch.cuda.is_available():
        del free["device"]
    result = resume(changed(half, tmp_path / "free", **free))
    assert_same_run(tmp_path / "same", tmp_path / "free", but=("config.toml", "metrics.jsonl"))
    assert result.changes == []


def group(path: Path) -> dict[str, Any]:
    state = checkpoint.load_latest_state(path / "checkpoints")
    return state["trainer"]["optimizer"][0]


def test_an_allowed_change_takes_effect_and_is_recorded(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(half, tmp_path / "run", lr=0.02, weight_decay=0.5, steps=7)
    with pytest.MonkeyPatch.context() as patch:
        original = checkpoint.save

        def save(folder: Path, step: int, *args: Any, **options: Any) -> Path:
            saved = original(folder, step, *args, **options)
            if step == STOP + 1:
                raise SystemExit
            return saved

        patch.setattr(checkpoint, "save", save)
        with pytest.raises(SystemExit):
            run.resume(path, show_progress=False, allow_changes=True)
    # In the task that the checkpoint was in, which has one step more than the first one.
    assert (group(path)["lr"], group(path)["weight_decay"]) == (0.02, 0.5)
    recorded = [
        {
            "step": STOP,
            "settings": {"lr": [0.001, 0.02], "weight_decay": [0.0, 0.5], "steps": [6, 7]},
        }
    ]
    # The change is accepted once.
    result = resume(path)
    assert [change["step"] for change in result.changes] == [STOP]
    by_name = result.changes[0]["settings"]
    assert by_name == recorded[0]["settings"]
    assert json.loads((path / "manifest.json").read_text())["changes"] == result.changes
    newest = checkpoint.load_latest(path / "checkpoints")
    assert newest.step == 6 + 7
    assert newest.state["steps_taken"] == [6, 7]
    assert cli.main(["resume", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"changed after step {STOP}, settings: " in printed
    assert "lr from 0.001 to 0.02" in printed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"steps": 2}, "at step 3 of the task 'digits 2/3'.*give at least 3", id="few"),
        pytest.param({"schedule": "plateau"}, "within the task 'digits 2/3'", id="schedule"),
        pytest.param({"optimizer": "sgd"}, "optimizer='sgd' cannot replace", id="optimizer"),
        pytest.param({"moments": "bfloat16"}, "within the task", id="moments"),
        pytest.param({"train_target": False}, "within the task", id="target"),
        pytest.param({"mlp_hidden": (7,)}, r"\[7, 64\] in the model and \[6, 64\]", id="width"),
        pytest.param({"capacity": 3}, "capacity included", id="capacity"),
        pytest.param({"tasks": 1}, "made with the tasks", id="tasks"),
        pytest.param({"targets": "bfloat16"}, "targets", id="targets"),
        pytest.param({"network": "lenet-300-100"}, "takes inputs", id="network"),
    ],
)
def test_an_allowed_change_that_cannot_work_is_a_sentence(
    half: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = changed(half, tmp_path / "run", **change)
    before = contents(path)
    with pytest.raises(HypermaskError, match=said) as caught:
        resume(path, allow_changes=True)
    assert contents(path) == before
    assert "\n" not in str(caught.value)


def test_fewer_steps_for_later_tasks_keep_the_order_of_checkpoints(
    half: Path, tmp_path: Path
) -> None:
    path = changed(half, tmp_path / "run", steps=4)
    resume(path, allow_changes=True)
    assert checkpoint.load_latest(path / "checkpoints").step == 6 + 4


def test_rates_that_a_plateau_lowered_keep_their_part() -> None:
    groups = [{"lr": 0.25, "weight_decay": 0.0}, {"lr": 1.0, "weight_decay": 0.0}]
    changes = {"lr": (1.0, 2.0), "weight_decay": (0.0, 0.5)}
    carry_into(groups, changes, "plateau")
    assert groups == [{"lr": 0.5, "weight_decay": 0.5}, {"lr": 2.0, "weight_decay": 0.5}]
    # Of a group with a rate of its own.
    groups = [{"lr": 0.25}]
    carry_into(groups, changes, "constant")
    assert groups == [{"lr": 0.25}]


def environment_of(path: Path) -> dict[str, Any]:
    found = json.loads((path / "manifest.json").read_text())["environment"]
    assert isinstance(found, dict)
    return found


def test_another_environment_is_named_once_and_recorded(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    shutil.copytree(half, path)
    threads = torch.get_num_threads()
    monkeypatch.setenv("HYPERMASK_FAST_NATIVE", "0")
    torch.set_num_threads(threads + 1)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = run.resume(path, show_progress=False)
    finally:
        torch.set_num_threads(threads)
    (message,) = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    assert "not bit-identically" in message
    assert f"threads from {threads} to {threads + 1}" in message
    was_native = environment_of(half)["native"] != "off"  # else there is no compiler
    assert ("native from " in message) == was_native
    assert "torch" not in message
    (change,) = result.changes
    assert change["step"] == STOP
    assert change["environment"].keys() <= {"threads", "native"}
    assert json.loads((path / "manifest.json").read_text())["changes"] == [change]
    # A run that has ended goes on with nothing.
    resume(path)


def test_the_environment_is_in_the_manifest(half: Path) -> None:
    found = environment_of(half)
    assert found == environment(short(), torch.device("cpu"))
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()


@pytest.mark.long
def test_the_environment_tells_the_cpu_capability() -> None:
    code = (
        "import torch, json; from hypermask_fast.records.environment import environment\n"
        "from hypermask_fast.settings.config import RunConfig\n"
        "config = RunConfig.from_preset('split-digits')\n"
        "print(json.dumps(environment(config, torch.device('cpu'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
        capture_output=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["cpu_capability"] == "DEFAULT"
    assert found["MKL_CBWR"] == "COMPATIBLE"


def test_allow_changes_is_an_option_of_the_command(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(half, tmp_path / "run", beta=0.5)
    assert cli.main(["resume", str(path)]) == 2
    assert "beta=0.5" in capsys.readouterr().err
    assert cli.main(["resume", "--allow-changes", str(path)]) == 0
    assert "beta from 0.001 to 0.5" in capsys.readouterr().out
