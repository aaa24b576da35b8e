"""Comparisons that are stopped or killed, and continued."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hypermask_fast import cli
from hypermask_fast.errors import Stopped
from hypermask_fast.studies.comparison_files import FILES, RUNS
from tests.support.comparison_cases import (
    assert_same,
    copy,
    quiet,
    short_comparison,
    table_of,
    words,
)
from tests.support.run_cases import signal_at, stopped


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
    signal_at(3, monkeypatch)
    path = tmp_path / "c"
    with pytest.raises(Stopped, match=f"`hypermask resume {re.escape(str(path))}`") as error:
        quiet(path)
    assert error.value.exit_status == 128 + signal.SIGTERM


_KILLED = """
import sys
from pathlib import Path
import torch
from hypermask_fast import cli
from tests.support.killed import killed

torch.set_num_threads(1)
root, words = Path(sys.argv[1]), sys.argv[2:]

def train(path):
    assert cli.main([*words, "--out", str(path)]) == 0

whole = root / "reference"
assert not killed(whole, -1, lambda: train(whole))
count = int((root / "count").read_text())
points = [0, 9, count // 2, count - 6]
for point in points:
    path = root / str(point)
    assert killed(path, point, lambda: train(path)), point
    train(path)
    print("point", point, flush=True)
"""


@pytest.mark.long
def test_killed_at_any_moment_and_continued_gives_the_same_table(
    tmp_path: Path,
) -> None:
    few = ["--seeds", "1", "--steps", "2", "--log-every", "1"]
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path), *words(tmp_path, *few)],
        cwd=Path(__file__).parents[2],
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
