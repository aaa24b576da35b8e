"""Runs of several seeds that are stopped, killed or damaged, and continued as a whole."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hypermask_fast import cli
from hypermask_fast.errors import ConfigError, HypermaskError, TrainingError
from hypermask_fast.files import checkpoint
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.records import accuracy_files
from hypermask_fast.settings.expected import LEAST_TOLERANCE, Expected
from hypermask_fast.studies import seeds, seeds_summary
from tests.support.run_cases import (
    SHORT,
    assert_same_run,
    contents,
    quicken,
    short,
    signal_at,
    stopped,
)

RUNS = ("seed-4", "seed-5")


def arguments(out: Path, **changes: object) -> list[str]:
    words = ["train", "--seeds", "2", "--jobs", "1", "--out", str(out)]
    for name, value in {**SHORT, "seed": 4, **changes}.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    return words


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seeds") / "whole"
    assert cli.main(arguments(path)) == 0
    return path


def summary(path: Path) -> dict[str, Any]:
    """What the files of the runs say of accuracies."""
    found: dict[str, Any] = json.loads((path / "summary.json").read_text())
    for values in (found["figures"], *found["runs"]):
        for name in ("ms_a_step", "wall_s"):
            values.pop(name, None)
    return found


def stop_second(path: Path) -> None:
    shutil.rmtree(path / "seed-5")
    stopped(short(seed=5), path / "seed-5")


def kill_before(path: Path) -> None:
    """The second run was killed before its first checkpoint."""
    shutil.rmtree(path / "seed-5")
    RunFolder.create(path / "seed-5", short(seed=5).to_toml()).close()


def half_made(path: Path) -> None:
    shutil.rmtree(path / "seed-5")
    (path / "seed-5").mkdir()
    (path / "seed-5/.tmp-config.toml-1").write_text("half")


def stop_first(path: Path) -> None:
    shutil.rmtree(path / "seed-5")
    shutil.rmtree(path / "seed-4")
    stopped(short(seed=4), path / "seed-4")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(stop_first, id="first-stopped"),
        pytest.param(stop_second, id="second-stopped"),
        pytest.param(kill_before, id="second-never-began"),
        pytest.param(half_made, id="second-half-made"),
        pytest.param(lambda path: shutil.rmtree(path / "seed-5"), id="second-missing"),
        pytest.param(lambda path: None, id="all-ended"),
    ],
)
def test_resume_continues_all(whole: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "seeds"))
    damage(path)
    (path / "summary.json").unlink()
    assert cli.main(["resume", str(path), "--jobs", "1"]) == 0
    assert summary(path) == summary(whole)
    for name in RUNS:
        assert_same_run(whole / name, path / name)


def test_the_summary_is_of_all_seeds(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrices = [accuracy_files.read_accuracy(whole / name / "accuracy.npz")[0] for name in RUNS]
    values = {
        "acc_final": [m[-1].mean() for m in matrices],
        "bwt_gem": [m[2, 0] - m[1, 0] for m in matrices],
        "fwt_gem": [m[1, 1] - m[0, 1] for m in matrices],
        "learning_acc": [(m[1, 0] + m[2, 1]) / 2 for m in matrices],
        "forgetting_diag": [m[1, 0] - m[2, 0] for m in matrices],
    }
    found = json.loads((whole / "summary.json").read_text())
    rows = list(csv.DictReader((whole / "summary.csv").open()))
    assert [row["seed"] for row in rows] == ["4", "5", "mean", "std", "half_interval_95"]
    for name, (a, b) in values.items():
        figure = found["figures"][name]
        assert figure["n"] == 2
        assert figure["mean"] == pytest.approx((a + b) / 2)
        assert figure["std"] == pytest.approx(abs(a - b) / 2**0.5)
        # Student's t of one degree of freedom is Cauchy's: its quantile 0.975 is tan(0.475 pi).
        half = math.tan(0.475 * math.pi) * abs(a - b) / 2
        assert figure["half_interval_95"] == pytest.approx(half)
        assert [float(row[name]) for row in rows] == pytest.approx(
            [a, b, figure["mean"], figure["std"], half]
        )
    assert all(row["wall_s"] > 0 for row in found["runs"])
    table = seeds.summary(whole).table()
    assert "not compared, for these settings are others: embedding_dim, hidden" in table


@pytest.mark.parametrize(("std", "mark"), [(0.5, "yes: ACC"), (1e-3, "NO: ACC")])
def test_the_mean_is_compared_with_what_is_expected(
    whole: Path, monkeypatch: pytest.MonkeyPatch, std: float, mark: str
) -> None:
    found = seeds.summary(whole)
    acc = found.figures["acc_final"].mean
    record = Expected(acc=acc + 0.9, std=std, seeds=2, source="a book")
    monkeypatch.setattr(seeds_summary, "expected_of", lambda config: (record, []))
    # Three standard errors of the difference of two means of two: 3 s.
    assert record.tolerance(2) == pytest.approx(max(LEAST_TOLERANCE, 3 * std))
    assert found.is_as_expected == (3 * std >= 0.9)
    last = found.table().splitlines()[-1]
    assert last.startswith(mark)
    assert found.to_json()["expected"]["is_as_expected"] == (3 * std >= 0.9)


def test_threads_of_runs_are_kept(whole: Path, tmp_path: Path) -> None:
    """A set that began with two threads a run goes on with two, whatever there are."""
    path = Path(shutil.copytree(whole, tmp_path / "seeds"))
    record = json.loads((path / "seeds.json").read_text())
    assert record["threads"] == torch.get_num_threads()
    record["threads"] = 2
    record["sha256"] = seeds._digest(record["settings"], 2, 2)
    (path / "seeds.json").write_text(json.dumps(record))
    shutil.rmtree(path / "seed-5")
    before = torch.get_num_threads()
    assert cli.main(["resume", str(path), "--jobs", "1"]) == 0
    assert torch.get_num_threads() == before
    made = json.loads((path / "seed-5/manifest.json").read_text())
    assert made["environment"]["threads"] == 2


def test_a_run_that_fails_loses_no_other(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "seeds"))
    newest = checkpoint.latest(path / "seed-4/checkpoints")
    assert newest is not None
    (newest / "state.json").write_text("{}")
    assert cli.main(["resume", str(path), "--jobs", "1"]) == 2
    printed = capsys.readouterr()
    assert f"results: {path / 'seed-5'}" in printed.out
    assert "1 seed, mean" in printed.out
    (row,) = (line for line in printed.out.splitlines() if line.startswith("seed 4: failed: "))
    assert str(newest) in row
    assert printed.err.splitlines()[-1] == row.replace("seed 4: failed:", "hypermask: seed 4:")


def test_a_stopped_run_names_the_folder_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signal_at(3, monkeypatch)
    assert cli.main(arguments(tmp_path / "s")) == 128 + signal.SIGTERM
    assert f"`hypermask resume {tmp_path / 's'}`" in capsys.readouterr().err


def test_a_changed_setting_of_one_run_is_refused(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "seeds"))
    stop_second(path)
    (path / "seed-5/config.toml").write_text(short(seed=5, lr=0.5).to_toml())
    with pytest.raises(HypermaskError, match="gives lr="):
        list(seeds.resume(path, show_progress=False))
    assert len(list(seeds.resume(path, show_progress=False, allow_changes=True))) == 2


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"seeds": 2}', '{"settings": "", "seeds": "x", "sha256": ""}', "altered"],
)
def test_an_altered_list_of_seeds_is_a_sentence(whole: Path, tmp_path: Path, content: str) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "seeds"))
    if content == "altered":
        content = (path / "seeds.json").read_text().replace("lr = 0.001", "lr = 0.002")
    (path / "seeds.json").write_text(content)
    before = contents(path)
    with pytest.raises(ConfigError, match=r"seeds\.json was altered; restore it") as caught:
        list(seeds.resume(path, show_progress=False))
    assert contents(path) == before
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_runs_is_refused(whole: Path, tmp_path: Path) -> None:
    before = contents(whole)
    with pytest.raises(ConfigError, match=f"`hypermask resume {re.escape(str(whole))}`"):
        list(seeds.train(short(seed=4), whole, 2))
    (tmp_path / "notes").write_text("")
    with pytest.raises(ConfigError, match="it holds 'notes'"):
        list(seeds.train(short(seed=4), tmp_path, 2))
    assert contents(whole) == before


def test_runs_that_cannot_start_leave_nothing(tmp_path: Path) -> None:
    config = short(seed=2**64 - 1)
    with pytest.raises(ConfigError, match="seed=18446744073709551616"):
        list(seeds.train(config, tmp_path / "a", 2))
    with pytest.raises(ConfigError, match="cuda:77"):
        list(seeds.train(short(device="cuda:77"), tmp_path / "a", 2))
    assert list(tmp_path.iterdir()) == []


def test_runs_that_failed_before_a_checkpoint_block_none(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    failing = short(seed=4, lr=1e30, steps=60, checkpoint_every=1e9)
    with pytest.raises(TrainingError):
        list(seeds.train(failing, path, 2, show_progress=False))
    list(seeds.train(short(seed=4), path, 2, show_progress=False))
    for name in RUNS:
        assert_same_run(whole / name, path / name)


def test_names_of_runs_without_out_are_unique(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20250101-000000")
    words = ["--tasks", "1", "--steps", "1", "--mlp-hidden", "4", "--device", "cpu"]
    assert [cli.main(["train", *words]) for _ in range(2)] == [0, 0]
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(names) == 2
    assert all(re.fullmatch("split-digits-20250101-000000-[0-9a-f]{6}", name) for name in names)


_SUPERVISOR = """
import json, sys
from pathlib import Path
import pytest
import torch
from hypermask_fast.studies import seeds
from hypermask_fast.settings.config import RunConfig
from tests.support.killed import killed
from tests.support.run_cases import quicken

