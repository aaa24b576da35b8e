"""Two and four processes that share a head, against one that has it all."""

from __future__ import annotations

import json
import multiprocessing
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypermask_fast as hmf
from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.head.shard import Place, RowShard
from hypermask_fast.hypernetworks.sharded import full_hypernetwork, sharing_among
from hypermask_fast.runs import run as runs
from hypermask_fast.settings.config import RunConfig
from tests.support.sharded_cases import (
    CASES,
    IN_TWO,
    RESHARDED,
    WIDTH,
    WORLD,
    Run,
    begun,
    learner_of,
    process,
    run,
    states_of,
)

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("sharded")]

SECONDS = 240
N = 103
FOUR, TWO, ONE = range(4), range(2), range(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What all processes have of all cases; they are forked from one that imported PyTorch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.sharded_cases"])
    children = [context.Process(target=process, args=(rank, str(folder))) for rank in range(WORLD)]
    for child in children:
        child.start()
    end = time.monotonic() + SECONDS
    for child in children:
        child.join(max(0.0, end - time.monotonic()))
    for child in children:
        if child.exitcode is None:
            child.kill()
    assert [child.exitcode for child in children] == [0] * WORLD
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def joined(states: list[dict[str, Tensor]], whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows of the processes put together, where a tensor of one process has more."""
    result = {}
    for name, value in whole.items():
        parts = [state[name] for state in states]
        dims = [d for d in range(value.dim()) if parts[0].shape[d] != value.shape[d]]
        if dims:
            result[name] = torch.cat(parts, dims[0])
        elif name == "task/frozen_gram":
            result[name] = sum(parts)
        else:
            assert all(torch.equal(part, parts[0]) for part in parts), name
            result[name] = parts[0]
    return result


def joined_run(found: list[dict[str, Any]], name: str, processes: int, whole: Run) -> Run:
    runs: list[Run] = [results[f"{processes}/{name}"] for results in found[:processes]]
    for each in runs:
        losses = (torch.tensor(of.losses) for of in (each, runs[0]))
        torch.testing.assert_close(*losses, rtol=0, atol=0, equal_nan=True)
        assert all(torch.equal(each.shown[k], value) for k, value in runs[0].shown.items())
    return Run(joined([each.state for each in runs], whole.state), *runs[0][1:])


@lru_cache
def in_one_process(name: str) -> Run:
    return run(CASES[name], learner_of(CASES[name]))


EQUAL = [(4, n) for n, case in CASES.items() if case.dtype == torch.float64]
EQUAL += [(2, n) for n in IN_TWO]


@pytest.mark.parametrize(("processes", "name"), EQUAL)
def test_processes_equal_one(found: list[dict[str, Any]], name: str, processes: int) -> None:
    whole = in_one_process(name)
    both = joined_run(found, name, processes, whole)
    for a, b in zip(both[:2], whole[:2], strict=True):
        assert a.keys() == b.keys()
        for tensor, value in b.items():
            torch.testing.assert_close(a[tensor], value, rtol=1e-10, atol=1e-10, msg=tensor)
    for own, expected in zip(both.losses, whole.losses, strict=True):
        assert own == pytest.approx(expected, rel=1e-10, abs=1e-10, nan_ok=True)


def test_float32_is_as_near_to_float64_as_one_process(found: list[dict[str, Any]]) -> None:
    case = CASES["float32"]
    whole = in_one_process("float32")
    exact = run(case._replace(rounds=True), learner_of(case).double())
    both = joined_run(found, "float32", WORLD, whole)

    def error(of: Run) -> float:
        parts = (of.state[name].double() - value for name, value in exact.state.items())
        return max(float(part.abs().max()) for part in parts if part.numel())

    assert error(both) <= 4 * error(whole) + N * 2**-23


@pytest.mark.parametrize("name", RESHARDED)
def test_a_checkpoint_of_four_loads_in_any_number(found: list[dict[str, Any]], name: str) -> None:
    whole, optimizer = begun(RESHARDED[name], None)
    like = states_of(whole, optimizer)
    saved = joined([results[f"{name}/saved"] for results in found], like)
    for processes, ranks in (("4", FOUR), ("2", TWO), ("1", ONE)):
        state = joined([found[rank][f"{name}/{processes}"]["before"] for rank in ranks], like)
        for tensor, value in saved.items():
            if tensor == "task/frozen_gram":
                torch.testing.assert_close(state[tensor], value, rtol=1e-14, atol=1e-14)
            else:
                assert torch.equal(state[tensor], value), (processes, tensor)
    # One process's, in four: the one that saved was seeded alike and had the same batches.
    state = joined([found[rank][f"{name}/of one"]["before"] for rank in FOUR], like)
    for tensor, value in like.items():
        assert torch.equal(state[tensor], value) or tensor == "task/frozen_gram", tensor


@pytest.mark.parametrize("name", RESHARDED)
def test_all_go_on_alike(found: list[dict[str, Any]], name: str) -> None:
    one = found[0][f"{name}/1"]
    for processes, ranks in (("4", FOUR), ("2", TWO), ("of one", FOUR)):
        others = [found[rank][f"{name}/{processes}"] for rank in ranks]
        state = joined([other["after"] for other in others], one["after"])
        for tensor, value in one["after"].items():
            torch.testing.assert_close(state[tensor], value, rtol=1e-10, atol=1e-10, msg=tensor)
        for other in others:
            for own, expected in zip(other["losses"], one["losses"], strict=True):
                assert own == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_a_step_exchanges_two_n_numbers(found: list[dict[str, Any]]) -> None:
    most = -(-N // WORLD)
    for results in found:
        calls = results["exchanged"]
        assert calls["begin"] == []
        assert calls["forward"] == [("gather", most)]
        # The logits, their gradients with a flag for each process, the regularizer, (t + 1) x H.
        assert calls["step"] == [
            ("gather", most),
            ("to all", WORLD * (most + 1)),
            ("gather", 1),
            ("gather", 2 * WIDTH),
        ]


def test_one_entry_that_is_not_finite_is_seen_in_all_processes(
    found: list[dict[str, Any]],
) -> None:
    means = [results["means"] for results in found]
    # Of 1, 2, 3 and 4 times the numbers from 0 on.
    expected = torch.arange(22.0, dtype=torch.float64).view(2, 11) * 2.5
    assert torch.equal(torch.cat([mean for mean, _ in means], 1), expected)
    assert [bool(mean.isfinite().all()) for mean, _ in means] == [True] * WORLD
    assert [bool(broken.isfinite().all()) for _, broken in means] == [False] * WORLD


def test_no_process_ever_makes_the_whole_head(found: list[dict[str, Any]]) -> None:
    rows = -(-N // WORLD)
    for results in found:
        # Own rows and a column; nothing is of 103 x 20.
        assert (rows - 1) * WIDTH <= results["largest"][0] <= 2 * rows * WIDTH + N
        assert torch.equal(results["largest"][1], found[0]["largest"][1])


def test_what_fails_in_one_process_fails_in_all(found: list[dict[str, Any]], folder: Path) -> None:
    for results in found:
        errors = results["refused"]
        assert errors["seed"][0] == "ConfigError"
        assert "process 3 draws other random numbers than process 0" in errors["seed"][1]
        assert errors["taken"][0] == "CheckpointError"
        assert "exists and holds no checkpoint" in errors["taken"][1]
        assert errors["file"][0] == "ConfigError"
        assert "call save_sharded() in all processes" in errors["file"][1]
        assert "does not exist" in errors["missing"][1]
        assert errors["damaged"][0] == "CheckpointError"
        assert "was altered: its SHA-256" in errors["damaged"][1]
        assert errors["tasks"][0] == "ValueError"
        assert "in process 3" in errors["tasks"][1]
    assert (folder / "taken" / "mine").read_text() == "mine"
    assert not list(folder.glob(".tmp-*"))


@pytest.mark.parametrize(("size", "world"), [(1, 1), (7, 1), (7, 3), (64, 2), (103, 3)])
def test_rows_are_drawn_as_one_process_draws_them(
    size: int, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypermask_fast.head.shard._DRAWN", 10)
    torch.manual_seed(3)
    whole = nn.Linear(4, size)
    state, rows = torch.get_rng_state(), []
    for rank in range(world):
        torch.manual_seed(3)
        with sharing_among(Place(rank, world)), monkeypatch.context() as patch:
            patch.setattr(
                "hypermask_fast.hypernetworks.sharded.ShardedHypernetwork._check_alike",
                lambda *_: None,
            )
            patch.setattr(torch, "randn", torch.zeros)
            made = full_hypernetwork(size, embedding_dim=4, hidden=(), capacity=1)
        rows.append(made.head)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.cat([head.weight for head in rows]), whole.weight)
    assert torch.equal(torch.cat([head.bias for head in rows]), whole.bias)


def net() -> nn.Module:
    return hmf.networks.MLP(4, (3,), 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: hmf.HyperMask(net(), head="chunked"), "a HyperMask with head='chunked' is"),
        (lambda: hmf.HNET(net(), head="full"), "a HNET with head='full' is"),
        (lambda: hmf.SupSup(net()), "0 heads were made"),
        (lambda: hmf.HyperMask(net().bfloat16()), r"a head of torch.bfloat16"),
        (lambda: hmf.HyperMask(nn.Linear(1, 1)), "a head of 2 rows cannot be divided among 3"),
    ],
)
def test_what_cannot_be_divided_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message), sharing_among(Place(0, 3)):
        build()


def test_without_processes_it_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no process group is initialised"), hmf.sharded_head():
        pass


def test_a_kill_while_it_is_replaced_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    learner = hmf.HyperMask(net())
    path = tmp_path / "state"
    hmf.save_sharded(path, learner)
    path.rename(tmp_path / ".replaced-state")
    (tmp_path / ".tmp-state").mkdir()
    hmf.load_sharded(path, learner)
    hmf.save_sharded(path, learner)
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    index = json.loads((path / "index.json").read_text())
    assert set(index["files"]) == {p.name for p in path.iterdir()} - {"index.json"}


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    hmf.save_sharded(tmp_path / "state", hmf.HyperMask(net()))
    other = hmf.HyperMask(hmf.networks.MLP(5, (3,), 2))
    before = {name: p.clone() for name, p in other.named_parameters()}
    with pytest.raises(CheckpointError, match=r"hidden\.0\.weight"):
        hmf.load_sharded(tmp_path / "state", other)
    assert all(torch.equal(p, before[name]) for name, p in other.named_parameters())


def test_rows_are_those_of_torch_chunk() -> None:
    for size, world in ((103, 4), (8, 4), (7, 3)):
        expected = [len(part) for part in torch.arange(size).chunk(world)]
        assert [RowShard(size, Place(r, world)).rows for r in range(world)] == expected


def test_processes_that_do_not_train_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Place, "all", lambda place, value: [value] * place.world)
    with sharing_among(Place(0, 2)):
        learner = hmf.HyperMask(net())
    with pytest.raises(ConfigError, match=r"rows 0 to 11 of 23, process 0 of 2 of a head"):
        hmf.Run(tmp_path / "run", hmf.Trainer(learner, steps=1, progress=False))
    started = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    config = RunConfig.from_preset("split-digits", shard_head=True)
    with pytest.raises(
        ConfigError, match="4 processes that torchrun started do not train together"
    ):
        runs.train(config, tmp_path / "other")
    assert not list(tmp_path.iterdir())
