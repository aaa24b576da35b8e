"""A small campaign of kills and write faults, and that the campaign sees what it looks for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hypermask_fast import methods
from tests.campaign import faults, kills
from tests.campaign.__main__ import _RUNS, _shares
from tests.campaign.outcome import difference, names, outcome
from tests.campaign.processes import ROOT, Ended, Operation
from tests.campaign.undisturbed import Undisturbed, unsynced

needs_preload = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)


@needs_preload
@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "count_kills", "count_faults"),
    [("hypermask", 1, 4), pytest.param("all", 7, 14, marks=pytest.mark.slow)],
)
def test_killed_and_failed_runs_end_as_undisturbed_ones(
    method: str, count_kills: int, count_faults: int
) -> None:
    options = ["--method", method, "--kills", str(count_kills), "--faults", str(count_faults)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaign", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count_kills} kills, " in done.stdout
    assert f"{count_faults} faults, " in done.stdout
    assert done.stdout.endswith("s: 0 failed\n")


def test_what_is_asked_for_is_shared_among_the_methods() -> None:
    for count in (0, 3, 7, 100):
        assert sum(_shares(count, 7)) == count
        assert max(_shares(count, 7)) - min(_shares(count, 7)) <= 1
    learners = Path(methods.__file__).parent.glob("*/learner.py")
    known = {run.method.replace("-", "_") for run in _RUNS.values()}
    assert known >= {path.parent.name for path in learners} - {"replay"}


def steps(*lines: tuple[str, str]) -> list[Operation]:
    return [Operation(i, kind, path, "") for i, (kind, path) in enumerate(lines, start=1)]


_WRITTEN = (("open", "a/.tmp-x"), ("write", "a/.tmp-x"), ("fsync", "a/.tmp-x"))


@pytest.mark.parametrize(
    ("trace", "found"),
    [
        ([*_WRITTEN, ("rename", "a/.tmp-x"), ("fsync", "a")], []),
        ([*_WRITTEN[:2], ("rename", "a/.tmp-x"), ("fsync", "a")], ["a/.tmp-x"]),
        ([*_WRITTEN, ("rename", "a/.tmp-x"), ("mark", "")], ["the names in a at operation 5"]),
        ([*_WRITTEN, ("rename", "a/.tmp-x")], ["the names in a at the end"]),
        (
            [("open", "a/.tmp-d/x"), ("fsync", "a/.tmp-d/x"), ("rename", "a/.tmp-d"),
             ("fsync", "a")],
            ["a/.tmp-d"],
        ),
    ],
)  # fmt: skip
def test_what_is_renamed_before_it_is_on_the_disk_is_found(
    trace: list[tuple[str, str]], found: list[str]
) -> None:
    assert unsynced(steps(*trace)) == found


def test_kills_are_as_many_as_asked_for() -> None:
    for count in (0, 1, 5, 100):
        made = kills.cases(count, compiles=True)
        assert sum(case.kills for case in made) == count
    assert "compile" in {case.first for case in made}
    assert "compile" not in {case.first for case in kills.cases(100, compiles=False)}


def whole(*kinds: str) -> Undisturbed:
    trace = steps(*((kind, "a") for kind in kinds))
    return Undisturbed({}, set(), trace, 0, True, Path(), [])


def test_each_operation_fails_once_before_any_fails_twice() -> None:
    run = whole(*["open", "write", "mark", "fsync", "remove"] * 5)
    made = faults.faults(run, 20, seed=0)
    assert Counter(fault.operation.number for fault in made).most_common(1)[0][1] == 1
    every = faults.faults(run, 10**6, seed=0)
    assert len(set(every)) == len(every) == 5 * (3 + 4 + 3 + 1)
    assert set(faults.faults(run, 10**6, seed=7)) == set(every)
    assert len(faults.faults(run, 7, seed=0)) == 7
    assert faults.faults(run, 0, seed=0) == []


_KEPT = "hypermask: warning: cannot remove the old checkpoint c/step-1: error; remove it by hand\n"


@pytest.mark.parametrize(
    ("kind", "path", "status", "errors", "wrong"),
    [
        ("write", "a", 2, "task 1/2 a · step 1/3\nhypermask: cannot write x\n", False),
        ("write", "a", 2, "hypermask: cannot write x\nhypermask: warning: y\n", True),
        ("write", "a", 2, "Traceback (most recent call last):\nOSError\n", True),
        ("write", "a", 2, "hypermask: warning: y\n", True),
        ("write", "a", 1, "hypermask: cannot write x\n", True),
        ("write", "a", 0, "", True),
        ("write", "a", 2, "", True),
        ("write", "a", 0, _KEPT, True),
        ("remove", "c/step-1/x", 0, _KEPT, False),
        ("rename", "c/step-1", 0, _KEPT, False),
        ("rename", "c/step-1", 2, f"{_KEPT}hypermask: cannot write x\n", False),
        ("rename", "c/.tmp-step-1", 0, _KEPT, True),
    ],
)
def test_only_one_sentence_and_status_2_are_right_unless_an_old_checkpoint_stays(
    kind: str, path: str, status: int, errors: str, wrong: bool
) -> None:
    operation = Operation(1, kind, path, "")
    fault = faults.Fault("train", operation, "fail", 28)
    assert bool(faults.wrong_end(fault, Ended(status, errors, operation))) == wrong


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    from hypermask_fast.runs import run
    from hypermask_fast.settings.config import RunConfig

    small: dict[str, Any] = {"tasks": 1, "steps": 2, "mlp_hidden": (4,), "hidden": (3,)}
    run.train(RunConfig.from_preset("split-digits", device="cpu", **small), tmp_path / "a")
    return tmp_path / "a"


def test_every_difference_is_seen(finished: Path) -> None:
    expected, expected_names = outcome(finished), names(finished)
    assert difference(finished, expected, expected_names) == ""
    (finished / "left").touch()
    assert "left" in difference(finished, expected, expected_names)
    (finished / "left").unlink()
    for path in sorted(finished.rglob("*.*")):
        if path.suffix not in (".jsonl", ".csv", ".npz", ".safetensors", ".toml"):
            continue
        before = path.read_bytes()
        middle = len(before) // 2
        path.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
        assert re.search("differ|cannot be read", difference(finished, expected, expected_names))
        path.write_bytes(before)
    assert difference(finished, expected, expected_names) == ""
