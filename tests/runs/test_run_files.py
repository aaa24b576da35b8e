"""What a run leaves beside its checkpoints: summary, manifest, confusions, log, report, figures."""

from __future__ import annotations

import csv
import json
import platform
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from hypermask_fast import cli
from hypermask_fast.errors import ConfigError, DataError
from hypermask_fast.files import checkpoint
from hypermask_fast.finished.plotting import learner_of, plot
from hypermask_fast.metrics import continual
from hypermask_fast.records import confusion, metrics_log, page, summary
from hypermask_fast.records.records import records
from hypermask_fast.runs import run, session
from hypermask_fast.settings.expected import Expected
from hypermask_fast.studies import seeds
from tests.figures.test_page import Parsed
from tests.support.run_cases import contents, short

NAMES = ["digits 0/1", "digits 2/3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "a"
    run.train(short(lr=5e-3, schedule="cosine"), path, show_progress=False)
    return path


def test_the_log_has_times_rates_and_names(whole: Path) -> None:
    rows = metrics_log.read(whole / "metrics.jsonl")
    steps = [row for row in rows if "step" in row]
    assert [row["task_name"] for row in steps] == [name for name in NAMES for _ in range(3)]
    times = [row["time"] for row in rows]
    assert times == sorted(times)
    assert times[0] > 0
    assert steps[0]["steps_per_second"] is None  # with all that is done once
    assert steps[1]["steps_per_second"] > 0
    # Half a cosine over 6 steps; the row of step 2 is of the second one.
    expected = 5e-3 * (0.5 + 0.5 * np.cos(np.pi / 6))
    assert steps[0]["lr"] == pytest.approx(expected, rel=1e-6)
    assert all(metrics_log.untimed(row).keys() & {*metrics_log.TIMED} == set() for row in rows)


def test_the_summary_has_every_metric_by_its_definition(whole: Path) -> None:
    found = summary.read(whole / "summary.json")
    matrix = np.load(whole / "accuracy.npz")["accuracy"]
    counts = found["test_examples"]
    expected = continual.summary(matrix, counts)
    assert {*expected} == {*continual.NAMES}
    for name, value in expected.items():
        assert found["metrics"][name] == (None if np.isnan(value) else value)
    assert {*found["definitions"]} == {*continual.NAMES}
    assert found["accuracy"] == matrix[2].tolist()
    assert (found["tasks_learned"], found["steps"], found["total_steps"]) == (2, 12, 12)
    assert found["steps_per_second"] == pytest.approx(1e3 / found["ms_a_step"], abs=0.01)
    assert found["peak_bytes"]["host"] > 2**20
    assert found["seconds"] > 0


def test_the_manifest_tells_the_machine(whole: Path) -> None:
    found = json.loads((whole / "manifest.json").read_bytes())
    machine = found["machine"]
    assert machine["versions"]["python"] == platform.python_version()
    assert machine["versions"]["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert machine["command"]
    assert found["seconds"] > 0


def test_confusions_are_those_of_the_learner(whole: Path) -> None:
    found = confusion.read(whole / "confusion.npz")
    trainer = run.load(whole)
    matrix = trainer.accuracy
    assert [each.name for each in found] == NAMES
    for task, each in enumerate(found):
        assert each.accuracy == matrix[2, task]
        x, y = next(trainer.tasks[task].evaluation_batches("test", 1000))
        with torch.no_grad():
            guess = trainer.learner(x, task=task)[:, :2].argmax(1)
        expected = np.zeros((2, 2), dtype=np.int64)
        np.add.at(expected, (y.numpy(), guess.numpy()), 1)
        np.testing.assert_array_equal(each.counts, expected)
    rows = list(csv.DictReader((whole / "classes.csv").read_text().splitlines()))
    assert [int(row["class"]) for row in rows] == [0, 1, 2, 3]
    assert float(rows[0]["accuracy"]) == pytest.approx(found[0].by_class[0], abs=0.005)
    pairs = list(csv.DictReader((whole / "confusion.csv").read_text().splitlines()))
    assert sum(int(row["count"]) for row in pairs) == sum(int(c.counts.sum()) for c in found)


def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    for name, reads in (("confusion.npz", confusion.read), ("summary.json", summary.read)):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DataError, match=name):
            reads(tmp_path / name)


def test_a_resume_that_has_nothing_to_do_changes_nothing(whole: Path) -> None:
    before = contents(whole)
    run.resume(whole, show_progress=False)
    assert contents(whole) == before


def test_a_run_leaves_a_report(whole: Path) -> None:
    text = (whole / "report.html").read_text()
    found = Parsed(text)
    assert {"Accuracy by class, at the end", "Losses", "0.005 "} <= {*found.texts}
    assert "instead of 0.001" in "".join(found.texts)
    assert "digits 0/1" in found.texts


def test_plot_needs_no_data(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise DataError("the data are gone")

    monkeypatch.setattr(run, "make_scenario", gone)
    made = plot([whole], tmp_path / "out", "svg")
    names = {path.stem for path in made.files}
    assert {"accuracy-matrix", "forgetting", "losses", "mask-overlap", "capacity"} <= names
    assert {"mask-overlap-by-layer", "embeddings", "accuracy-by-class", "confusion"} <= names
    assert all(path.with_suffix(".csv").exists() for path in made.files)
    assert not made.notes
    with open(tmp_path / "out" / "mask-overlap.csv") as file:
        rows = list(csv.reader(file))
    learner = run_learner(whole)
    flat = [torch.cat([m.flatten() for m in learner.masks(t).values()]) != 0 for t in (0, 1)]
    expected = 100 * (flat[0] & flat[1]).sum() / (flat[0] | flat[1]).sum()
    assert float(rows[1][2]) == pytest.approx(float(expected))
    assert Parsed(made.report.read_text())


def run_learner(path: Path) -> Any:
    return learner_of(path)


def test_a_learner_without_data_is_that_of_the_run(whole: Path) -> None:
    a, b = learner_of(whole).state_dict(), run.load(whole).learner.state_dict()
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_methods_without_masks_say_so(tmp_path: Path) -> None:
    config = short(method="hnet", steps=2, tasks=2)
    run.train(config, tmp_path / "h", show_progress=False)
    made = plot([tmp_path / "h"], kind="svg")
    assert made.folder == tmp_path / "h" / "figures"
    assert "weight-overlap" in {path.stem for path in made.files}
    assert "HNET has no binary masks" in made.notes[0]


def test_several_runs_are_overlaid(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    list(seeds.train(short(steps=2), tmp_path / "s", 2, show_progress=False))
    with pytest.raises(ConfigError, match="--out"):
        plot([whole, tmp_path / "s"])
    out = tmp_path / "out"
    words = ["plot", str(whole), str(tmp_path / "s"), "--out", str(out), "--format", "svg"]
    assert cli.main(words) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out
    with open(out / "accuracy-so-far.csv") as file:
        rows = list(csv.DictReader(file))
    labels = {row["series"] for row in rows}
    assert labels == {"lr 0.005, steps 6, schedule cosine", "lr 0.001, steps 2, schedule constant"}
    matrices = [np.load(tmp_path / "s" / f"seed-{s}" / "accuracy.npz")["accuracy"] for s in (0, 1)]
    ends = [matrix[2].mean() for matrix in matrices]
    last = next(r for r in rows if "steps 2" in r["series"] and r["tasks learned"] == "2")
    assert float(last["accuracy (%)"]) == pytest.approx(np.mean(ends))
    assert (float(last["low"]), float(last["high"])) == pytest.approx((min(ends), max(ends)))
    assert {"a", "seed-0", "seed-1"} <= {path.name for path in out.iterdir()}


def test_what_cannot_be_plotted_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format='gif' is unknown"):
        plot([whole], kind="gif")
    (tmp_path / "several" / "seed-1").mkdir(parents=True)
    (tmp_path / "several" / "seed-1" / "config.toml").touch()
    with pytest.raises(ConfigError, match=r"it holds the runs seed-1.*did you mean .*seed-1'"):
        records(tmp_path / "several")
    with pytest.raises(ConfigError, match="is not a run folder"):
        plot([tmp_path])


def test_records_of_an_earlier_version_are_read(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.mkdir()
    for name in ("config.toml", "accuracy.npz"):
        (path / name).write_bytes((whole / name).read_bytes())
    found = records(path)
    assert (found.rows, found.confusions, found.summary, found.manifest) == ([], [], {}, {})
    made = plot([path], tmp_path / "out", "svg")
    assert {path.stem for path in made.files} == {"accuracy-matrix", "forgetting"}
    assert "holds no checkpoint" in made.notes[0]


@pytest.mark.parametrize(
    ("acc", "others", "mark"),
    [(0.0, [], "✓"), (100.0, [], "✗"), (50.0, ["lr"], "of these settings")],
)
def test_the_report_marks_what_its_preset_is_known_to_reach(
    whole: Path, monkeypatch: pytest.MonkeyPatch, acc: float, others: list[str], mark: str
) -> None:
    known = Expected(acc=acc, std=0.1, seeds=3, source="a table")
    monkeypatch.setattr(page, "expected_of", lambda config: (known, others))
    text = page.run_page(records(whole))
    assert f"{acc:.2f} ± 0.10 (3 seeds)" in text
    assert mark in text


def test_the_first_checkpoint_does_not_wait_as_long_as_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_FIRST_CHECKPOINT", 0.0)
    save = MagicMock(wraps=checkpoint.save)
    monkeypatch.setattr(checkpoint, "save", save)
    run.train(short(checkpoint_every=1e9), tmp_path / "run", show_progress=False)
    assert [call.args[1] for call in save.call_args_list] == [1, 6, 12]
