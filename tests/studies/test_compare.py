"""Comparisons: made, stopped, killed, continued, refused."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypermask_fast import cli
from hypermask_fast.errors import ConfigError, HypermaskError, Stopped
from hypermask_fast.files import checkpoint
from hypermask_fast.files.folder import FolderLock
from hypermask_fast.inference.evaluation import evaluate
from hypermask_fast.inference.registry import make_score
from hypermask_fast.metrics import continual
from hypermask_fast.records.accuracy_files import read_accuracy
from hypermask_fast.runs import run
from hypermask_fast.studies import comparison, seeds
from hypermask_fast.studies.comparison import compare
from hypermask_fast.studies.comparison_files import FILES, RUNS
from tests.support.comparison_cases import METHODS, short_comparison, table_of, words
from tests.support.run_cases import assert_same_run, contents, stopped

ALL = [(method, seed) for method in METHODS for seed in (4, 5)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "whole"
    assert cli.main(words(path)) == 0
    return path


def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def quiet(path: Path, **changes: Any) -> comparison.Comparison:
    return compare(short_comparison(**changes), path, show_progress=False)


def assert_same(whole: Path, path: Path) -> None:
    assert table_of(path) == table_of(whole)
    for method, seed in ALL:
        assert_same_run(whole / method / f"seed-{seed}", path / method / f"seed-{seed}")


def test_files_and_figures_are_those_of_the_runs(whole: Path) -> None:
    assert {*FILES, RUNS, "compare.toml", ".lock", *METHODS} == {p.name for p in whole.iterdir()}
    assert (whole / "compare.png").read_bytes().startswith(b"\x89PNG")
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


def stop_second(path: Path) -> None:
    shutil.rmtree(path / "supsup")
    shutil.rmtree(path / "hypermask/seed-5")
    config = short_comparison().runs["hypermask"]
    stopped(config.replace(seed=5), path / "hypermask/seed-5")
    for name in (*FILES, RUNS):
        (path / name).unlink()


def only_settings(path: Path) -> None:
    shutil.rmtree(path / "supsup")
    (path / "supsup").mkdir()


@pytest.mark.parametrize(
    ("damage", "how"),
    [(stop_second, "compare"), (stop_second, "resume"), (only_settings, "compare")],
)
def test_a_stopped_comparison_goes_on(
    whole: Path, tmp_path: Path, damage: Callable[[Path], None], how: str
) -> None:
    path = copy(whole, tmp_path)
    damage(path)
    assert cli.main(["resume", str(path)] if how == "resume" else words(path)) == 0
    assert_same(whole, path)


def test_a_signal_names_the_folder_of_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = checkpoint.save

    def save(folder: Path, step: int, *args: Any, **options: Any) -> Path:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(folder, step, *args, **options)

    monkeypatch.setattr(checkpoint, "save", save)
    path = tmp_path / "c"
    with pytest.raises(Stopped, match=f"`hypermask resume {re.escape(str(path))}`") as error:
        quiet(path)
    assert error.value.exit_status == 128 + signal.SIGTERM


def test_methods_may_be_added_and_left_out(whole: Path, tmp_path: Path) -> None:
    path = copy(whole, tmp_path)
    before = contents(path / "supsup")
    assert list(quiet(path, methods=["hypermask"], infer=()).to_json()["methods"]) == ["hypermask"]
    assert contents(path / "supsup") == before
    quiet(path)
    assert_same(whole, path)


def change_run(path: Path) -> None:
    file = path / "supsup/seed-5/config.toml"
    file.write_text(file.read_text().replace("density = 0.3", "density = 0.4"))


def change_seed(path: Path) -> None:
    file = path / "supsup/seed-5/config.toml"
    file.write_text(file.read_text().replace("seed = 5", "seed = 6"))


def move(path: Path) -> None:
    shutil.rmtree(path / "supsup")
    (path / "hypermask").rename(path / "supsup")


def single(path: Path) -> None:
    shutil.rmtree(path / "supsup")
    (path / "hypermask/seed-4").rename(path / "supsup")


REFUSED: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "setting": (
        lambda path: None,
        {"options": {"supsup.density": 0.5}},
        r"supsup holds runs with other settings \(density from 0.5 to 0.3\); give those",
    ),
    "seeds": (lambda path: None, {"seeds": 3}, "holds 2 runs from seed 4 on, expected 3"),
    "first-seed": (
        lambda path: None,
        {"options": {"seed": 5}},
        "expected 2 from seed 5 on; give --seeds 2 --seed 4",
    ),
    "run": (change_run, {}, r"seed-5 holds runs with other settings \(density from 0.3 to 0.4\)"),
    "run-seed": (change_seed, {}, "seed-5 holds a run with seed=6; put back"),
    "method": (move, {}, "supsup holds runs of hypermask, expected supsup"),
    "single-run": (single, {}, "supsup holds a run already"),
    "altered": (
        lambda path: (path / "supsup/seeds.json").write_text("{}"),
        {},
        r"seeds\.json was altered",
    ),
    "foreign": (
        lambda path: [(path / "compare.toml").unlink(), (path / "compare.csv").unlink()],
        {},
        "is not the folder of a comparison, it holds 'compare.json'",
    ),
    "of-one-run": (
        lambda path: (path / "hypermask/seed-4/checkpoints").rename(path / "hypermask/checkpoints"),
        {},
        "seed-4/checkpoints holds no checkpoint",
    ),
}


@pytest.mark.parametrize(("damage", "changes", "said"), REFUSED.values(), ids=REFUSED)
def test_other_runs_are_refused_and_left_alone(
    whole: Path,
    tmp_path: Path,
    damage: Callable[[Path], Any],
    changes: dict[str, Any],
    said: str,
) -> None:
    path = copy(whole, tmp_path)
    damage(path)
    before = contents(path)
    with pytest.raises(HypermaskError, match=said) as error:
        quiet(path, **changes)
    assert "\n" not in str(error.value)
    assert contents(path) == before


def test_where_runs_go_on_may_change(whole: Path, tmp_path: Path) -> None:
    path = copy(whole, tmp_path)
    quiet(path, options={"log_every": 3, "data_dir": "elsewhere"})
    assert_same(whole, path)


def test_a_comparison_in_use_is_refused(whole: Path, tmp_path: Path) -> None:
    path = copy(whole, tmp_path)
    with FolderLock(path), pytest.raises(ConfigError, match="in use by process"):
        quiet(path)


def test_what_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c"
    nowhere = {"data_dir": str(tmp_path / "none"), "scenario": "split-mnist", "device": "cpu"}
    with pytest.raises(HypermaskError, match="MNIST"):
        quiet(path, options=nowhere)
    with pytest.raises(ConfigError, match=r"of hypermask: the run needs .* of cpu memory"):
        compare(short_comparison(), path, show_progress=False, memory=1)
    unfit = {"supsup.network": "zenkenet", "mlp_hidden": (6,)}
    with pytest.raises(ConfigError, match="of supsup: "):
        quiet(path, options=unfit)
    assert list(tmp_path.iterdir()) == []


def test_allow_changes_and_folders_that_are_none(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(whole)
    assert cli.main(["resume", str(whole), "--allow-changes"]) == 2
    assert "--allow-changes is for runs" in capsys.readouterr().err
    assert contents(whole) == before
    with pytest.raises(ConfigError, match=r"compare\.toml cannot be used"):
        comparison.resume(tmp_path)
    with pytest.raises(TypeError, match="config is 3; give a ComparisonConfig"):
        compare(3, tmp_path)  # type: ignore[arg-type]


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


@pytest.mark.parametrize(
    ("more", "said"),
    [
        pytest.param(["--methods", "hypermsk"], "did you mean 'hypermask'", id="method"),
        pytest.param(["--methods", "hnet,hnet"], "'hnet' twice", id="twice"),
        pytest.param(["--seeds", "0"], "seeds=0", id="seeds"),
        pytest.param(["--preset", "split-minst"], "did you mean 'split-mnist'", id="preset"),
        pytest.param(["--infer", "entrpy"], "did you mean 'entropy'", id="score"),
        pytest.param(["--steps", "x"], "steps='x' cannot be read", id="value"),
        pytest.param(["--stepz", "3"], "did you mean '--steps'", id="option"),
        pytest.param(["--supsup.density", "7"], "density=7.0 is out of range", id="of-one"),
        pytest.param(["--extent", "7"], "of --method hyperinterval", id="of-none"),
        pytest.param(["--preset", "cifar100-resnet"], "mlp-hidden", id="unfit"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert cli.main(words(tmp_path / "c", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("hypermask: ")
    assert error.count("\n") == 1
    assert said in error
    assert list(tmp_path.iterdir()) == []


def test_help_has_the_settings_of_the_methods(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", "--methods", "hypermask,supsup", "--help"])
    assert stopped.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "--density FLOAT" in printed
    assert "--extent" not in printed
    assert "training steps of a task (replaces epochs) [400]" in printed
    assert "[each method's]" in printed


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from hypermask_fast import cli

torch.set_num_threads(1)
root, words = Path(sys.argv[1]), sys.argv[2:]
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}

def killed(path, point):
    child = os.fork()
    if child == 0:
        seen = [0]
        def hook(event, args):
            if event in EVENTS and str(path) in str(args[0]):
                if seen[0] == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen[0] += 1
        sys.addaudithook(hook)
        assert cli.main([*words, "--out", str(path)]) == 0
        (root / "count").write_text(str(seen[0]))
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

assert not killed(root / "reference", -1)
count = int((root / "count").read_text())
points = [0, 9, count // 2, count - 6]
for point in points:
    path = root / str(point)
    assert killed(path, point), point
    assert cli.main([*words, "--out", str(path)]) == 0
    print("point", point, flush=True)
"""


@pytest.mark.long
def test_killed_at_any_moment_and_continued_gives_the_same_table(
    tmp_path: Path,
) -> None:
    few = ["--seeds", "1", "--steps", "2", "--log-every", "1"]
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path), *words(tmp_path, *few)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    points = re.findall(r"^point (\d+)$", done.stdout, re.MULTILINE)
    assert len(points) == 4
    expected = {path.relative_to(tmp_path / "reference") for path in files(tmp_path / "reference")}
    for point in points:
        assert table_of(tmp_path / point) == table_of(tmp_path / "reference")
        found = {path.relative_to(tmp_path / point) for path in files(tmp_path / point)}
        assert found == expected


def files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]
