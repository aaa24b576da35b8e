"""Commands by a second name: a run that train continues, and runs that compare looks at."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypermask_fast import cli
from hypermask_fast.runs import run
from tests.support.run_cases import assert_same_run, contents, short, stopped


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two_names") / "whole"
    run.train(short(), path, show_progress=False)
    return path


def test_train_goes_on_where_a_run_stopped(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    stopped(short(), path)
    assert cli.main(["compare", str(path), str(whole)]) == 1
    assert "different: weights" in capsys.readouterr().out
    assert cli.main(["train", "--resume", str(path), "--quiet"]) == 0
    assert f"results: {path}" in capsys.readouterr().out
    assert_same_run(path, whole)
    assert cli.main(["compare", str(path), str(whole)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("bitwise identical: weights, optimizer, RNG, metrics")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param("train --resume {} --steps 3", "--steps is of a new run", id="setting"),
        pytest.param("train --resume={} --out x", "--out is of a new run", id="folder"),
        pytest.param("train --allow-changes", "--allow-changes is for a run that", id="changes"),
        pytest.param("train --against-run {}", "is for several processes", id="against"),
        pytest.param("train --against-run {} --seeds 2", "is for one run of", id="seeds"),
        pytest.param(
            "compare --methods hnet --benchmark split-digits --preset=split-digits",
            "--preset and --benchmark are names of one setting",
            id="preset",
        ),
        pytest.param("compare {}", "is no pair of runs", id="one"),
        pytest.param("compare {} {} --steps 3", "--steps is for methods", id="trained"),
    ],
)
def test_what_does_not_go_together_is_refused(
    whole: Path, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    before = contents(whole)
    assert cli.main([word.format(whole) for word in words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert contents(whole) == before
