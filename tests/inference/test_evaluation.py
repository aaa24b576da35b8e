"""What is reported of inferred tasks, from Python and by ``hypermask eval --infer``."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hypermask_fast import cli
from hypermask_fast.finished import inferred
from hypermask_fast.inference import registry
from hypermask_fast.inference.base import UNKNOWN, Score
from hypermask_fast.inference.calibration import calibrate
from hypermask_fast.inference.evaluation import evaluate
from hypermask_fast.inference.fecam import FeCAM
from hypermask_fast.inference.outputs import Energy, Margin
from hypermask_fast.inference.registry import make_score, scores
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.records import accuracy_files
from hypermask_fast.runs import run
from hypermask_fast.scenarios.task import Task
from hypermask_fast.studies import seeds
from hypermask_fast.training.trainer import Trainer
from tests.support.run_cases import SHORT, short, stopped

OF_ANY_LEARNER = [name for name in scores() if name not in ("tir", "box_entropy")]


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


def made(name: str) -> Score:
    """A score, small."""
    return make_score(name, **({"width": 50} if name == "ridge" else {}))


@pytest.mark.parametrize("name", OF_ANY_LEARNER)
@pytest.mark.parametrize("rate", [None, 0.1])
def test_a_report_counts_what_predict_says(trainer: Trainer, name: str, rate: float | None) -> None:
    learner, data = trainer.learner, trainer.tasks
    size = 30  # the same everywhere, for another one rounds otherwise
    report = evaluate(
        learner, data, made(name), calibrated=True, unknown_rate=rate, batch_size=size
    )
    score = made(name)
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


def test_help_lists_the_options_of_scores(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["eval", "--help"])
    said = capsys.readouterr().out
    for name in OF_ANY_LEARNER:
        for option in registry.options_of(name):
            assert f"{name}: {option}=" in said


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
        pytest.param(
            ["--infer", "entropy", "--score-option", "temprature=2"],
            "option of the score entropy 'temprature' is unknown (did you mean 'temperature'?)",
            id="option",
        ),
        pytest.param(
            ["--infer", "fecam", "--score-option", "shrinkage=two"],
            "shrinkage='two' cannot be read; give an integer",
            id="option-type",
        ),
        pytest.param(
            ["--infer", "binary", "--score-option", "base=1"], "base=1 is out of", id="option-range"
        ),
        pytest.param(
            ["--infer", "binary", "--score-option", "base"], "'base' has no value", id="no-value"
        ),
        pytest.param(["--score-option", "base=2"], "--score-option is for tasks", id="no-score"),
        pytest.param(
            ["--infer", "margin", "--calibrate-on", "train"], "for a calibration", id="split-alone"
        ),
        pytest.param(
            ["--infer", "margin", "--calibrate", "--calibrate-on", "test"],
            "calibrate_on='test' is unknown",
            id="test-data",
        ),
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


def test_training_data_calibrates_a_run_that_held_none_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.train(short(validation=0), tmp_path / "run", show_progress=False)
    words = ["eval", str(tmp_path / "run"), "--infer", "energy", "--calibrate"]
    assert cli.main([*words, "--calibrate-on", "train"]) == 0
    assert "(on train data)" in capsys.readouterr().out
    assert cli.main([*words, "--calibrate-on", "train", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    trainer = run.load(tmp_path / "run")
    train = {t: trainer.tasks[t].evaluation_batches("train") for t in trainer.learner.learned}
    expected = calibrate(trainer.learner, Energy(), train)
    assert found["calibrated_on"] == "train"
    assert found["calibration"]["scale"] == pytest.approx(expected.scale.tolist(), rel=1e-6)


def test_modes_of_batch_statistics_and_options_reach_the_evaluation(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, dict[str, Any]]] = []
    original = inferred.evaluate

    def spied(learner: Any, data: Any, score: Any, **options: Any) -> Any:
        calls.append((score, options))
        return original(learner, data, score, **options)

    monkeypatch.setattr(inferred, "evaluate", spied)
    words = ["eval", str(folder), "--infer", "fecam", "--batch-size", "7", "--second-pass"]
    given = ["shrinkage=3", "alpha2=0.5", "normalize-features=no", "tukey=root"]
    words += [word for option in given for word in ("--score-option", option)]
    assert cli.main([*words, "--training-mode"]) == 0
    ((score, options),) = calls
    fecam = FeCAM(shrinkage=3, alpha2=0.5, normalize_features=False, tukey="root")
    assert score == fecam
    assert (options["batch_size"], options["second_pass"], options["training_mode"]) == (7, 1, 1)


def test_all_scores_in_one_table_and_an_option_for_those_that_have_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(folder), "--infer", "all", "--score-option", "temperature=2"]
    words += ["--score-option", "width=50"]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[0] for line in lines[2:]]
    assert shown == list(scores())
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["scores"]
    for name in OF_ANY_LEARNER:
        (single,) = found[name]["runs"]
        assert found[name]["before"]["task_accuracy"]["mean"] == pytest.approx(
            single["mean"]["before"]["task_accuracy"]
        )
        score = made(name)
        if name in ("entropy", "energy"):
            score = make_score(name, temperature=2.0)
        assert single["score"] == repr(score)
    assert found["one_shot"]["runs"][0]["images_that_share_a_task"] == 2000
    assert found["entropy"]["runs"][0]["images_that_share_a_task"] == 1


def test_a_score_that_is_refused_says_so_beside_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(folder), "--infer", "one_shot,margin", "--score-option", "objective=g"]
    assert cli.main(words) == 0
    refused, margin = capsys.readouterr().out.splitlines()[2:]
    assert "refused: objective='g' needs outputs beyond the 2 classes" in refused
    assert margin.startswith("margin")
    assert cli.main([*words, "--json"]) == 0
    assert "needs outputs" in json.loads(capsys.readouterr().out)["scores"]["one_shot"]["refused"]


def test_seeds_have_means_and_deviations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = tmp_path / "runs", short()
    list(islice(seeds.train(config, folder, 3, show_progress=False), 2))
    words = ["eval", str(folder), "--infer", "margin", "--calibrate"]
    assert cli.main(words) == 0
    table = capsys.readouterr().out
    assert f"left out: {folder / f'seed-{config.run.seed + 2}'} has not begun" in table
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    alone = []
    for seed in (config.run.seed, config.run.seed + 1):
        trainer = run.load(folder / f"seed-{seed}")
        size = trainer.settings.eval_batch_size
        alone.append(
            evaluate(trainer.learner, trainer.tasks, Margin(), calibrated=True, batch_size=size)
        )
    for when in ("before", "after"):
        shares = [each.mean(after=when == "after") for each in alone]
        for share, name in (("task_accuracy", "task"), ("class_accuracy", "class_")):
            summary = found["scores"]["margin"][when][share]
            values = [getattr(each, name) for each in shares]
            assert summary["values"] == pytest.approx(values)
            assert summary["n"] == 2
            assert summary["mean"] == pytest.approx(np.mean(values))
            assert summary["std"] == pytest.approx(np.std(values, ddof=1))
            assert f"{summary['mean']:.2f} +/- {summary['std']:.2f}" in table
    assert cli.main(["eval", str(folder)]) == 0
    known = capsys.readouterr().out
    assert cli.main(["eval", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = np.stack(
        [accuracy_files.read_accuracy(f"{each}/accuracy.npz")[0][-1] for each in found["runs"]]
    )
    assert len(last) == 2
    for task, values in zip(found["tasks"], last.T, strict=True):
        assert task["accuracy"]["values"] == pytest.approx(values)
        row = next(line for line in known.splitlines() if line.startswith(task["name"]))
        expected = (values.mean(), values.std(ddof=1), *values)
        assert row.split()[-4:] == [f"{value:.2f}" for value in expected]
    assert found["mean"]["mean"] == pytest.approx(last.mean())
    assert "has not begun" in known


@pytest.mark.parametrize("name", OF_ANY_LEARNER)
def test_outputs_that_are_not_finite_are_one_line(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = run.load(folder)
    with torch.no_grad():
        for parameter in broken.learner.net.parameters():
            parameter.fill_(torch.nan)
    monkeypatch.setattr(run, "load", lambda path, **_: broken)
    words = ["--score-option", "width=50"] if name == "ridge" else []
    assert cli.main(["eval", str(folder), "--infer", name, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hypermask: ")
    assert "not finite" in error
    assert error.count("\n") == 1


def test_a_score_that_takes_more_than_the_memory_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(folder), "--infer", "ridge", "--score-option", "width=10000000"]
    assert cli.main(words) == 2
    assert "takes 2980232.8 GiB and cpu has" in capsys.readouterr().err


def test_the_global_random_state_stays(trainer: Trainer) -> None:
    before = torch.get_rng_state()
    evaluate(trainer.learner, trainer.tasks, make_score("fecam"), calibrated=True)
    assert torch.equal(torch.get_rng_state(), before)
