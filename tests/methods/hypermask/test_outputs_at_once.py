"""Outputs of several tasks in one forward on the kernels, against the tasks one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast import backend, explain
from hypermask_fast.backends import choice, proof
from hypermask_fast.kernels import ops, tuning
from hypermask_fast.methods.hypermask import masks
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from tests.support.hypermask_cases import make
from tests.support.kernel_checks import assert_as_exact

pytest.importorskip("triton")

from hypermask_fast.kernels.layers import linear

IDS = torch.tensor([2, 0, 2, 2, 1])
FORWARDS: dict[str, Callable[[HyperMask, Tensor], Tensor]] = {
    "all": lambda learner, x: learner.all_outputs(x),
    "mixed": lambda learner, x: learner(x, IDS.to(x.device)),
    "single": lambda learner, x: learner(x, 1),
}
each_forward = pytest.mark.parametrize("name", FORWARDS)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Send what goes to the kernels on CUDA there; collect rank of the logits, and if mixed."""
    seen: list[tuple[int, bool]] = []

    def multiply(*args: Any, _own: Callable[..., Tensor] = linear._multiply) -> Tensor:
        seen.append((args[3].dim(), len(args) == 7 and args[6] is not None))
        return _own(*args)

    monkeypatch.setattr(linear, "_multiply", multiply)
    monkeypatch.setattr(ops, "masked_linear", ops._linear_kernel)
    monkeypatch.setattr(choice, "_why_no_kernel", lambda op, tensor: None)
    monkeypatch.setattr(proof, "why_left_out", lambda op, device, *, forced: None)
    return seen


def learner_of(device: torch.device, net: nn.Module | None = None, **options: Any) -> HyperMask:
    """Three tasks, two of which have fewer classes than outputs."""
    learner = make(net or MLP(6, (7, 5), 4), tasks=0, sparsity=35.0, **options)
    for classes in (range(4), range(2), range(3)):
        learner.add_task(classes=list(classes))
    with torch.no_grad(), backend("reference"):
        learner.eval()(torch.randn(2, 6), 0)
    return learner.to(device)


def one_by_one(learner: HyperMask, x: Tensor, name: str) -> Tensor:
    with torch.no_grad(), backend("reference"):
        if name == "all":
            return torch.stack([learner(x, task) for task in range(3)])
        if name == "single":
            return learner(x, 1)
        return torch.cat([learner(x[i : i + 1], int(task)) for i, task in enumerate(IDS)])


def assert_right(found: Tensor, learner: HyperMask, x: Tensor, name: str) -> None:
    """Check against float64, and which outputs are no class of the task."""
    plain = one_by_one(learner, x, name)
    exact = one_by_one(copy.deepcopy(learner).double(), x.double(), name)
    foreign = plain.isinf()
    assert found.shape == plain.shape
    assert torch.equal(found.isinf(), foreign)
    assert_as_exact(*(t.masked_fill(foreign, 0) for t in (found, plain, exact)))


NETWORKS = [
    pytest.param(lambda: MLP(6, (7, 5), 4), {}, id="mlp"),
    pytest.param(lambda: MLP(6, (7, 5), 4, bias=False), {}, id="no-bias"),
    pytest.param(lambda: MLP(6, (7, 5), 4), {"exclude": "hidden.1.bias"}, id="excluded-bias"),
    pytest.param(lambda: MLP(6, (7, 5), 4), {"exempt": "hidden.0.bias"}, id="other-exempt"),
    pytest.param(
        lambda: nn.Sequential(
            *(nn.Linear(6, 7), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4)),
        ),
        {"head": "chunked", "chunk_size": 40, "chunk_embedding_dim": 2},
        id="sequential-chunked",
    ),
]


@each_forward
@pytest.mark.parametrize(("net", "options"), NETWORKS)
def test_outputs_are_those_of_the_tasks_one_by_one(
    net: Callable[[], nn.Module],
    options: dict[str, Any],
    name: str,
    launches: list[tuple[int, bool]],
    device: torch.device,
) -> None:
    learner, x = learner_of(device, net(), **options), torch.randn(5, 6, device=device)
    with torch.no_grad(), backend("triton"):
        found = FORWARDS[name](learner, x)
    first = {"all": (3, False), "mixed": (3, True), "single": (2, False)}[name]
    others = (2, False) if name == "single" else (3, True)
    assert launches == [first, others, others]
    assert_right(found, learner, x, name)


@each_forward
def test_layers_keep_what_they_had(
    name: str, launches: list[tuple[int, bool]], device: torch.device
) -> None:
    learner, x = learner_of(device), torch.randn(5, 2, 3, device=device)
    plain = learner.net(x)
    with torch.no_grad(), backend("triton"):
        FORWARDS[name](learner, x)
    assert launches
    assert torch.equal(learner.net(x), plain)


