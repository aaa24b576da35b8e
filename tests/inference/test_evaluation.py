"""What is reported of inferred tasks, from Python and by ``hypermask eval --infer``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hypermask_fast import cli
from hypermask_fast.inference.base import UNKNOWN
from hypermask_fast.inference.calibration import calibrate
from hypermask_fast.inference.evaluation import evaluate
from hypermask_fast.inference.outputs import Energy
from hypermask_fast.inference.registry import make_score, scores
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.runs import run
from hypermask_fast.scenarios.task import Task
from hypermask_fast.training.trainer import Trainer
from tests.support.run_cases import SHORT, short, stopped


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of three tasks."""
    path = tmp_path_factory.mktemp("inferred") / "run"
    options = {**SHORT, "tasks": 3, "steps": 60, "mlp_hidden": (12,), "lr": 0.01, "capacity": 3}
    run.train(short(**options), path, show_progress=False)
    return path


@pytest.fixture(scope="module")
def trainer(folder: Path) -> Trainer:
    return run.load(folder)


@pytest.mark.parametrize("name", scores())
@pytest.mark.parametrize("rate", [None, 0.1])
def test_a_report_counts_what_predict_says(trainer: Trainer, name: str, rate: float | None) -> None:
    learner, data = trainer.learner, trainer.tasks
    size = 30  # the same everywhere, for another one rounds otherwise
    report = evaluate(
        learner, data, make_score(name), calibrated=True, unknown_rate=rate, batch_size=size
    )
    score = make_score(name)
    with evaluating(learner):
        train = {t: data[t].evaluation_batches("train", size) for t in data}
        score = score.fitted(learner, train)
    held_out = {t: data[t].evaluation_batches("validation", size) for t in data}
    calibration = calibrate(learner, score, held_out, unknown_rate=rate)
    assert report.calibration is not None
    assert calibration.kind == report.calibration.kind
    for column, used in ((report.before, None), (report.after, calibration)):
        for task, shares in enumerate(column):
            ((x, y),) = data[task].evaluation_batches("test")
            found = learner.predict(x, score, calibration=used, batch_size=size)
            rows = list(zip(found.tasks.tolist(), found.classes.tolist(), y.tolist(), strict=True))
            classes = data[task].classes
            right = sum(t == task for t, _, _ in rows), sum(c == classes[y] for _, c, y in rows)
            unknown = sum(t == UNKNOWN for t, _, _ in rows)
            percent = [100 * count / len(rows) for count in (*right, unknown)]
            assert list(shares) == pytest.approx(percent, abs=1e-9)


def test_a_calibration_never_sees_test_data(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = Task.evaluation_batches

    def spied(self: Task, split_name: str, batch_size: int = 1000) -> Any:
        asked.append(split_name)
        return original(self, split_name, batch_size)

    monkeypatch.setattr(Task, "evaluation_batches", spied)
    evaluate(trainer.learner, trainer.tasks, Energy(), calibrated=True, unknown_rate=0.1)
    assert asked == ["validation"] * 3 + ["test"] * 3


def test_eval_prints_a_table_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(folder), "--infer", "margin", "--calibrate", "--unknown-rate", "0.1"]
    assert cli.main(words) == 0
    table = capsys.readouterr().out
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["tasks"]] == ["digits 0/1", "digits 2/3", "digits 4/5"]
    for row in [*found["tasks"], found["mean"]]:
        for when in ("before", "after"):
            for share in ("task_accuracy", "class_accuracy"):
                assert f"{row[when][share]:8.2f}" in table
    assert f"after calibration: {found['calibration']['kind']}" in table
    mean = sum(row["after"]["task_accuracy"] for row in found["tasks"]) / 3
    assert found["mean"]["after"]["task_accuracy"] == pytest.approx(mean)


def test_without_calibration_there_is_one_column(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", str(folder), "--infer", "entropy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["calibration"] is None
    assert all("after" not in row for row in [*found["tasks"], found["mean"]])


def test_eval_with_ids_prints_json_too(
    folder: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    accuracies = [trainer.evaluate(task) for task in range(3)]
    assert [row["accuracy"] for row in found["tasks"]] == pytest.approx(accuracies)
    assert found["mean"] == pytest.approx(sum(accuracies) / 3)


def test_only_learned_tasks_of_a_stopped_run_compete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(short(), tmp_path / "run")
    assert cli.main(["eval", str(tmp_path / "run"), "--infer", "energy", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["tasks"]
    assert row["before"]["task_accuracy"] == 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["--infer", "entropi"], "did you mean 'entropy'", id="score"),
        pytest.param(["--calibrate"], "--calibrate is for tasks that are inferred", id="alone"),
        pytest.param(["--unknown-rate", "0"], "--unknown-rate is for", id="rate-alone"),
        pytest.param(["--infer", "margin", "--unknown-rate", "2"], "unknown_rate=2.0", id="rate"),
        pytest.param(["--infer", "margin", "--batch-size", "0"], "batch_size=0", id="batch"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert cli.main(["eval", str(folder), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hypermask: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_run_without_validation_data_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.train(short(validation=0), tmp_path / "run", show_progress=False)
    assert cli.main(["eval", str(tmp_path / "run"), "--infer", "energy", "--calibrate"]) == 2
    assert "no validation rows" in capsys.readouterr().err


def test_the_global_random_state_stays(trainer: Trainer) -> None:
    before = torch.get_rng_state()
    evaluate(trainer.learner, trainer.tasks, make_score("fecam"), calibrated=True)
    assert torch.equal(torch.get_rng_state(), before)
