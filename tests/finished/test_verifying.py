"""The command verify: accuracies recomputed, and what the logits of learned tasks drifted by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hypermask_fast import cli
from hypermask_fast.errors import CheckpointError
from hypermask_fast.files import checkpoint
from hypermask_fast.finished.verifying import verify
from hypermask_fast.planning.plan import plan
from hypermask_fast.records import learned
from hypermask_fast.records.accuracy_files import read_accuracy
from hypermask_fast.runs import run
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.trainer import Trainer
from tests.support.run_cases import assert_same_run, contents, short, stopped


def config(**changes: Any) -> RunConfig:
    return short(**{"tasks": 3, "capacity": 3, "steps": 20, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verifying") / "run"
    run.train(config(), path, show_progress=False)
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def first_logits(trainer: Trainer, task: int) -> torch.Tensor:
    x, _ = next(trainer.tasks[task].evaluation_batches("test", 256))
    with torch.no_grad():
        return trainer.learner.eval()(x, task)[:, :2]


def test_accuracies_and_drifts_are_the_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(path)
    assert cli.main(["verify", str(path), "--json"]) == 0
    assert contents(path) == before
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["learning"]) == (True, None)
    matrix, names = read_accuracy(path / "accuracy.npz")
    trainer = run.load(path)
    for i, row in enumerate(found["tasks"]):
        assert row["name"] == names[i]
        assert row["when_learned"] == matrix[i + 1, i]
        assert row["now"] == row["recorded"] == matrix[-1, i]
        kept = load_file(path / "learned" / f"task-{i:04d}.safetensors")["logits"]
        assert kept.dtype == torch.float32
        drift = (kept - first_logits(trainer, i)).abs().max()
        assert row["drift"] == pytest.approx(float(drift), rel=1e-5, abs=1e-6)
    drifts = [row["drift"] for row in found["tasks"]]
    assert drifts[0] > 1e-4
    assert drifts[2] == 0
    assert cli.main(["verify", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"{drifts[0]:.3g}" in printed
    assert "no accuracy differs from what is recorded" in printed


def test_a_method_that_forgets_nothing_has_no_drift(tmp_path: Path) -> None:
    small = {"tasks": 3, "steps": 4, "mlp_hidden": (6,), "device": "cpu"}
    chosen = RunConfig.from_preset("supsup-split-digits", **small)
    run.train(chosen, tmp_path / "run", show_progress=False)
    assert [task.drift for task in verify(tmp_path / "run").tasks] == [0, 0, 0]


def test_an_accuracy_that_is_not_the_recorded_one_is_told(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoint.load_latest(path / "checkpoints")
    last = [f"learner/net.classifier.{key}" for key in ("weight", "bias")]
    tensors = {**newest.tensors, **{name: -newest.tensors[name] for name in last}}
    checkpoint.save(path / "checkpoints", newest.step, tensors, newest.state)
    now = [run.load(path).evaluate(task) for task in range(3)]
    recorded = read_accuracy(path / "accuracy.npz")[0][-1]
    differing = [i for i in range(3) if now[i] != recorded[i]]
    assert differing
    assert cli.main(["verify", str(path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [i for i, row in enumerate(found["tasks"]) if row["differs"]] == differing
    assert cli.main(["verify", str(path)]) == 1
    assert "differs from what is recorded: digits" in capsys.readouterr().out


def test_a_run_of_before_and_damaged_files(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = path / "learned" / "task-0001.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"was altered, or is not of the task 'digits 2/3'"):
        verify(path)
    shutil.copy(path / "learned" / "task-0000.safetensors", file)
    with pytest.raises(CheckpointError, match="was altered, or is not of the task"):
        verify(path)
    file.write_bytes(b"half")
    assert cli.main(["verify", str(path)]) == 2
    assert "restore or remove it" in capsys.readouterr().err
    shutil.rmtree(path / "learned")
    assert cli.main(["verify", str(path)]) == 0
    assert capsys.readouterr().out.count("not kept") == 3


def test_within_a_task_nothing_is_recorded_since(tmp_path: Path) -> None:
    stopped(config(), tmp_path / "run", after=25)
    found = verify(tmp_path / "run")
    assert found.learning == "digits 2/3"
    assert [task.recorded for task in found.tasks] == [None]
    assert found.tasks[0].drift is not None
    assert "is within the task 'digits 2/3'" in found.table()
    run.resume(tmp_path / "run", show_progress=False)
    assert not verify(tmp_path / "run").differing


@pytest.mark.parametrize("place", ["before the logits", "before the checkpoint", "after it"])
def test_logits_are_the_same_wherever_a_run_was_stopped(
    place: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before and after the checkpoint at the end of the second task."""
    path = tmp_path / "run"
    keep, save, steps = learned.keep, checkpoint.save, []

    def keep_and_stop(folder: Path, task_id: int, *rest: Any) -> None:
        if task_id == 1 and place == "before the logits":
            raise SystemExit
        keep(folder, task_id, *rest)
        if task_id == 1 and place == "before the checkpoint":
            raise SystemExit

    def save_and_stop(folder: Path, step: int, *rest: Any, **options: Any) -> None:
        save(folder, step, *rest, **options)
        steps.append(step)
        if steps.count(40) == 2:  # at the last step, and at the end of the task
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(learned, "keep", keep_and_stop)
        patch.setattr(checkpoint, "save", save_and_stop)
        with pytest.raises(SystemExit):
            run.train(config(), path, show_progress=False)
    second = path / "learned" / "task-0001.safetensors"
    assert second.exists() == (place != "before the logits")
    run.resume(path, show_progress=False)
    assert_same_run(whole, path)
    assert contents(path / "learned") == contents(whole / "learned")


def test_a_run_that_ended_before_its_first_checkpoint_makes_room(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(SystemExit):
            run.train(config(checkpoint_every=1e9), tmp_path / "run", show_progress=False)
    assert (tmp_path / "run" / "learned").is_dir()
    run.train(config(), tmp_path / "run", show_progress=False)
    assert contents(tmp_path / "run" / "learned") == contents(whole / "learned")


def test_the_plan_counts_what_is_kept(whole: Path) -> None:
    found = plan(config())
    files = list((whole / "learned").iterdir())
    size = sum(file.stat().st_size for file in files)
    assert found.logits <= size <= found.logits + 400 * len(files)
    assert found.to_json()["disk"] >= found.logits
