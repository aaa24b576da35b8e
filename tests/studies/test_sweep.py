"""Searches over settings: by validation data, pruned, stopped and continued, with one table."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypermask_fast import cli
from hypermask_fast.errors import ConfigError, Stopped, TrainingError
from hypermask_fast.files.atomic import write_text_atomic
from hypermask_fast.records import validated
from hypermask_fast.runs import run
from hypermask_fast.runs.run import RunResult
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.sweep import SweepConfig, grid_of
from hypermask_fast.studies import sweep as sweep_module
from hypermask_fast.studies.apart import Job, Pruned
from hypermask_fast.studies.sweep import open_study, resume, sweep
from hypermask_fast.studies.sweep_study import Trial, is_behind
from tests.support.run_cases import assert_same_run, quicken, short

GRID = {"lr": (1e-2, 1e-3), "beta": (0.1, 0.2)}


class Plain:
    """Stands in for Optuna: takes the grid in its order, and remembers while the test lasts."""

    def __init__(self, config: SweepConfig) -> None:
        self.config = config
        self.found: list[Trial] = []

    def trials(self) -> Sequence[Trial]:
        return list(self.found)

    def ask(self) -> Trial:
        number = len(self.found)
        values = list(self.config.combinations())[number % self.config.size]
        self.found.append(Trial(number, values))
        return self.found[-1]

    def report(self, number: int, step: int, value: float) -> None:
        trial = self.found[number]
        self.found[number] = replace(trial, reported={**trial.reported, step: value})

    def tell(self, number: int, state: str, value: float | None, note: str = "") -> None:
        self.found[number] = replace(self.found[number], state=state, value=value, note=note)


def config(**options: Any) -> SweepConfig:
    options = {"base": short(tasks=3, capacity=3, seed=4), "grid": GRID, **options}
    return SweepConfig(**options)


def accuracy(job: Job, learned: int) -> float:
    """What the runs that are made up reach: falls with each task, and with lr."""
    values = job.config
    return 90 - 10 * learned - 1000 * values.training.lr + values.run.seed


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes up the runs; the names of those that were begun, and of the tasks they learned."""
    seen: list[str] = []

    def perform(job: Job, goes: Any) -> RunResult:
        seen.append(job.name)
        job.folder.mkdir(parents=True, exist_ok=True)
        rows: list[list[float]] = validated.read(job.folder)
        while len(rows) < 3:
            rows.append([accuracy(job, len(rows) + 1)] * (len(rows) + 1))
            write_text_atomic(job.folder / validated.FILE, json.dumps({"after_task": rows}))
            if not goes(len(rows)):
                raise Pruned
        return RunResult(job.folder, np.zeros((4, 3)), ["a", "b", "c"], [])

    monkeypatch.setattr(Job, "perform", perform)
    return seen


def made(settings: SweepConfig, out: Path, study: Plain, **options: Any) -> Any:
    return sweep(settings, out, study=lambda *_: study, show_progress=False, **options)


