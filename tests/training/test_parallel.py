"""Two and four processes, each with its rows of every batch, against one with all of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hypermask_fast import cli
from hypermask_fast.errors import ConfigError
from hypermask_fast.files import checkpoint
from hypermask_fast.methods.base import Learner
from hypermask_fast.records.metrics_log import TIMED, read
from hypermask_fast.training.distributed.processes import Processes, joining
from hypermask_fast.training.distributed.started import local_device
from hypermask_fast.training.trainer import Trainer
from tests.support.parallel_cases import (
    CASES,
    IN_FOUR,
    SHORT,
    STOPS_AT,
    Conv,
    Found,
    Printed,
    process,
    trained,
)

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("parallel")]

SECONDS = 400


class Started:
    """What four processes left: their results, and the runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranks = [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(4)]

    def of(self, name: Any) -> list[Any]:
        return [found[name] for found in self.ranks if found.get(name) is not None]

    def told(self, name: str) -> tuple[int, list[str]]:
        """The exit status of all processes, and their errors and warnings."""
        ended: list[Printed] = self.of(name)
        (status,) = {each.status for each in ended}
        lines = [line for each in ended for line in each.err.splitlines()]
        return status, [line for line in lines if line.startswith("hypermask")]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Started:
    """One start for all, since it takes seconds."""
    folder = tmp_path_factory.mktemp("processes")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = mp.get_context("forkserver")
    # Imported once; torch.optim imports the second one at the first optimizer.
    context.set_forkserver_preload(["tests.support.parallel_cases", "torch._dynamo"])
    children = [
        context.Process(target=process, args=(rank, store.port, str(folder))) for rank in range(4)
    ]
    for child in children:
        child.start()
    end = time.monotonic() + SECONDS
    for child in children:
        child.join(max(0.0, end - time.monotonic()))
    late = [child for child in children if child.is_alive()]
    for child in late:
        child.kill()
    assert not late, f"the processes were not done after {SECONDS} seconds"
    assert [child.exitcode for child in children] == [0, 0, 0, -9]
    return Started(folder)


@pytest.mark.parametrize("name", CASES)
def test_processes_equal_one(started: Started, name: str) -> None:
    expected = trained(CASES[name])
    for world in (2, 4) if name in IN_FOUR else (2,):
        found: list[Found] = [of_world[name] for of_world in started.of(world)]
        assert len(found) == world
        for each in found:
            assert each.losses == found[0].losses
            np.testing.assert_allclose(each.losses, expected.losses, rtol=1e-10, atol=1e-12)
            np.testing.assert_array_equal(each.accuracy, expected.accuracy)
            for key, value in each.state.items():
                assert torch.equal(value, found[0].state[key]), key
                torch.testing.assert_close(
                    value, expected.state[key], rtol=1e-10, atol=1e-10, msg=key
                )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert cli.main(["train", *SHORT, "--out", str(folder)]) == 0
    return folder


def assert_same_run(found: Path, expected: Path) -> None:
    """Losses and weights of runs in float32 that sum a batch of 32 rows in other orders.

    A sum of n float32 numbers is off by at most n 2^-24 of their magnitudes: 2e-6 of a loss,
    and as much of a gradient, whose size Adam's 12 steps of 1e-3 do not see: where a gradient
    is not far above its own rounding its direction is as uncertain, so weights get 2 % of a step.
    """
    for a, b in zip(read(found / "metrics.jsonl"), read(expected / "metrics.jsonl"), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"task_name", *TIMED}:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-5, atol=1e-7)
    left, right = (checkpoint.load_latest(p / "checkpoints").tensors for p in (found, expected))
    assert left.keys() == right.keys()
    for name in left:
        if name.startswith("learner/"):
            torch.testing.assert_close(left[name], right[name], rtol=0, atol=2e-5, msg=name)
    accuracies = [np.load(p / "accuracy.npz")["accuracy"] for p in (found, expected)]
    np.testing.assert_array_equal(*accuracies)


def test_the_first_process_writes_and_prints(started: Started, one: Path) -> None:
    first, *others = started.of("whole")
    assert [each.status for each in (first, *others)] == [0] * 4
    assert [(each.out, each.err) for each in others] == [("", "")] * 3
    assert first.out.count("results: whole") == 1
    assert "4 processes: " in first.err
    assert "% of the time in exchanges" in first.err
    assert "a scaling efficiency of at most " in first.err
    names = {path.name for path in one.iterdir()}
    assert {path.name for path in (started.folder / "whole").iterdir()} == names
    assert_same_run(started.folder / "whole", one)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("again", "whole holds a run already"),
        ("few rows", "batch_size=3 has no row for each of 4 processes; give at least 4"),
        ("option", "option --stepz is unknown"),
        ("seeds", "--seeds is of several runs"),
        ("plan", "`hypermask plan` was started by torchrun in 2 processes"),
    ],
)
def test_an_error_is_told_once(started: Started, name: str, message: str) -> None:
    status, (line,) = started.told(name)
    assert status == 2
    assert message in line


def test_a_run_that_cannot_start_leaves_no_folder(started: Started) -> None:
    made = {path.name for path in started.folder.iterdir() if path.is_dir()}
    assert made == {"whole", "stopped", "killed"}


def test_a_signal_to_one_stops_all_with_one_checkpoint(started: Started, one: Path) -> None:
    status, (line,) = started.told("stopped")
    assert status == 128 + 15
    assert "stopped by SIGTERM, all steps saved; go on with `hypermask resume stopped`" in line


def test_a_run_goes_on_with_more_processes(started: Started, one: Path) -> None:
    status, (warning, *_) = started.told("resumed")
    assert status == 0
    assert "another environment, so not bit-identically: processes from 2 to 4" in warning
    assert_same_run(started.folder / "stopped", one)


def test_a_killed_process_ends_all_with_a_sentence_and_one_process_goes_on(
    started: Started, one: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, (line,) = started.told("killed")
    assert status == 2
    assert line.startswith(
        "hypermask: one of the 4 processes ended, so all of them end; go on with"
    )
    folder = started.folder / "killed"
    saved = checkpoint.load_latest_state(folder / "checkpoints")["trainer"]
    assert saved["step"] == STOPS_AT
    assert cli.main(["resume", str(folder)]) == 0
    assert "processes from 4 to None" in capsys.readouterr().err
    assert_same_run(folder, one)


def test_each_process_draws_its_own_dropout_and_none_after_it(started: Started) -> None:
    dropped, after = zip(*started.of("drawn"), strict=True)
    assert len(set(dropped)) == 4
    assert len(set(after)) == 1


def test_other_learners_are_refused_in_every_process(started: Started) -> None:
    for message in started.of("other"):
        assert "build the same learner in every process" in message


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (named | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device(torch.device("cuda")) == torch.device("cuda:1")
    assert local_device(torch.device("cpu")) == torch.device("cpu")
    assert taken == [1]
    with pytest.raises(ConfigError, match=r"device='cuda:1' is one GPU for 2 processes"):
        local_device(torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"there are 2 processes and 1 CUDA devices"):
        local_device(torch.device("cuda"))


def test_what_a_shared_step_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    with joining(Processes()):
        net = Conv(2)
        with pytest.raises(ConfigError, match="graph is True, and a step of 2 processes is none"):
            Trainer(Learner(net, 4), graph=True)
        with pytest.raises(ConfigError, match="compile is True, and the network's batch norms"):
            Trainer(Learner(net, 4), compile=True)
        status = Trainer(Learner(net, 4)).status()
    assert status["graph"] == "no: 2 processes exchange gradients within a step"
    assert status["compile"] == "no: batch norms of 2 processes exchange statistics"
