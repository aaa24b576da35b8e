"""Percentiles of all tensors at once, bit by bit those of a sort."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

from hypermask_fast import reference
from tests.support.kernel_checks import poisoned

pytest.importorskip("triton")

from hypermask_fast.kernels import tuning
from hypermask_fast.kernels.masks import select
from hypermask_fast.kernels.masks import weights as mask_weights
from hypermask_fast.kernels.masks.blocks import blocks
from tests.support.percentile_cases import abs_tanh, sorted_thresholds

# One entry; one more than a block of these tests; several blocks; two entries; a full block.
SIZES = (1, 1025, 3000, 2, 1024)
ALL = (True,) * len(SIZES)


@pytest.fixture(autouse=True)
def _small_blocks() -> Iterator[None]:
    with tuning.forced("select", {"BLOCK": 1024, "num_warps": 4}), poisoned():
        yield


def percent(p: float, device: torch.device) -> Tensor:
    return torch.tensor(p, dtype=torch.float64, device=device)


NORMAL = torch.randn(3000, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(NORMAL, id="normal"),
        pytest.param(torch.zeros(3000), id="zeros"),
        pytest.param(torch.full((3000,), -1e9), id="saturated"),
        pytest.param(torch.arange(3000) % 3 - 1.0, id="ties"),
        pytest.param(NORMAL.bfloat16().float(), id="rounded"),
        pytest.param(torch.arange(3000) * 1e-42, id="subnormal"),
        pytest.param(10.0 ** torch.linspace(-50, 40, 3000), id="all-magnitudes"),
        pytest.param(0.4 + NORMAL / 1e6, id="one-first-bin"),
        # The two ranks of p = 50 lie in two bins of the first, second and third pass.
        pytest.param(torch.tensor([1.0, 3.0]), id="apart-in-first"),
        pytest.param(torch.tensor([1.0, 1.01]), id="apart-in-second"),
        pytest.param(torch.tensor([1.0, 1.00001]), id="apart-in-third"),
    ],
)
@pytest.mark.parametrize(
    "scale", [pytest.param(1.0, id="as-drawn"), pytest.param(2.0**-20, id="tanh-is-the-identity")]
)
def test_thresholds_have_the_bits_of_a_sort(
    values: Tensor, scale: float, device: torch.device
) -> None:
    z = scale * values.to(device)
    # Between two entries, and on one or next to it.
    for p in (0.001, 33.3, 50.0, 99.99, 100.0, 100 * (len(z) // 3 + 1) / len(z)):
        found = select.thresholds(z, [len(z)], p, [True]).values
        assert torch.equal(found, sorted_thresholds(z, [len(z)], p)), p


@pytest.mark.parametrize("p", [0.001, 30.0, 99.99, 100.0])
def test_each_tensor_has_its_own_percentile(p: float, device: torch.device) -> None:
    z = torch.randn(sum(SIZES), device=device) * torch.logspace(-8, 4, sum(SIZES), device=device)
    result = select.thresholds(z, SIZES, p, ALL)
    assert torch.equal(result.values, sorted_thresholds(z, SIZES, p))
    assert not result.has_nan


@pytest.mark.parametrize("p", [7.0, 57.0])
def test_a_percentile_on_an_entry_is_that_entry(p: float, device: torch.device) -> None:
    assert p / 100 * 100 != p, "dividing first would be right too"
    z = torch.linspace(-3, 1, 101, device=device)
    entries = abs_tanh(z.abs().sort().values)
    assert select.thresholds(z, [101], p, [True]).values == entries[int(p)]


def test_forty_tensors(device: torch.device) -> None:
    sizes = [1 + 7 * i % 90 for i in range(40)]
    z = torch.randn(sum(sizes), device=device)
    found = select.thresholds(z, sizes, 62.5, [True] * 40).values
    assert torch.equal(found, sorted_thresholds(z, sizes, 62.5))


@pytest.mark.parametrize("p", [12.5, 50.0, 95.0])
def test_masks_are_those_of_the_specification(p: float, device: torch.device) -> None:
    z = torch.randn(sum(SIZES), device=device)
    weights = [torch.ones(size, device=device) for size in SIZES]
    found = mask_weights.forward(weights, z, select.thresholds(z, SIZES, p, ALL).values, ALL)[1]
    for mask, part in zip(found.split(SIZES), z.split(SIZES), strict=True):
        threshold = reference.mask_threshold(part, p)
        exact = reference.semi_binary_mask(part, threshold)
        if device.type == "cuda":
            assert torch.equal(mask, exact)
            continue
        # The interpreter's tanh is not that of PyTorch, so its percentile is not either.
        near = (part.double().tanh().abs() - threshold).abs() <= 2 * np.spacing(
            np.float32(threshold)
        )
        assert int(near.sum()) <= 3
        assert torch.equal((mask > 0)[~near], (exact > 0)[~near])


@pytest.mark.parametrize("p", [0.7, 30.0, 100.0])
def test_a_tensor_is_the_same_percentage(p: float, device: torch.device) -> None:
    z = torch.randn(sum(SIZES), device=device)
    expected = select.thresholds(z, SIZES, p, ALL)
    found = select.thresholds(z, SIZES, percent(p, device), ALL)
    assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize(("outside", "end"), [(-3.0, 0.0), (250.0, 100.0)])
def test_a_percentage_outside_acts_as_the_nearer_end(
    outside: float, end: float, device: torch.device
) -> None:
    z = torch.randn(500, device=device)
    found = select.thresholds(z, [500], percent(outside, device), [True]).values
    assert torch.equal(found, sorted_thresholds(z, [500], end))


def test_nothing_runs_where_nothing_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(select, "choose", launch)
    assert select.thresholds(torch.randn(5), [2, 3], 0, [True, True]) is None
    assert select.thresholds(torch.randn(5), [2, 3], 30.0, [False, False]) is None


def test_tensors_without_a_threshold(device: torch.device) -> None:
    z = torch.randn(sum(SIZES), device=device)
    masked = [True, False, True, False, False]
    found = select.thresholds(z, SIZES, 30.0, masked).values
    chosen = torch.tensor(masked, device=device)
    assert torch.equal(found[chosen], select.thresholds(z, SIZES, 30.0, ALL).values[chosen])
    assert (found[~chosen] == -torch.inf).all()


@pytest.mark.parametrize(
    ("value", "place"),
    [
        pytest.param(torch.nan, 0, id="first"),
        pytest.param(-torch.nan, 1500, id="negative"),
        pytest.param(torch.nan, sum(SIZES) - 1, id="last-without-threshold"),
        pytest.param(torch.inf, 5, id="infinity"),
    ],
)
def test_nan_is_reported_and_infinity_is_not(
    value: float, place: int, device: torch.device
) -> None:
    z = torch.randn(sum(SIZES), device=device)
    z[place] = value
    result = select.thresholds(z, SIZES, 30.0, [True, False, True, True, False])
    assert result.has_nan.shape == ()
    assert bool(result.has_nan) == math.isnan(value)


@pytest.mark.parametrize("p", [30.0, 79.9, 80.0, 100.0])
def test_nan_is_above_every_number(p: float, device: torch.device) -> None:
    z = torch.linspace(-3, 3, 101, device=device)
    z[:20] = torch.nan
    found = select.thresholds(z, [101], p, [True]).values
    expected = sorted_thresholds(z, [101], p)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    # Of ranks 0 to 100 those from 81 are NaN.
    assert bool(found.isnan()) == (p > 80)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda z: z.repeat_interleave(3)[::3], id="strided"),
        pytest.param(lambda z: torch.cat((z[:3], z))[3:], id="unaligned"),
        pytest.param(lambda z: z[:1].expand(len(z)), id="expanded"),
    ],
)
def test_layouts(change: object, device: torch.device) -> None:
    z = change(torch.randn(sum(SIZES), device=device))  # type: ignore[operator]
    found = select.thresholds(z, SIZES, 30.0, ALL).values
    assert torch.equal(found, sorted_thresholds(z.contiguous(), SIZES, 30.0))


def test_entries_beyond_32_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    sizes = (2**31, 1500)
    if device.type == "cuda":
        entries = torch.empty(sum(sizes), device=device)
    else:
        # A sparse file, of which only the end is ever touched.
        file = np.memmap(tmp_path / "z", np.float32, "w+", shape=(sum(sizes),))
        entries = torch.from_numpy(file)
    end = NORMAL[:1500].to(device)
    entries[-1500:] = end
    masked = (False, True)
    # The first pass is also one over tensors without a threshold, for their NaN: it is spared that.
    monkeypatch.setattr(
        select, "blocks", lambda sizes, size, device, *_: blocks(sizes, size, device, masked)
    )
    found = select.thresholds(entries, sizes, 30.0, masked).values
    assert torch.equal(found[1:], sorted_thresholds(end, [1500], 30.0))


@pytest.mark.parametrize(
    ("sizes", "chosen", "tensor", "start"),
    [
        pytest.param((3, 8, 1), None, [0, 1, 1, 2], [0, 3, 7, 11], id="all"),
        pytest.param((3, 8, 1), (False, True, False), [1, 1], [3, 7], id="some"),
        pytest.param((0, 4, 0, 5), None, [1, 3, 3], [0, 4, 8], id="empty-tensors"),
        pytest.param((2,), (False,), [], [], id="none"),
        pytest.param((2**33, 5), (False, True), [1, 1], [2**33, 2**33 + 4], id="large"),
    ],
)
def test_blocks(
    sizes: tuple[int, ...], chosen: tuple[bool, ...] | None, tensor: list[int], start: list[int]
) -> None:
    table = blocks(sizes, 4, torch.device("cpu"), chosen)
    assert table.tensor.tolist() == tensor
    assert table.start.tolist() == start
    assert table.tensor_start.tolist() == [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    assert table.chosen.bool().tolist() == list(chosen or [True] * len(sizes))
    assert table.grid == (len(tensor),)
    assert [t.dtype for t in table] == [torch.int32, torch.int64, torch.int64, torch.int32]
    assert blocks(sizes, 4, torch.device("cpu"), chosen) is table


@pytest.mark.gpu
def test_a_captured_graph_follows_the_percentage_and_the_logits(device: torch.device) -> None:
    z = torch.randn(sum(SIZES), device=device)
    p = percent(10.0, device)
    select.thresholds(z, SIZES, p, ALL)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = select.thresholds(z, SIZES, p, ALL)
    for value in (30.0, 95.0):
        p.fill_(value)
        z.normal_()
        graph.replay()
        found = result.values.clone()
        assert torch.equal(found, select.thresholds(z, SIZES, value, ALL).values)