def test_trials_are_compared_and_the_best_is_given(
    tmp_path: Path, performed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(seeds=2)
    found = made(settings, tmp_path / "s", Plain(settings))
    assert capsys.readouterr() == ("", "")
    assert performed == [f"trial {n}, seed {s}" for n in range(4) for s in (4, 5)]
    # After three tasks, of the seeds 4 and 5: the mean is that of the seeds.
    values = [60 - 1000 * lr + 4.5 for lr in (1e-2, 1e-2, 1e-3, 1e-3)]
    assert [trial.value for trial in found.trials] == pytest.approx(values)
    assert found.best.number == 2
    steps = found.trials[2].reported
    first = [90 - 10 * t - 1 + 4 for t in (1, 2, 3)]
    second = [statistics.fmean([first[-1], value + 1]) for value in first]
    assert [steps[step] for step in range(6)] == pytest.approx([*first, *second])
    rows = list(csv.DictReader((tmp_path / "s/trials.csv").open()))
    assert [float(row["validation"]) for row in rows] == pytest.approx(values)
    assert [float(row["std"]) for row in rows] == pytest.approx([0.5**0.5] * 4)
    stored = json.loads((tmp_path / "s/trials.json").read_text())
    assert stored["best"] == 2
    best = RunConfig.from_toml(tmp_path / "s/best.toml")
    assert best == settings.base.replace(lr=1e-3, beta=0.1)
    row = found.table().splitlines()[2]
    assert " ".join(row.split()) == "2 0.001 0.1 ended 6 63.50 +/- 0.71"
    # The command gives the same settings.
    words = shlex.split(found.command())
    assert words[:2] == ["hypermask", "train"]
    assert "--epochs" not in words
    options = cli._options(words[1:])
    from hypermask_fast.settings.command_line import from_arguments

    assert from_arguments(options) == best


def test_a_trial_below_the_median_ends_early(tmp_path: Path, performed: list[str]) -> None:
    settings = config(grid={"lr": (1e-3, 2e-3, 3e-3, 4e-3, 1e-4)})
    found = made(settings, tmp_path / "s", Plain(settings))
    assert [trial.state for trial in found.trials] == ["ended"] * 3 + ["pruned", "ended"]
    # After its first task, though that is more than others have in the end.
    assert list(found.trials[3].reported) == [0]
    assert found.trials[3].value == 80 - 4 + 4
    assert found.best.number == 4


def test_the_latest_accuracy_counts_and_not_the_best_one() -> None:
    others = [Trial(i, {}, "ended", 60, {0: 90.0, 1: 60.0 + i}) for i in range(3)]
    assert not is_behind(Trial(3, {}, reported={0: 90.0}), others)
    assert not is_behind(Trial(3, {}, reported={0: 99.0, 1: 61.0}), others)
    assert is_behind(Trial(3, {}, reported={0: 99.0, 1: 60.9}), others)
    assert not is_behind(Trial(3, {}, reported={0: 0.0}), others[:2])
    pruned = [replace(other, state="pruned") for other in others]
    assert not is_behind(Trial(3, {}, reported={0: 0.0}), pruned)
    assert not is_behind(Trial(3, {}), others)


def test_a_stopped_search_goes_on_where_it_was(
    tmp_path: Path,
    performed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = config(seeds=2)
    whole = made(settings, tmp_path / "whole", Plain(settings))
    performed.clear()
    perform = Job.perform

    def stop(job: Job, goes: Any) -> RunResult:
        def stops(learned: int) -> bool:
            if (job.name, learned) == ("trial 1, seed 5", 2):
                raise Stopped(signal.SIGTERM, job.folder)
            return bool(goes(learned))

        return perform(job, stops)

    monkeypatch.setattr(Job, "perform", stop)
    study = Plain(settings)
    with pytest.raises(Stopped, match=f"`hypermask resume {tmp_path / 's'}`"):
        made(settings, tmp_path / "s", study)
    assert len(list(csv.DictReader((tmp_path / "s/trials.csv").open()))) == 2
    monkeypatch.setattr(Job, "perform", perform)
    performed.clear()
    again = made(settings, tmp_path / "s", study)
    # The first run of the trial has ended, and is only looked at.
    assert performed[:2] == ["trial 1, seed 4", "trial 1, seed 5"]
    assert [t.value for t in again.trials] == pytest.approx([t.value for t in whole.trials])
    monkeypatch.setattr(sweep_module, "open_study", lambda *_: study)
    assert resume(tmp_path / "s", show_progress=False).table() == again.table()
    assert cli.main(["resume", str(tmp_path / "s"), "--jobs", "1"]) == 0
    assert again.table() in capsys.readouterr().out
    with pytest.raises(ConfigError, match="holds a search with another seeds; give the same"):
        made(config(seeds=3), tmp_path / "s", study)
    with pytest.raises(ConfigError, match="it holds 's', expected none or an empty one"):
        made(settings, tmp_path, study)


def test_a_trial_that_fails_or_was_made_already_loses_no_other(
    tmp_path: Path, performed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(sampler="random", trials=6)
    perform = Job.perform

    def diverge(job: Job, goes: Any) -> RunResult:
        if job.name == "trial 1, seed 4":
            raise TrainingError("the loss is nan")
        return perform(job, goes)

    monkeypatch.setattr(Job, "perform", diverge)
    found = made(settings, tmp_path / "s", Plain(settings))
    assert [t.state for t in found.trials[:5]] == ["ended", "failed", *["ended"] * 3]
    assert found.trials[1].note == "the loss is nan"
    assert "trial 1: the loss is nan" in found.table()
    # Trials 4 and 5 have the values of 0 and 1, of which 0 has ended.
    assert (found.trials[4].note, found.trials[4].value) == ("as trial 0", found.trials[0].value)
    assert performed == [f"trial {n}, seed 4" for n in (0, 2, 3, 5)]


def test_validation_data_alone_decide_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real runs: the value is the validation accuracy, and the runs are those without a search."""
    quicken(monkeypatch)
    settings = SweepConfig(base=short(seed=4), grid={"lr": (1e-2,)})
    found = made(settings, tmp_path / "s", Plain(settings))
    folder = tmp_path / "s/trial-0/seed-4"
    trainer = run.load(folder)
    accuracies = [trainer.evaluate(task, "validation") for task in (0, 1)]
    assert found.trials[0].value == pytest.approx(np.mean(accuracies))
    assert found.trials[0].value != trainer.accuracy[-1].mean()
    run.train(short(seed=4, lr=1e-2), tmp_path / "alone", show_progress=False)
    assert_same_run(tmp_path / "alone", folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"base": short(validation=0)}, "give --validation N", id="no-data"),
        pytest.param(
            {"base": RunConfig.from_preset("hnet-split-digits", validation=0)},
            "never by test data",
            id="never-test-data",
        ),
        pytest.param(
            {"base": short(selection="best_on_test_data")}, "--selection best", id="selection"
        ),
        pytest.param({"grid": {}}, "for example lr=1e-3,3e-4", id="empty"),
        pytest.param({"grid": {"lr": ()}}, "lr=[] has no values", id="no-values"),
        pytest.param({"grid": {"lr": (0.1, 0.1)}}, "or one twice", id="twice"),
        pytest.param({"grid": {"lr": (-1.0,)}}, "lr=-1.0 is out of range", id="range"),
        pytest.param({"grid": {"seed": (1, 2)}}, "grid='seed' cannot be searched", id="seed"),
        pytest.param({"grid": {"bete": (1,)}}, "did you mean 'beta'?", id="name"),
        pytest.param({"trials": 3}, "leave trials=3 out", id="trials"),
        pytest.param({"sampler": "tpe"}, "give trials, for example 20", id="no-trials"),
        pytest.param({"sampler": "best", "trials": 2}, "sampler='best' is unknown", id="sampler"),
        pytest.param({"seeds": 0}, "seeds=0 is out of range", id="seeds"),
    ],
)
def test_searches_that_make_no_sense_are_a_sentence(options: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_grid_is_read_as_options_are() -> None:
    words = ["lr=1e-3,3e-4", "--mlp-hidden=8,4;6", "epochs=2,none"]
    expected = {"lr": [1e-3, 3e-4], "mlp_hidden": [(8, 4), (6,)], "epochs": [2, None]}
    assert grid_of(short(), words) == expected
    for word in ("lr", "lr=1,2"):
        with pytest.raises(ConfigError, match="give NAME=VALUE,VALUE"):
            grid_of(short(), ["lr=1", word])
    with pytest.raises(ConfigError, match="lr='x' cannot be read"):
        grid_of(short(), ["lr=x"])


def test_a_missing_optuna_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    words = ["--grid", "lr=0.1", "--device", "cpu", "--out", str(tmp_path / "s")]
    assert cli.main(["sweep", *words]) == 2
    error = capsys.readouterr().err
    assert "run `pip install 'hypermask_fast[sweep]'`" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s").exists()


@pytest.fixture
def optuna() -> Any:
    return pytest.importorskip("optuna")


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_optuna_goes_on_as_if_never_stopped(tmp_path: Path, optuna: Any, sampler: str) -> None:
    settings = config(sampler=sampler, trials=None if sampler == "grid" else 14)

    def step(study: Any, number: int) -> None:
        trial = study.ask()
        assert trial.number == number
        study.report(number, 0, 50 + number)
        study.report(number, 0, 1.0)  # a run that goes on may tell again
        if number == 2:
            study.tell(2, "failed", None, "nan")
        else:
            study.tell(number, "pruned" if number == 1 else "ended", 60.0 + number)

    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = open_study(tmp_path / "whole", settings)
    for number in range(settings.count):
        step(whole, number)
        parts = open_study(tmp_path / "parts", settings)
        step(parts, number)
        with open(tmp_path / "parts/study.journal", "ab") as file:
            file.write(b'{"op_code":')  # killed in the middle of a line
    found = open_study(tmp_path / "parts", settings).trials()
    assert found == whole.trials()
    assert [t.value for t in found[:4]] == [60.0, 51.0, None, 63.0]
    assert found[2].note == "nan"
    assert found[0].reported == {0: 50.0}
    if sampler == "grid":
        assert [dict(t.values) for t in found] == list(settings.combinations())
    else:
        assert len({tuple(t.values.values()) for t in found}) > 1


def test_optuna_keeps_a_trial_that_was_running(tmp_path: Path, optuna: Any) -> None:
    settings = config(grid={"mlp_hidden": ((8,), (8, 4)), "lr": (0.1,)})
    begun = open_study(tmp_path, settings).ask()
    journal = (tmp_path / "study.journal").read_bytes().splitlines(keepends=True)
    # Also one that was killed before its last value was kept.
    for kept in (journal, journal[:-1]):
        (tmp_path / "study.journal").write_bytes(b"".join(kept))
        study = open_study(tmp_path, settings)
        assert study.trials() == [begun]
        assert begun.values == {"mlp_hidden": (8,), "lr": 0.1}
        study.tell(0, "ended", 70.0)