torch.set_num_threads(1)
quicken(pytest.MonkeyPatch())
root, config = Path(sys.argv[1]), RunConfig.from_toml(sys.argv[2])

def train(path):
    return list(seeds.train(config, path, 2, show_progress=False))

whole = root / "reference"
assert not killed(whole, -1, lambda: train(whole))
count = int((root / "count").read_text())
points = [0, 1, 2, 3, 4, 5, *range(9, count, count // 7)]
for point in points:
    path = root / str(point)
    assert killed(path, point, lambda: train(path)), point
    begun = seeds.holds_seeds(path)
    again = seeds.resume(path, show_progress=False) if begun else train(path)
    assert len(list(again)) == 2
    print(json.dumps([point, begun]), flush=True)
"""


@pytest.mark.long
def test_killed_at_any_moment_and_continued_ends_bit_identical(tmp_path: Path) -> None:
    config = short(seed=4, steps=2, log_every=1)
    done = subprocess.run(
        [sys.executable, "-c", _SUPERVISOR, str(tmp_path), config.to_toml()],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    points = [json.loads(line) for line in done.stdout.splitlines()]
    assert {begun for _, begun in points} == {True, False}
    for point, _ in points:
        for name in RUNS:
            assert_same_run(tmp_path / "reference" / name, tmp_path / str(point) / name)
