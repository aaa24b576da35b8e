"""Comparisons that are refused, and leave all as it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hypermask_fast import cli
from hypermask_fast.errors import ConfigError, HypermaskError
from hypermask_fast.files.folder import FolderLock
from hypermask_fast.studies import comparison
from hypermask_fast.studies.comparison import compare
from tests.support.comparison_cases import (
    copy,
    quiet,
    short_comparison,
    words,
)
from tests.support.run_cases import contents


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
        "is not the folder of a comparison, it holds 'compare-pareto.csv'",
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


@pytest.mark.parametrize(
    ("more", "said"),
    [
        pytest.param(["--methods", "hypermsk"], "did you mean 'hypermask'", id="method"),
        pytest.param(["--methods", "hnet,hnet"], "'hnet' twice", id="twice"),
        pytest.param(["--seeds", "0"], "seeds=0", id="seeds"),
        pytest.param(["--preset", "split-minst"], "did you mean 'split-mnist'", id="preset"),
        pytest.param(["--budget-params", "0x"], "budget-params='0x' is no multiple", id="budget"),
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