@each_forward
@pytest.mark.parametrize(("alternative_ms", "taken"), [(1.1, True), (0.9, False), (None, False)])
def test_auto_takes_it_where_the_table_says_so(
    alternative_ms: float | None,
    taken: bool,
    name: str,
    launches: list[tuple[int, bool]],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, int]] = []

    def measured(kernel: str, device: torch.device, **sizes: int) -> dict[str, Any] | None:
        if "rows" not in sizes:
            return None
        asked.append((kernel, sizes["rows"]))
        return alternative_ms and {"ms": 1.0, "alternative_ms": alternative_ms, "config": {}}

    learner, x = learner_of(device), torch.randn(5, 6, device=device)
    monkeypatch.setattr(tuning, "knows", lambda device: True)
    monkeypatch.setattr(tuning, "measured", measured)
    monkeypatch.setattr(tuning, "_table", dict)
    monkeypatch.setattr("hypermask_fast.masks.cuda.runs", lambda request: False)
    with torch.no_grad():
        found = FORWARDS[name](learner, x)
    assert bool(launches) is taken
    # Rows of one task, and no gradients: the forward kernel alone.
    assert asked[0] == ("masked_linear", 2 if name == "mixed" else 5)
    assert {kernel for kernel, _ in asked} == {"masked_linear"}
    if taken:
        assert_right(found, learner, x, name)


@each_forward
def test_a_cpu_runs_the_tasks_one_by_one_to_the_bit(name: str) -> None:
    learner, x = learner_of(torch.device("cpu")), torch.randn(5, 6)
    with torch.no_grad():
        found = FORWARDS[name](learner, x)
        if name == "mixed":
            expected = torch.empty_like(found)
            for task in range(3):
                expected[task == IDS] = activated(learner, x[task == IDS], task)
        else:
            tasks = [1] if name == "single" else range(3)
            expected = torch.stack([activated(learner, x, task) for task in tasks])
            expected = expected[0] if name == "single" else expected
    assert torch.equal(found, expected)


def activated(learner: HyperMask, x: Tensor, task: int) -> Tensor:
    """The outputs of a task's network, -inf where the task has no class."""
    with learner.activated(task) as net:
        outputs = net(x)
    classes = learner.tasks[task].classes
    assert classes is not None
    outputs[:, len(classes) :] = -torch.inf
    return outputs


OTHERS = [
    pytest.param(
        lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4)),
        {},
        "1 is not known to treat rows alone",
        id="norm",
    ),
    pytest.param(
        lambda: MLP(6, (7, 5), 4),
        {"exclude": "hidden.1.weight"},
        "the weights of hidden.1 have no mask",
        id="excluded-weight",
    ),
    pytest.param(
        lambda: MLP(6, (7, 5), 4),
        {"exempt": "hidden.1.weight"},
        "the weights of hidden.1 have no mask",
        id="exempt-weight",
    ),
]


@each_forward
@pytest.mark.parametrize(("net", "options", "why"), OTHERS)
def test_other_networks_run_as_before_and_explain_why(
    net: Callable[[], nn.Module],
    options: dict[str, Any],
    why: str,
    name: str,
    launches: list[tuple[int, bool]],
    device: torch.device,
) -> None:
    learner, x = learner_of(device, net(), **options), torch.randn(5, 6, device=device)
    with torch.no_grad(), backend("triton"):
        found = FORWARDS[name](learner, x)
        probe = nn.Module()
        probe.forward = lambda: FORWARDS[name](learner, x)
        assert why in explain(probe)
    assert not launches
    assert_right(found, learner, x, name)


def test_dropout_that_is_on_is_drawn_task_by_task(launches: list[tuple[int, bool]]) -> None:
    net = nn.Sequential(nn.Linear(6, 7), nn.Dropout(), nn.Linear(7, 4))
    learner = learner_of(torch.device("cpu"), net).train()
    with torch.no_grad(), backend("triton"):
        learner(torch.randn(5, 6), IDS)
    assert not launches


@pytest.mark.parametrize("name", ["mixed", "single"])
def test_gradients_take_the_masks_outside(name: str, launches: list[tuple[int, bool]]) -> None:
    learner = learner_of(torch.device("cpu"))
    with backend("triton"):
        outputs = FORWARDS[name](learner, torch.randn(5, 6))
    outputs[outputs.isfinite()].sum().backward()
    assert not launches
    assert learner.hypernetwork.embeddings.grad is not None


def test_many_tasks_are_formed_a_group_at_a_time(
    launches: list[tuple[int, bool]], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, x = learner_of(device), torch.randn(5, 6, device=device)
    monkeypatch.setattr(masks, "_ENTRIES_AT_ONCE", 2 * learner.hypernetwork.num_outputs)
    with torch.no_grad(), backend("triton"):
        found = learner.all_outputs(x)
        assert len(launches) == 6
        assert_right(found, learner, x, "all")
        launches.clear()
        assert_right(learner(x, IDS.to(device)), learner, x, "mixed")
    # Each task by itself, with its masks in the layers.
    assert launches == [(2, False)] * 9


@pytest.mark.parametrize("name", ["all", "single"])
def test_an_empty_batch(name: str, launches: list[tuple[int, bool]]) -> None:
    learner, x = learner_of(torch.device("cpu")), torch.randn(0, 6)
    with torch.no_grad(), backend("triton"):
        found = FORWARDS[name](learner, x)
    assert found.shape == ((3, 0, 4) if name == "all" else (0, 4))
    assert not launches


def test_there_are_no_outputs_without_a_task() -> None:
    with pytest.raises(ValueError, match="no task was added; call add_task"):
        make(tasks=0).all_outputs(torch.randn(2, 5))


def test_all_outputs_have_no_gradient() -> None:
    assert not make().all_outputs(torch.randn(2, 5)).requires_grad
