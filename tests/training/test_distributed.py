"""Two processes, each with half of every batch, against one process with the whole."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from hypermask_fast.training.distributed.own_loop import DistributedDataParallel
from hypermask_fast.training.step import TrainingStep
from tests.support.distributed_cases import (
    CASES,
    EXTRA,
    METHODS,
    STEPS,
    WIDTH,
    WORLD,
    Case,
    Run,
    as_floats,
    batch,
    factored,
    first_task_learned,
    in_one_process,
    learner_of,
    of_method,
    process,
    state_of,
)

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("distributed")]

SECONDS = 240


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes have of all cases; one start for all, since it takes seconds."""
    folder: Path = tmp_path_factory.mktemp("processes")
    context = mp.spawn(process, (str(folder),), nprocs=WORLD, join=False)
    end = time.monotonic() + SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for child in context.processes:
                child.kill()
            pytest.fail(f"the processes were not done after {SECONDS} seconds")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def assert_same(a: Run, b: Run, tolerance: float) -> None:
    assert a.state.keys() == b.state.keys()
    for name, value in a.state.items():
        torch.testing.assert_close(value, b.state[name], rtol=0, atol=tolerance, msg=name)
    assert a.losses == [pytest.approx(values, rel=tolerance, abs=tolerance) for values in b.losses]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(both: list[dict[str, Any]], name: str) -> None:
    assert_same(both[0][name], both[1][name], 0.0)
    assert_same(both[0][name], in_one_process(CASES[name]), 1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_steps_of_two_processes_equal_those_of_one(both: list[dict[str, Any]], name: str) -> None:
    expected = of_method(name, 0, alone=True)
    for rank in range(WORLD):
        found = both[rank][name]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-12, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_what_a_step_exchanges(both: list[dict[str, Any]], name: str) -> None:
    run, case = both[0][name], CASES[name]
    assert run.size <= sum(run.exchanged) <= case.parts * (2 * run.size + EXTRA)
    assert max(run.exchanged) < run.size * WIDTH / 4


def test_all_start_from_the_first_process_within_a_task(both: list[dict[str, Any]]) -> None:
    learner = learner_of(CASES["factored-adam"], 0)
    first_task_learned(learner)
    optimizer = factored(learner)
    losses = [
        as_floats(TrainingStep(learner, optimizer)(*batch(1, step), 1)) for step in range(STEPS)
    ]
    expected = Run(state_of(learner), losses, [], learner.hypernetwork.num_outputs)
    assert_same(both[0]["begun"], both[1]["begun"], 0.0)
    assert_same(both[0]["begun"], expected, 1e-12)


def test_two_forwards_may_precede_a_backward(both: list[dict[str, Any]]) -> None:
    assert [results["two"] for results in both] == [("", ""), ("", "")]


def test_other_buffers_follow_the_first_process(both: list[dict[str, Any]]) -> None:
    # Process 1 saw 1.0 in its first batch.
    assert [results["buffers"] for results in both] == [[0.0, 0.0], [0.0, 0.0]]


def test_the_learner_alone_exchanges_nothing(both: list[dict[str, Any]]) -> None:
    assert [results["alone"] for results in both] == [True, False]


def test_different_learners_are_refused_in_every_process(both: list[dict[str, Any]]) -> None:
    for results in both:
        kind, message = results["layout"]
        assert kind == "ValueError"
        assert message.startswith(
            "hypernetwork.chunk_embeddings is torch.float64 of shape (21, 32)"
        )
        assert "torch.float64 of shape (18, 32), requires_grad=True in process 1" in message


def test_a_batch_that_cannot_be_divided_is_refused(both: list[dict[str, Any]]) -> None:
    for results in both:
        kind, message = results["rows"]
        assert kind == "ValueError"
        assert "7 rows for 2 processes" in message


def test_a_process_outside_the_group_is_refused(both: list[dict[str, Any]]) -> None:
    assert both[0]["group"] == ("", "")
    assert both[1]["group"][0] == "RuntimeError"
    assert "process 1 is not in the process group" in both[1]["group"][1]


def test_without_processes_it_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no process group is initialised"):
        DistributedDataParallel(learner_of(Case(), 0))


def test_a_module_that_is_no_learner_is_refused() -> None:
    with pytest.raises(TypeError, match="learner is a Linear"):
        DistributedDataParallel(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_collectives_on_a_factored_gradient_are_those_of_the_dense_one(
    both: list[dict[str, Any]],
) -> None:
    for result in both:
        for name, (grad, dense) in result["collectives"].items():
            torch.testing.assert_close(grad, dense, msg=name)
