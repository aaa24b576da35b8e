"""Runs that are stopped, killed or damaged, and their continuation."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hypermask_fast.errors import ConfigError, TrainingError
from hypermask_fast.files import checkpoint
from hypermask_fast.records.metrics_log import read
from hypermask_fast.runs import run
from hypermask_fast.settings.config import RunConfig
from tests.support.run_cases import assert_same_run

SETTINGS = {
    "tasks": 3,
    "steps": 60,
    "mlp_hidden": (10,),
    "embedding_dim": 4,
    "hidden": (6,),
    "log_every": 7,
    "checkpoint_every": 0.0,
    "device": "cpu",
}


def config(**changes: object) -> RunConfig:
    return RunConfig.from_preset("split-digits", **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    run.train(config(), path, show_progress=False)
    return path


def start(path: Path, command: str) -> subprocess.Popen[bytes]:
    arguments = ["train", "--preset", "split-digits", "--out", str(path)]
    for name, value in SETTINGS.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        arguments += [f"--{name.replace('_', '-')}", text]
    if command == "resume":
        arguments = ["resume", str(path)]
    # As many threads as this process: another split of a sum may round differently.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, "-m", "hypermask_fast", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Under nohup it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def wait_for_steps(process: subprocess.Popen[bytes], path: Path, steps: int) -> None:
    """Return once ``steps`` steps are in a checkpoint, or the run has ended."""
    deadline = time.monotonic() + 60
    while process.poll() is None:
        newest = checkpoint.latest(path / "checkpoints")
        if newest is not None and int(newest.name.rpartition("-")[2]) >= steps:
            return
        assert time.monotonic() < deadline, "the run made no progress within 60 s"
        time.sleep(0.002)


@pytest.mark.long
def test_killed_at_three_random_moments_and_resumed_ends_bit_identical(
    whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "killed"
    moments = sorted(random.Random(0).sample(range(5, 175), 3))
    for index, moment in enumerate(moments):
        process = start(path, "train" if index == 0 else "resume")
        wait_for_steps(process, path, moment)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert start(path, "resume").wait() == 0
    assert_same_run(whole, path)


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_exits_cleanly(whole: Path, tmp_path: Path, signum: int) -> None:
    path = tmp_path / "stopped"
    process = start(path, "train")
    wait_for_steps(process, path, 70)
    process.send_signal(signum)
    _, errors = process.communicate()
    assert process.returncode == 128 + signum, errors.decode()
    assert f"hypermask resume {path}".encode() in errors
    assert b"Traceback" not in errors
    run.resume(path, show_progress=False)
    assert_same_run(whole, path)


def test_resume_of_a_finished_run_changes_nothing(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    result = run.resume(whole, show_progress=False)
    assert not np.isnan(result.accuracy[-1]).any()
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_everything_else_is_saved_too(tmp_path: Path) -> None:
    """With the best model so far, the schedule's counters and a chunked head on the way."""
    settings = {
        "selection": "best_published",
        "check_every": 3,
        "schedule": "plateau",
        "head": "chunked",
        "chunk_size": 50,
        "chunk_embedding_dim": 3,
        "steps": 20,
        "batch_size": 50,
        "checkpoint_every": 0.0,
    }
    run.train(config(**settings), tmp_path / "a", show_progress=False)
    original = checkpoint.save

    def save(folder: Path, step: int, *args: object, **options: object) -> Path:
        path = original(folder, step, *args, **options)  # type: ignore[arg-type]
        if step == 27:
            raise KeyboardInterrupt
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run.train(config(**settings), tmp_path / "b", show_progress=False)
    torch.manual_seed(5)
    run.resume(tmp_path / "b", show_progress=False)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(TrainingError, match="not finite"):
        run.train(config(lr=1e30), path, show_progress=False)
    saved = checkpoint.load_latest(path / "checkpoints")
    assert all(v.isfinite().all() for v in saved.tensors.values() if v.is_floating_point())


def test_a_run_that_failed_before_its_first_checkpoint_blocks_none(
    whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with pytest.raises(TrainingError, match="not finite"):
        run.train(config(lr=1e30, checkpoint_every=1e9, log_every=1), path, show_progress=False)
    assert read(path / "metrics.jsonl")  # tells how it went
    run.train(config(), path, show_progress=False)
    assert_same_run(whole, path)


def test_a_used_folder_is_refused(whole: Path) -> None:
    with pytest.raises(ConfigError, match="hypermask resume"):
        run.train(config(), whole, show_progress=False)


def test_load_returns_the_trained_learner(whole: Path) -> None:
    trainer = run.load(whole)
    last = np.load(whole / "accuracy.npz")["accuracy"][-1]
    assert [trainer.evaluate(j) for j in range(3)] == pytest.approx(list(last))


def test_load_leaves_the_random_state(whole: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    run.load(whole)
    assert torch.equal(torch.rand(3), expected)


def test_the_log_has_every_loss_and_accuracy(whole: Path) -> None:
    records = read(whole / "metrics.jsonl")
    steps = [r["step"] for r in records if "step" in r and r["task"] == 1]
    assert steps == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert [r["after_task"] for r in records if "after_task" in r] == [0, 1, 2]
    first = next(r for r in records if r.get("task") == 0)
    assert first["output_reg"] == 0.0
    assert first["loss"] == first["task_loss"]
