"""Two and four processes, each with its rows of every batch, against one with all of them."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

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
    SHARED,
    SHORT,
    STOPS_AT,
    Conv,
    Found,
    accuracy_of,
    lost_in_a_step,
    lost_while_saving,
    process,
    script,
    trained,
)
from tests.support.started_group import Printed

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("parallel")]

SECONDS = 400
SHARED_FOLDERS = ("shared", "now-and-then", "parts", "later", "damaged", "full", "lost", "script")


class Started:
    """What processes left: their results, and the runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = [f"{r}.pt" for r in range(4)] + [p.name for p in sorted(folder.glob("lost-*.pt"))]
        self.ranks = [torch.load(folder / name, weights_only=False) for name in names]

    def of(self, name: Any) -> list[Any]:
        return [found[name] for found in self.ranks if found.get(name) is not None]

    def told(self, name: str) -> tuple[int, list[str]]:
        """The exit status of all processes, and their errors and warnings."""
        ended: list[Printed] = self.of(name)
        (status,) = {each.status for each in ended}
        lines = [line for each in ended for line in each.err.splitlines()]
        return status, [line for line in lines if line.startswith("hypermask")]


def ended(context: Any, target: Any, world: int, folder: Path) -> list[int]:
    """The exit codes of processes that were started together."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = [
        context.Process(target=target, args=(rank, store.port, str(folder)))
        for rank in range(world)
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
    return [child.exitcode for child in children]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Started:
    """One start for all, since it takes seconds."""
    folder = tmp_path_factory.mktemp("processes")
    context = mp.get_context("forkserver")
    # Imported once; torch.optim imports the second one at the first optimizer.
    needed = ["tests.support.parallel_cases", "torch._dynamo"]
    context.set_forkserver_preload([*needed, "hypermask_fast.files.row_checkpoint"])
    assert ended(context, process, 4, folder) == [0, 0, 0, -9]
    # Each in processes of its own: one that is there still lets others wait.
    assert ended(context, lost_while_saving, 3, folder) == [0, 0, -9]
    assert ended(context, lost_in_a_step, 2, folder) == [0, -9]
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


def assert_same_run(found: Path, expected: Path, lr: float = 1e-3) -> None:
    """Losses and weights of runs in float32 that sum a batch of 32 rows in other orders.

    A sum of n float32 numbers is off by at most n 2^-24 of their magnitudes: 2e-6 of a loss,
    and as much of a gradient, whose size Adam's steps of ``lr`` do not see: where a gradient
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
            torch.testing.assert_close(left[name], right[name], rtol=0, atol=2e-2 * lr, msg=name)
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
    assert made == {"whole", "stopped", "killed", *SHARED_FOLDERS}


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
    assert "processes from 4 to 1" in capsys.readouterr().err
    assert_same_run(folder, one)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that has the whole head of the runs whose processes share it."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert cli.main(["train", *SHARED, "--out", str(folder)]) == 0
    return folder


def assert_same_shared(found: Path, expected: Path) -> None:
    """As `assert_same_run`, and what is kept of each task; with it the test tells its subject."""
    assert_same_run(found, expected, lr=0.02)
    assert accuracy_of(expected)[-1].min() > 80  # of classes as 50 : 50
    for path in (expected / "learned").iterdir():
        kept = [load_file(folder / "learned" / path.name)["logits"] for folder in (found, expected)]
        torch.testing.assert_close(*kept, rtol=0, atol=2e-2)


def test_a_run_of_processes_that_share_the_head_is_that_of_one(
    started: Started, alone: Path
) -> None:
    first, *others = started.of("shared")
    assert [each.status for each in (first, *others)] == [0] * 4
    assert [(each.out, each.err) for each in others] == [("", "")] * 3
    assert "% of the time in exchanges" in first.err
    folder = started.folder / "shared"
    assert {p.name for p in folder.iterdir()} == {p.name for p in alone.iterdir()}
    assert_same_shared(folder, alone)
    ended = started.of("now and then")
    assert [each.status for each in ended] == [0] * 2
    assert_same_shared(started.folder / "now-and-then", alone)


