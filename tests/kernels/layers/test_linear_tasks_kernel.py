"""The masked linear kernel for several tasks at once: an axis of tasks, and a task for each row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hypermask_fast import reference
from tests.support.kernel_checks import assert_as_exact, poisoned
from tests.support.masked_op_checks import Layer, double, forward_bound, sliced, some

pytest.importorskip("triton")

from hypermask_fast.kernels.layers import linear as forward


def some_tasks(
    tasks: int, width: int, depth: int, *, bias: str, threshold: bool, device: torch.device
) -> tuple[Tensor | None, ...]:
    """Weights, bias, and the logits and thresholds of each task."""
    levels = torch.linspace(0.3, 0.6, tasks) if threshold else None
    tensors = (
        some(width, depth),
        None if bias == "none" else some(width),
        torch.randn(tasks, width, depth),
        torch.randn(tasks, width) if bias == "masked" else None,
        levels,
        levels if bias == "masked" else None,
    )
    return tuple(None if t is None else t.to(device) for t in tensors)


def of_task(arguments: tuple[Tensor | None, ...], task: int) -> tuple[Tensor | None, ...]:
    return (*arguments[:2], *(None if t is None else t[task] for t in arguments[2:]))


ROWS = [
    pytest.param("masked", True, id="masked-bias"),
    pytest.param("unmasked", True, id="unmasked-bias"),
    pytest.param("none", False, id="no-bias-dense"),
]


@pytest.mark.parametrize(("bias", "threshold"), ROWS)
@pytest.mark.parametrize("shape", [(3, 40), (2, 70, 40), (2, 400)], ids=str)
def test_task_axis(
    shape: tuple[int, ...], bias: str, threshold: bool, device: torch.device
) -> None:
    x = some(*shape).to(device)
    arguments = some_tasks(3, 75, shape[-1], bias=bias, threshold=threshold, device=device)
    with poisoned():
        found = forward.masked_linear_forward(x, *arguments)
    assert found.shape == (3, *shape[:-1], 75)
    for task in range(3):
        one = Layer(x, *of_task(arguments, task))
        right = reference.masked_linear(*double(one))
        assert_as_exact(found[task], right, forward_bound(one))


def test_tasks_of_a_slice_of_all_logits(device: torch.device) -> None:
    x = some(4, 6).to(device)
    arguments = some_tasks(3, 5, 6, bias="masked", threshold=True, device=device)
    weight, bias, z, zb, q, _ = arguments
    logits = torch.cat((some(3, 7).to(device), z.flatten(1), zb, some(3, 2).to(device)), 1)
    thresholds = torch.stack((q, q), 1)
    slices = (logits[:, 7:37].view(3, 5, 6), logits[:, 37:42], thresholds[:, 0], thresholds[:, 1])
    found = forward.masked_linear_forward(x, weight, bias, *slices)
    assert torch.equal(found, forward.masked_linear_forward(x, *arguments))
    ids = torch.tensor([2, 0, 1, 2], device=device)
    mixed = forward.masked_linear_mixed(x, ids, weight, bias, *slices)
    assert torch.equal(mixed, found[ids, torch.arange(4, device=device)])


@pytest.mark.parametrize(("bias", "threshold"), ROWS)
@pytest.mark.parametrize(
    ("ids", "tasks"),
    [
        pytest.param([2, 0, 0, 1, 2, 2, 0], 3, id="mixed"),
        pytest.param([1] * 50 + [3] * 17, 5, id="several-tiles-and-empty-tasks"),
        pytest.param([9], 12, id="one-row"),
        pytest.param([0, 0, 0], 1, id="one-task"),
        pytest.param([], 2, id="no-rows"),
    ],
)
def test_mixed_tasks(
    ids: list[int], tasks: int, bias: str, threshold: bool, device: torch.device
) -> None:
    arguments = some_tasks(tasks, 75, 40, bias=bias, threshold=threshold, device=device)
    x, numbers = some(len(ids), 40).to(device), torch.tensor(ids, dtype=torch.int64, device=device)
    with poisoned():
        found = forward.masked_linear_mixed(x, numbers, *arguments)
    exact, bound = torch.empty(2, *found.shape, dtype=torch.float64, device=device)
    for row, task in enumerate(ids):
        one = Layer(x[row], *of_task(arguments, task))
        exact[row] = reference.masked_linear(*double(one))
        bound[row] = forward_bound(one)
    assert_as_exact(found, exact, bound)


def test_mixed_tasks_split_and_gathered(device: torch.device) -> None:
    """A long sum in parts, int32 ids, and rows of x that lie apart."""
    arguments = some_tasks(3, 20, 600, bias="masked", threshold=True, device=device)
    ids = torch.randint(3, (11,), dtype=torch.int32, device=device)
    x = sliced(some(11, 600).to(device))
    with poisoned():
        found = forward.masked_linear_mixed(x, ids, *arguments)
    every_task = [Layer(x, *of_task(arguments, task)) for task in range(3)]
    rows = torch.arange(11, device=device)
    bound = torch.stack([forward_bound(one) for one in every_task])[ids.long(), rows]
    exact = torch.stack([reference.masked_linear(*double(one)) for one in every_task])
    assert_as_exact(found, exact[ids.long(), rows], bound)
