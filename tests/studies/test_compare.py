"""Comparisons: what they hold, and what they take over."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from hypermask_fast import cli
from hypermask_fast.errors import ConfigError
from hypermask_fast.inference.evaluation import evaluate
from hypermask_fast.inference.registry import make_score
from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.metrics import continual
from hypermask_fast.records.accuracy_files import read_accuracy
from hypermask_fast.runs import run
from hypermask_fast.studies import seeds
from hypermask_fast.studies.comparison_files import FILES, RUNS
from tests.support.comparison_cases import (
    ALL,
    METHODS,
    assert_same,
    copy,
    quiet,
    short_comparison,
    words,
)
from tests.support.run_cases import contents


def test_files_and_figures_are_those_of_the_runs(whole: Path) -> None:
    assert {*FILES, RUNS, "compare.toml", ".lock", *METHODS} == {p.name for p in whole.iterdir()}
    for name in ("compare-pareto", "compare-tasks"):
        assert ElementTree.parse(whole / f"{name}.svg").getroot().tag.endswith("svg")
        assert f"({name}.svg)" in (whole / "compare.md").read_text()
    with open(whole / RUNS, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], int(row["seed"])) for row in rows] == ALL
    for row in rows:
        folder = whole / row["method"] / f"seed-{row['seed']}"
        matrix, names = read_accuracy(folder / "accuracy.npz")
        assert float(row["acc"]) == continual.acc_final(matrix)
        assert float(row["bwt"]) == continual.bwt_gem(matrix)
        assert float(row["forgetting"]) == continual.forgetting_max(matrix)
        assert [float(row[name]) for name in names] == matrix[-1].tolist()
        assert float(row["ms_a_step"]) > 0
    trainer = run.load(whole / "hypermask/seed-5")
    report = evaluate(trainer.learner, trainer.tasks, make_score("entropy"))
    assert float(rows[1]["task_entropy"]) == np.mean([shares.task for shares in report.before])
    assert float(rows[1]["class_entropy"]) == np.mean([shares.class_ for shares in report.before])
    # 64 * 6 + 6 * 2 weights have a score each.
    assert rows[2]["parameters"] == "396"
    held = sum(each.nbytes for each in weights_of(trainer.learner).values())
    with open(whole / "compare-pareto.csv", encoding="utf-8", newline="") as file:
        points = list(csv.DictReader(file))
    assert [point["name"] for point in points] == [*METHODS]
    assert float(points[0]["MB stored after the last task"]) == held / 1e6
    with open(whole / "compare.csv", encoding="utf-8", newline="") as file:
        means = {row["method"]: row for row in csv.DictReader(file)}
    values = [float(row["acc"]) for row in rows[2:]]
    assert float(means["supsup"]["acc"]) == np.mean(values)
    # With one degree of freedom the quantile is tan(0.475 pi).
    half = np.tan(0.475 * np.pi) * abs(values[0] - values[1]) / 2
    assert float(means["supsup"]["acc_half_interval"]) == pytest.approx(half, rel=1e-9)


def test_a_calibration_may_be_on_training_data(whole: Path, tmp_path: Path) -> None:
    path = copy(whole, tmp_path)
    found = quiet(path, calibrate=True, calibrate_on="train")
    trainer = run.load(path / "supsup/seed-4")
    report = evaluate(
        trainer.learner,
        trainer.tasks,
        make_score("entropy"),
        calibrated=True,
        calibrate_on="train",
    )
    assert report.after is not None
    values = next(f.values for f in found.runs if (f.method, f.seed) == ("supsup", 4))
    assert values["class_entropy"] == np.mean([shares.class_ for shares in report.after])
    assert "after calibration on train data" in (path / "compare.txt").read_text()


def test_the_table_is_on_the_console_and_names_where_settings_are_from(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["resume", str(whole)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{(whole / 'compare.txt').read_text()}results: {whole}\n"
    assert "supsup: preset supsup-split-digits, " in printed.out
    assert "paired tests: from 5 seeds on" in printed.out
    assert "supsup, seed 5: run 4 of 4" in printed.err


def test_json_is_the_table(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words(whole, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((whole / "compare.json").read_text())


def test_runs_that_train_made_are_taken_as_they_are(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "c"
    config = short_comparison().runs["supsup"]
    list(seeds.train(config.replace(log_every=2), path / "supsup", 2, show_progress=False))
    before = contents(path)
    quiet(path)
    assert {name: value for name, value in contents(path).items() if name in before} == before
    assert_same(whole, path)


def test_methods_may_be_added_and_left_out(whole: Path, tmp_path: Path) -> None:
    path = copy(whole, tmp_path)
    before = contents(path / "supsup")
    assert list(quiet(path, methods=["hypermask"], infer=()).to_json()["methods"]) == ["hypermask"]
    assert contents(path / "supsup") == before
    quiet(path)
    assert_same(whole, path)


def test_where_runs_go_on_may_change(whole: Path, tmp_path: Path) -> None:
    path = copy(whole, tmp_path)
    quiet(path, options={"log_every": 3, "data_dir": "elsewhere"})
    assert_same(whole, path)


def test_runs_of_a_method_go_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | None] = []

    def share(config: Any, count: int, jobs: int | None, memory: int | None) -> Any:
        seen.append(jobs)
        raise ConfigError("enough")

    monkeypatch.setattr(seeds, "share", share)
    for more, jobs in ((["--jobs", "2"], 2), ([], 1)):
        assert cli.main(words(tmp_path / "c", *more, methods="hypermask")) == 2
        assert seen.pop() == jobs
        assert not (tmp_path / "c").exists()


def test_a_run_that_fails_loses_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    original = run.train

    def train(config: Any, out: Path, **options: Any) -> Any:
        changed = config.replace(lr=1e30) if out.name == "seed-4" else config
        return original(changed, out, **options)

    with monkeypatch.context() as patch:
        patch.setattr(run, "train", train)
        assert cli.main(words(path, methods="hypermask")) == 2
    printed = capsys.readouterr()
    assert "failed: hypermask, seed 4: " in printed.out
    assert "hypermask: hypermask, seed 4: " in printed.err
    found = json.loads((path / "compare.json").read_text())
    assert found["methods"]["hypermask"]["ended"] == 1
    assert found["runs"][0]["acc"] is None
    assert found["runs"][1]["acc"] > 0
    assert "1 of 2" in (path / "compare.md").read_text()
    with pytest.raises(ConfigError, match=r"seed-4 holds runs with other settings \(lr from"):
        quiet(path, methods=["hypermask"])
