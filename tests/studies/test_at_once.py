"""Runs at once in processes of their own: one that fails loses no other, a signal stops all."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hypermask_fast import cli
from hypermask_fast.errors import ConfigError, DataError, Stopped, TrainingError
from hypermask_fast.records import accuracy_files, validated
from hypermask_fast.runs import run
from hypermask_fast.studies import apart, jobs, seeds
from hypermask_fast.studies.apart import Job, Pruned, alone, at_once
from hypermask_fast.studies.jobs import Share
from tests.support.run_cases import assert_same_run, short

MATRIX = np.array([[50.0, 50.0], [90.0, 50.0], [80.0, 70.0]])


def plan_needs_100(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of four cores, and runs that need 100 bytes each."""
    monkeypatch.setattr(jobs, "cores", lambda: 4)
    monkeypatch.setattr(
        jobs,
        "plan",
        lambda config, memory: SimpleNamespace(needed=lambda resuming: 100, available=memory),
    )


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Trains seeds whose processes do what they are told; each has its accuracies already."""
    monkeypatch.setattr(apart, "_WORKER", "tests.support.stub_worker")
    plan_needs_100(monkeypatch)
    path = tmp_path / "set"

    def train(*deeds: str, **options: Any) -> Any:
        path.mkdir()
        names = [f"seed-{4 + i}" for i in range(len(deeds))]
        (path / "deeds.json").write_text(json.dumps(dict(zip(names, deeds, strict=True))))
        record = {"seeds": len(deeds), "settings": short(seed=4).to_toml()}
        record["sha256"] = seeds._digest(record["settings"], len(deeds), None)
        (path / "seeds.json").write_text(json.dumps(record))
        for name, deed in zip(names, deeds, strict=True):
            (path / name).mkdir()
            if deed != "not begun":
                (path / name / "config.toml").write_text("")
            if deed in ("ends", "learns"):
                accuracy_files.write_accuracy(path / name, MATRIX, ["a", "b"])
        return seeds.resume(path, **{"jobs": len(deeds), "say": print, **options})

    return train


def test_a_run_that_fails_or_is_killed_loses_no_other(
    begin: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed: dict[int, Exception] = {}
    results = begin("killed", "ends", "diverges", "silent", failed=failed.__setitem__)
    (result,) = results
    assert result.folder.name == "seed-5"
    np.testing.assert_array_equal(result.accuracy, MATRIX)
    assert {seed: type(error) for seed, error in failed.items()} == dict.fromkeys(
        (4, 6, 7), TrainingError
    )
    folder = tmp_path / "set"
    assert str(failed[4]) == (
        f"the process of {folder / 'seed-4'} was ended by SIGKILL, as the system does where memory "
        f"is short; go on with `hypermask resume {folder / 'seed-4'}`"
    )
    assert str(failed[6]) == "the loss is nan"
    assert "ended with the status 0 and no result" in str(failed[7])
    # Of four cores each of four has one.
    printed = capsys.readouterr().out.splitlines()
    assert sorted(printed) == [f"seed {seed}: threads 1" for seed in (4, 5, 6, 7)]
    found = json.loads((folder / "summary.json").read_text())
    states = {row["seed"]: row["state"] for row in found["runs"]}
    assert states[5] == "ended"
    assert states[6] == "failed: the loss is nan"
    assert (found["ended"], found["figures"]["acc_final"]["mean"]) == (1, 75.0)


def test_a_failure_of_all_runs_stops_them(begin: Callable[..., Any]) -> None:
    begun = time.monotonic()
    with pytest.raises(DataError, match="a file is missing"):
        list(begin("waits", "no data", failed=lambda *_: None))
    assert time.monotonic() - begun < 60  # the one that waits was stopped
    assert threading.active_count() < 10


def test_a_signal_stops_all_and_names_their_folder(
    begin: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "set"

    def interrupt() -> None:
        while not all((folder / f"seed-{s}/waits").exists() for s in (4, 5)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    results = begin("waits", "waits", "waits", jobs=2)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Stopped, match=f"`hypermask resume {folder}`") as caught:
        list(results)
    thread.join()
    assert caught.value.exit_status == 128 + signal.SIGTERM
    assert not (folder / "seed-6/waits").exists()  # none began after it
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_whoever_watches_ends_a_run(begin: Callable[..., Any], tmp_path: Path) -> None:
    begin("learns", "ends")
    made = [
        Job(name=f"seed {s}", config=short(seed=s), folder=tmp_path / f"set/seed-{s}", threads=1)
        for s in (4, 5)
    ]
    seen: list[int] = []

    def goes(job: Job, learned: int) -> bool:
        seen.append(learned)
        return learned < 2

    ends = {
        outcome.job.name: outcome.end
        for outcome in at_once(map(alone, made), 2, say=print, goes=goes)
    }
    assert isinstance(ends["seed 4"], Pruned)
    assert not isinstance(ends["seed 5"], Exception)
    assert seen[:2] == [1, 2]


def test_a_run_in_a_process_of_its_own_is_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The process itself: its numbers, its lines, its answers, and what a watcher costs it."""
    config = short(seed=4, lr=1e-2)
    run.train(config, tmp_path / "here", show_progress=False)
    job = Job(
        name="seed 4",
        config=config,
        folder=tmp_path / "apart",
        threads=torch.get_num_threads(),
        validates=True,
    )
    learned: list[int] = []
    lines: list[str] = []

    def goes(_: Job, done: int) -> bool:
        learned.append(done)
        return True

    (outcome,) = at_once([alone(job)], 1, say=lines.append, goes=goes)
    assert not isinstance(outcome.end, Exception)
    assert_same_run(tmp_path / "here", tmp_path / "apart")
    assert learned == [1, 2]
    assert any(line.startswith("seed 4: task 2/2 digits 2/3, step 6/6") for line in lines)
    assert capfd.readouterr() == ("", "")
    trainer = run.load(tmp_path / "here")
    now = [trainer.evaluate(task, "validation") for task in (0, 1)]
    assert validated.read(tmp_path / "apart")[1] == now


@pytest.mark.parametrize(
    ("runs", "given", "memory", "expected"),
    [
        pytest.param(5, None, None, Share(4, 1, None), id="a-core-each"),
        pytest.param(2, None, None, Share(2, 2, None), id="two-cores-each"),
        pytest.param(5, 1, 10, Share(1, 4, 10), id="one"),
        pytest.param(5, None, 399, Share(3, 1, 133), id="what-fits"),
        pytest.param(5, None, 99, Share(1, 4, 99), id="none-fits"),
        pytest.param(5, 2, 399, Share(2, 2, 199), id="two"),
    ],
)
def test_shares_of_a_machine(
    monkeypatch: pytest.MonkeyPatch,
    runs: int,
    given: int | None,
    memory: int | None,
    expected: Share,
) -> None:
    plan_needs_100(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert jobs.share(short(), runs, given, memory) == expected


def test_more_at_once_than_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan_needs_100(monkeypatch)
    with pytest.raises(ConfigError, match=r"jobs=4: 4 runs at once need 4 x .*; give --jobs 3"):
        jobs.share(short(), 5, 4, 399)


def test_jobs_that_make_no_sense_are_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "x"), "--device", "cpu"]
    assert cli.main(["train", *out, "--jobs", "2"]) == 2
    assert "--jobs 2 is for runs of several seeds; give --seeds too" in capsys.readouterr().err
    assert cli.main(["train", *out, "--seeds", "2", "--jobs", "0"]) == 2
    assert "jobs=0 is out of range; give at least 1" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
