"""Layers under the masks of several tasks at once, against each task by itself in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.layers.masked import MaskedLinear
from hypermask_fast.layers.tasks import TaskMasks, are_faster
from hypermask_fast.masks.types import Mask
from tests.support.kernel_checks import assert_as_exact, poisoned

pytest.importorskip("triton")

TASKS = 3
SHAPES = [(5, 6), (1, 6), (2, 4, 6), (2, 3, 1, 6)]


def some_masks(bias: bool, device: torch.device) -> Mask:
    levels = torch.linspace(0.3, 0.6, TASKS, device=device)
    z = torch.randn(TASKS, 4, 6, device=device)
    if not bias:
        return Mask(z, None, levels)
    return Mask(z, torch.randn(TASKS, 4, device=device), levels, levels)


def one_by_one(layer: MaskedLinear, x: Tensor, mask: Mask, dtype: torch.dtype) -> Tensor:
    """Each task's output for every row, (tasks, batch, ..., out)."""
    own = [layer.weight, layer.bias]
    outputs = [
        reference.masked_linear(
            x.to(dtype),
            *(p.to(dtype) for p in own),
            *(None if part is None else part[task].to(dtype) for part in mask),
        )
        for task in range(TASKS)
    ]
    return torch.stack(outputs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_every_row_under_every_mask(
    shape: tuple[int, ...], bias: bool, device: torch.device
) -> None:
    layer, x = MaskedLinear(6, 4).to(device), torch.randn(shape, device=device)
    mask = some_masks(bias, device)
    layer.active = TaskMasks(mask, None)
    with poisoned():
        found = layer(x)
    assert found.shape == (TASKS * shape[0], *shape[1:-1], 4)
    plain, exact = (one_by_one(layer, x, mask, d) for d in (torch.float32, torch.float64))
    assert_as_exact(found, plain.flatten(0, 1), exact.flatten(0, 1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_each_row_under_the_mask_of_its_task(
    shape: tuple[int, ...], bias: bool, device: torch.device
) -> None:
    layer, x = MaskedLinear(6, 4).to(device), torch.randn(shape, device=device)
    mask, rows = some_masks(bias, device), torch.tensor([2, 0, 2, 2, 1][: shape[0]], device=device)
    layer.active = TaskMasks(mask, rows)
    with poisoned():
        found = layer(x)
    numbers = torch.arange(len(x), device=device)
    plain, exact = (one_by_one(layer, x, mask, d) for d in (torch.float32, torch.float64))
    assert_as_exact(found, plain[rows, numbers], exact[rows, numbers])


@torch.no_grad()
def test_autocast_gives_what_a_product_has() -> None:
    layer, mask = MaskedLinear(6, 4), some_masks(True, torch.device("cpu"))
    layer.active = TaskMasks(mask, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 6)).dtype == torch.bfloat16


def test_a_copy_has_the_masks_without_their_graph() -> None:
    layer = MaskedLinear(6, 4)
    z = 2 * torch.randn(TASKS, 4, 6, requires_grad=True)
    layer.active = TaskMasks(Mask(z), torch.tensor([0, 1]))
    twin = copy.deepcopy(layer)
    assert isinstance(twin.active, TaskMasks)
    assert torch.equal(twin.active.mask.weight, z)
    assert twin.active.mask.weight.is_leaf
    assert torch.equal(twin.active.rows, torch.tensor([0, 1]))


def test_nothing_was_measured_on_a_cpu() -> None:
    assert not are_faster([torch.empty(4, 6)], 1, torch.float32, torch.device("cpu"))