def test_each_process_writes_its_rows_alone(started: Started, alone: Path) -> None:
    newest = checkpoint.latest(started.folder / "shared" / "checkpoints")
    whole = checkpoint.load_latest(alone / "checkpoints").tensors
    assert newest is not None
    first = load_file(newest / "tensors.safetensors")
    head = {"learner/hypernetwork.head.weight", "learner/hypernetwork.head.bias"}
    assert whole.keys() - first.keys() == head
    rows = sum(whole[name].nbytes for name in head) / 4
    for rank in range(4):
        (path,) = newest.glob(f"rows/__{rank}_*")
        assert rows * 0.9 < path.stat().st_size < rows + 2**13  # and their zip's own


@pytest.mark.parametrize("words", ["verify", "eval", "compare-runs"])
def test_a_run_of_processes_that_shared_the_head_is_used_by_one(
    started: Started, alone: Path, words: str
) -> None:
    folder = str(started.folder / "shared")
    others = [str(alone)] if words == "compare-runs" else []
    status = cli.main([words, folder, *others])
    assert status == (1 if words == "compare-runs" else 0)  # not bit by bit


def test_a_shared_head_goes_on_with_fewer_processes_and_with_one(
    started: Started, alone: Path
) -> None:
    for name, world in (("parts of 4", 4), ("parts of 2", 2)):
        status, lines = started.told(name)
        assert status == 128 + 15
        assert "stopped by SIGTERM, all steps saved" in lines[-1]
        assert len(started.of(name)) == world
    folder = started.folder / "parts"
    assert cli.main(["resume", str(folder)]) == 0
    assert_same_shared(folder, alone)


def test_a_whole_head_goes_on_divided(started: Started, alone: Path) -> None:
    status, _ = started.told("later")
    assert status == 0
    folder = started.folder / "later"
    newest = checkpoint.latest(folder / "checkpoints")
    assert newest is not None
    assert len(list(newest.glob("rows/__*"))) == 4
    assert_same_shared(folder, alone)


def test_rows_that_were_altered_are_told_once(started: Started) -> None:
    status, (line,) = started.told("damaged")
    assert status == 2
    assert re.search(r"rows/__1_0.distcp was altered: its SHA-256", line)
    assert "is older and whole: move" in line


def test_a_run_of_a_script_shares_a_head_and_goes_on_with_all_of_it(
    started: Started, tmp_path: Path
) -> None:
    assert ["start the script again, it continues" in each for each in started.of("script")] == [
        True,
        True,
    ]
    with pytest.warns(RuntimeWarning, match="processes from 2 to 1"):
        script(str(started.folder / "script"))
    script(str(tmp_path / "alone"))
    found, expected = (
        checkpoint.load_latest(path / "checkpoints")
        for path in (started.folder / "script", tmp_path / "alone")
    )
    assert found.step == expected.step
    for name, value in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], value, rtol=1e-10, atol=1e-10, msg=name)


def test_a_disk_of_one_process_that_is_full_is_told_once(started: Started) -> None:
    status, (line,) = started.told("full")
    assert status == 2
    assert re.search(r"cannot write .*step-000000008: .*No space left on device", line)
    assert not list((started.folder / "full" / "checkpoints").iterdir())


def test_a_shared_head_outlives_kills_in_a_step_and_while_it_is_saved(
    started: Started, alone: Path
) -> None:
    for name, world in (("lost 2", 3), ("lost 1", 2)):
        status, lines = started.told(name)
        assert status == 2
        assert lines[-1].startswith(
            f"hypermask: one of the {world} processes ended, so all of them end; go on with"
        )
    folder = started.folder / "lost"
    assert cli.main(["resume", str(folder)]) == 0
    assert_same_shared(folder, alone)


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
