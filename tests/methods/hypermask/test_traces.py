"""A learner and the public operations under what traces them, or gives shapes for numbers."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hypermask_fast.backends.choice import backend
from tests.support.trace_cases import OPERATIONS, TRACERS, OneTask, losses_and_step, make

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # Sizes become constants in a trace, which is said for each.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("case", ["fake_inside", "fake_inputs", "fake_update", "default_device"])
def test_no_tensor_without_memory_reaches_native_code(case: str) -> None:
    # In a process of its own: native code that is given none ends it.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.trace_cases", case],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr[-2000:]


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_traced_operation_gives_the_numbers_of_other_inputs(operation: str, tracer: str) -> None:
    function, shapes = OPERATIONS[operation]
    traced = TRACERS[tracer](function, *(torch.randn(shape) for shape in shapes))
    inputs = [torch.randn(shape) for shape in shapes]
    torch.testing.assert_close(traced(*inputs), function(*inputs))


def exported(strict: bool) -> Callable[..., Callable[..., Any]]:
    return lambda module, x: torch.export.export(module, (x,), strict=strict).module()


@pytest.mark.parametrize(
    "tracer",
    [
        pytest.param(TRACERS["make_fx-real"], id="make_fx"),
        pytest.param(TRACERS["jit"], id="jit"),
        pytest.param(TRACERS["functionalize"], id="functionalize"),
        pytest.param(exported(False), id="export"),
        pytest.param(exported(True), id="export-strict"),
    ],
)
def test_a_traced_learner_gives_the_numbers_of_other_inputs_and_parameters(
    tracer: Callable[..., Any],
) -> None:
    learner = make()
    traced = tracer(OneTask(learner), torch.randn(4, 5))
    x = torch.randn(4, 5)
    torch.testing.assert_close(traced(x), learner(x, 1))
    with torch.no_grad():
        learner.hypernetwork.embeddings.add_(0.5)
    torch.testing.assert_close(traced(x), learner(x, 1))


@pytest.mark.parametrize("with_gradients", [False, True])
def test_a_forward_compiles_to_one_graph(with_gradients: bool) -> None:
    learner, x = make(), torch.randn(4, 5)
    compiled = torch.compile(lambda x: learner(x, 1), fullgraph=True, backend="eager")
    with torch.set_grad_enabled(with_gradients):
        torch.testing.assert_close(compiled(x), learner(x, 1))


def test_a_saved_trace_needs_nothing_of_this_package(tmp_path: Path) -> None:
    learner, x = make(), torch.randn(4, 5)
    torch.jit.trace(OneTask(learner), (x,)).save(str(tmp_path / "learner.pt"))
    loaded = torch.jit.load(str(tmp_path / "learner.pt"))
    torch.testing.assert_close(loaded(x), learner(x, 1))


def test_operations_are_counted() -> None:
    learner, x = make(), torch.randn(4, 5)
    with backend("reference"), FlopCounterMode(display=False) as wanted:
        learner(x, 0).sum().backward()
    with FlopCounterMode(display=False) as found:
        learner(x, 0).sum().backward()
    # Of the products, those with the head are 2 * 39 * 6 each.
    assert found.get_total_flops() == wanted.get_total_flops() > 4 * 39 * 6


def test_a_counted_step_has_the_numbers_of_others() -> None:
    learner = make().double()
    twin = make().double()
    twin.load_state_dict(learner.state_dict())
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    for task in (0, 1):
        with FlopCounterMode(display=False):
            found = losses_and_step(learner, x, y, task)
        for a, b in zip(found, losses_and_step(twin, x, y, task), strict=True):
            torch.testing.assert_close(a + 0, b + 0)
    for a, b in zip(learner.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_meta_device_gives_shapes() -> None:
    learner = make().to("meta")
    x: Tensor = torch.randn(4, 5, device="meta")
    y = torch.zeros(4, dtype=torch.int64, device="meta")
    assert learner(x, 0).shape == (4, 3)
    found = losses_and_step(learner, x, y, 0)
    assert all(value.is_meta for value in found)
    for task in (torch.tensor(0, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")):
        with pytest.raises(ValueError, match=r"on meta, whose values cannot be read here; give an"):
            learner(x, task)
