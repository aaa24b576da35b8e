"""Runs that a script makes with hypermask_fast.Run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hypermask_fast as hmf
from hypermask_fast.cli import main as command
from hypermask_fast.errors import CheckpointError, ConfigError, Stopped
from hypermask_fast.files import checkpoint
from hypermask_fast.finished.plotting import plot
from hypermask_fast.records import confusion
from hypermask_fast.records.accuracy_files import read_accuracy
from hypermask_fast.records.metrics_log import read
from hypermask_fast.runs import run
from tests.support import script_cases
from tests.support.run_cases import assert_same_run, contents, short
from tests.support.script_cases import STEPS, Points, at, main, tasks, trainer

ROOT = Path(__file__).parents[2]
DONE = 3 * STEPS
NO_CONFIG = ("config.toml",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    path = tmp_path_factory.mktemp("scripts") / "whole"
    main(path)
    return path


def stop() -> None:
    raise SystemExit


def test_it_has_the_files_of_a_run(whole: Path) -> None:
    names = {file.name for file in whole.iterdir()}
    expected = {"script.json", "metrics.jsonl", "timing.json", "checkpoints", "manifest.json"}
    expected |= {"summary.json", "report.html", "classes.csv", "confusion.csv", "confusion.npz"}
    expected |= {"learned", *(f"accuracy.{end}" for end in ("csv", "npz", "svg"))}
    assert names - {".lock"} == expected
    settings = json.loads((whole / "script.json").read_bytes())
    assert settings["learner"]["class"] == "HyperMask"
    assert settings["learner"]["sparsity"] == 20.0
    assert settings["trainer"]["lr"] == 0.01
    rows = read(whole / "metrics.jsonl")
    assert [row["step"] for row in rows if "step" in row] == [2, 4, 6, 7] * 3
    assert [row["after_task"] for row in rows if "after_task" in row] == [0, 1, 2]
    with np.load(whole / "accuracy.npz") as found:
        assert found["task_names"].tolist() == ["points 0", "points 1", "points 2"]


def test_it_trains_what_a_trainer_alone_does(whole: Path) -> None:
    made = trainer()
    for task in tasks():
        made.fit(task)
    found = checkpoint.load_latest(whole / "checkpoints").tensors
    for name, value in made.state()[0].items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("step", [1, 3, STEPS, STEPS + 1, 2 * STEPS - 1, 2 * STEPS, DONE])
def test_a_second_start_goes_on_bit_identically(whole: Path, tmp_path: Path, step: int) -> None:
    path = tmp_path / "run"
    with pytest.raises(SystemExit):
        main(path, at(step, stop))
    steps: list[int] = []
    again = main(path, lambda made: steps.append(made.tasks_done * STEPS + made.step))
    assert steps == list(range(step, DONE + 1))
    assert again.changes == []
    assert_same_run(whole, path, but=NO_CONFIG)


@pytest.mark.long
def test_killed_twice_at_random_it_ends_bit_identically(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    first, second = sorted(random.sample(range(1, DONE), 2))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    for step, expected in ((first, -signal.SIGKILL), (second, -signal.SIGKILL), (0, 0)):
        words = [sys.executable, script_cases.__file__, str(path), str(step)]
        done = subprocess.run(words, env=environment, capture_output=True, timeout=300)
        assert done.returncode == expected, (step, done.stderr.decode())
    assert_same_run(whole, path, but=NO_CONFIG)


def test_a_finished_script_trains_nothing(whole: Path) -> None:
    before = contents(whole / "checkpoints")
    again = main(whole, lambda made: pytest.fail("a step was taken"))
    assert contents(whole / "checkpoints") == before
    assert again.accuracy.shape == (4, 3)


def test_skipped_tasks_give_their_rows_and_a_trained_learner(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(SystemExit):
        main(path, at(2 * STEPS + 2, stop))
    made = trainer()
    with hmf.Run(path, made) as again:
        # In a task; the learner knows the tasks before any is given.
        assert [task.name for task in made.learner.tasks] == ["points 0", "points 1", "points 2"]
        rows = [again.fit(task) for task in tasks()]
    with np.load(whole / "accuracy.npz") as found:
        matrix = found["accuracy"]
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(row[: place + 1], matrix[place + 1, : place + 1])


def test_a_signal_stops_it_with_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    send = at(STEPS + 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="start the script again"):
        main(path, send)
    newest = checkpoint.latest(path / "checkpoints")
    assert newest is not None
    assert newest.name.endswith(f"{STEPS + 3}")
    main(path)
    assert_same_run(whole, path, but=NO_CONFIG)


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(SystemExit):
        main(path, at(STEPS + 3, stop))
    before = contents(path)
    points = next(iter(tasks()))
    moved = hmf.scenarios.make_task("points 0", Points(24, 1), Points(16, 1))
    for task, says in (
        (list(tasks())[1], "was 'points 0' and 'points 1' is given, with other name"),
        (moved, "with other inputs"),
        (hmf.scenarios.make_task("points 0", Points(22, 0), Points(16, 0)), "with other train"),
        (
            hmf.scenarios.make_task("points 0", Points(24, 1), Points(16, 0)),
            "with other training inputs",
        ),
    ):
        with (
            hmf.Run(path, trainer()) as again,
            pytest.raises(CheckpointError, match=f"{says}; give the same tasks"),
        ):
            again.fit(task)
    with hmf.Run(path, trainer()) as again:
        again.fit(points)
        with pytest.raises(CheckpointError, match="task 1 of the run"):
            again.fit(moved)
    assert contents(path) == before


def test_accuracies_of_a_run_that_was_begun_before_are_those_of_the_tasks_given(
    whole: Path,
) -> None:
    with np.load(whole / "accuracy.npz") as found:
        expected = found["accuracy"]
    with hmf.Run(whole, trainer()) as again:
        assert again.accuracy.shape == trainer().accuracy.shape
        for count, task in enumerate(tasks(), 1):
            again.fit(task)
            np.testing.assert_array_equal(again.accuracy, expected[: count + 1, :count])


def test_other_settings_and_networks_are_refused(whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(CheckpointError, match=r"lr=0\.02 of the trainer is not lr=0\.01, .*put"):
        hmf.Run(whole, trainer(lr=0.02))
    net = torch.nn.Sequential(torch.nn.Linear(4, 2))
    options = {"embedding_dim": 3, "hidden": (4,), "capacity": 2, "sparsity": 20.0}
    same = {"steps": STEPS, "batch_size": 8, "lr": 0.01, "progress": False}
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        hmf.Run(whole, hmf.Trainer(hmf.HyperMask(net, **options), **same))
    supsup = hmf.Trainer(hmf.SupSup(torch.nn.Linear(4, 2)), **same)
    with pytest.raises(CheckpointError, match="class='SupSup' of the learner is not class="):
        hmf.Run(whole, supsup)
    hmf.Run(whole, trainer(graph=False)).close()
    assert contents(whole) == before


def test_a_run_leaves_confusions_and_a_report_and_is_drawn(whole: Path, tmp_path: Path) -> None:
    matrix, names = read_accuracy(whole / "accuracy.npz")
    found = confusion.read(whole / "confusion.npz")
    assert [each.name for each in found] == names
    assert [each.accuracy for each in found] == matrix[3].tolist()
    text = (whole / "report.html").read_text()
    assert "HyperMask · run of a script · seed 0 · 3 of 3 tasks learned" in text
    assert "embedding_dim" in text
    made = plot([whole], tmp_path, "svg")
    assert {"accuracy-matrix", "confusion"} <= {path.stem for path in made.files}
    (note,) = made.notes
    assert "only the script that made the run has its network" in note


def test_other_folders_are_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configured = tmp_path / "configured"
    run.train(short(tasks=1, steps=1), configured, show_progress=False)
    with pytest.raises(ConfigError, match="holds a run already; continue it with `hypermask"):
        hmf.Run(configured, trainer())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty, it holds 'notes\.txt'"):
        hmf.Run(tmp_path / "other", trainer())
    for words in (["resume", str(whole)], ["eval", str(whole)]):
        assert command(words) == 2
        assert "a script began with hypermask_fast.Run; start that" in capsys.readouterr().err
    assert command(["train", "--out", str(whole)]) == 2
    assert "continue it with the script that began it" in capsys.readouterr().err
    with (
        hmf.Run(tmp_path / "run", trainer()),
        pytest.raises(ConfigError, match="is in use by process"),
    ):
        hmf.Run(tmp_path / "run", trainer())
    # It never began, so another run may take its place, of any kind.
    run.train(short(tasks=1, steps=1), tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run" / "script.json").exists()


def test_a_learner_that_has_learned_is_refused(tmp_path: Path) -> None:
    made = trainer()
    made.fit(next(iter(tasks())))
    with pytest.raises(ConfigError, match=r"has learned of \['points 0'\] already"):
        hmf.Run(tmp_path / "run", made)
    assert not (tmp_path / "run").exists()


def test_a_closed_run_trains_nothing(tmp_path: Path) -> None:
    closed = hmf.Run(tmp_path / "run", trainer())
    closed.close()
    with pytest.raises(ValueError, match="was closed; make a new Run"):
        closed.fit(next(iter(tasks())))


def test_data_with_a_name_and_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    made = trainer()
    made.progress = True
    with hmf.Run(tmp_path / "run", made) as mine:
        mine.fit((x, y), name="flowers", test=(x, y))
        with pytest.raises(TypeError, match="without name"):
            mine.fit((x, y), test=(x, y))
        with pytest.raises(TypeError, match=r"nme= is none of what a task takes \(did you mean"):
            mine.fit((x, y), name="flowers", nme="flowers", test=(x, y))
        mine.fit((x, 1 - y), name="birds", test=(x, 1 - y))
    assert mine.trainer.tasks_done == 2
    assert "learned flowers" in capsys.readouterr().err
