"""Cases of the kernels of percentiles and masked weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.kernels import plain
from hypermask_fast.kernels.masks import select
from hypermask_fast.kernels.masks import weights as mask_weights
from tests.fuzz.case import (
    BRAIN,
    DEVICE,
    FLOAT,
    GRADIENTS,
    HALF,
    Case,
    any_config,
    judge,
)
from tests.support.percentile_cases import sorted_thresholds

SMALL_BLOCKS = ({"BLOCK": 64, "num_warps": 4}, {"BLOCK": 1024, "num_warps": 4})


def some_z(case: Case, count: int, kinds: Sequence[str]) -> Tensor:
    z, kind = case.normal(count), case.one("z values", kinds)
    if kind == "nan":
        z[int(case.normal(1).abs() * count) % count] = torch.nan
    changed = {
        "ties": z.round(),
        "equal": torch.full_like(z, 0.7),
        "zeros": 0 * z,
        "saturated": 30 * z,
        "rounded": z.bfloat16().float(),
        "every magnitude": z * 10.0 ** (15 * case.normal(count)).clamp(-44, 37),
        "close": 0.4 + z / 1e6,
        "infinity": torch.where(z > 1, torch.inf, z),
    }
    return changed.get(kind, z)


def fuzz_select(case: Case) -> None:
    tensors = case.one("tensors", (1, 1, 1, 2, 2, 3, 3, 8, 8, 40))
    sizes = [case.size(f"size {i}", 300 if tensors < 8 else 33) for i in range(tensors)]
    masked = [case.one(f"masked {i}", (True, True, False)) for i in range(tensors - 1)]
    masked.insert(case.one("first masked", range(tensors)), True)
    kinds = ("normal", "ties", "equal", "zeros", "saturated", "rounded", "every magnitude")
    z = case.place("z", some_z(case, sum(sizes), (*kinds, "close", "infinity", "nan")))
    p = case.one("p", (0.0, 0.001, 25.0, 30.0, 33.3, 50.0, 57.0, 95.0, 99.99, 100.0))
    percent: float | Tensor = p
    if p == 0 or case.often("p is a tensor"):
        percent = torch.tensor(p, dtype=torch.float64, device=DEVICE)
    with any_config(case, {"select": (*SMALL_BLOCKS, *select.CONFIGS)}):
        found = select.thresholds(z, sizes, percent, masked)
    assert found is not None
    sorted_values = sorted_thresholds(z, sizes, p)
    assert bool(found.has_nan) == bool(z.isnan().any())
    for i, part in enumerate(z.split(sizes)):
        if not masked[i]:
            assert found.values[i] == -torch.inf
            continue
        right = sorted_values[i]
        torch.testing.assert_close(found.values[i], right, rtol=0, atol=0, equal_nan=True)
        value, exact = found.values[i], reference.mask_threshold(part.double(), p)
        assert bool(value.isnan()) == bool(exact.isnan())
        if not exact.isnan():
            judge(value, exact, exact, 0)


def some_thresholds(case: Case, z: Tensor, sizes: Sequence[int]) -> Tensor | None:
    """Thresholds halfway between two neighbours that are apart, below and above all, or of 1."""
    if not case.often("thresholds", 0.8):
        return None
    levels: list[float | Tensor] = []
    for part in z.double().tanh().abs().split(list(sizes)):
        kind = case.one(
            f"threshold {len(levels)}", ("between", "between", 0.0, 1.0, 2.0, -math.inf)
        )
        values = torch.cat((part, part.new_tensor([0.0, 2.0]))).sort().values
        place = int(values.diff()[: len(values) // 2 + 1].argmax())
        levels.append(values[place : place + 2].mean() if kind == "between" else kind)
    return torch.tensor(levels, dtype=FLOAT, device=DEVICE)


def fuzz_mask_weights(case: Case) -> None:
    count, few = case.one("tensors", (1, 2, 3, 5, 5, 66)), (67, 15, 5, 3)
    weights, dtypes = [], case.one("dtypes", ((FLOAT,), (HALF,), (BRAIN,), (FLOAT, HALF)))
    for i in range(count):
        axes = case.one(f"axes {i}", (1, 2, 4)) if count < 66 else 1
        shape = [
            case.size(f"size {i} {axis}", few[axis] if count < 66 else 3) for axis in range(axes)
        ]
        weights.append(case.normals(f"W {i}", *shape, dtype=dtypes[i % len(dtypes)]))
    sizes, masked = (
        [w.numel() for w in weights],
        [case.often(f"{i} masked", 0.8) for i in range(count)],
    )
    z = some_z(
        case, sum(sizes), ("normal", "normal", "ties", "equal", "zeros", "saturated", "infinity")
    )
    # What is nearly 1 may round to it.
    z = case.place("z", torch.where(z.abs() > 7, 40 * z.sign(), z))
    thresholds = some_thresholds(case, z, sizes)
    grads = [
        case.normals(f"dW {i}", *w.shape, dtype=w.dtype, layouts=GRADIENTS)
        if kept and case.often(f"dW {i} is there", 0.9)
        else None
        for i, (w, kept) in enumerate(zip(weights, masked, strict=True))
    ]
    previous = drift_grad = None
    if case.often("drift"):
        previous = case.normals(
            "previous", sum(sizes), dtype=case.one("previous", (FLOAT, dtypes[0]))
        )
        drift_grad = (
            torch.tensor(0.7, device=DEVICE) if case.often("drift has a gradient") else None
        )
    masked_drift = case.often("masked drift")
    names = ("mask_weights_forward", "mask_weights_backward")
    with any_config(case, dict.fromkeys(names, (*SMALL_BLOCKS, *mask_weights.CONFIGS))):
        state = (weights, z, thresholds)
        products, masks, drift = mask_weights.forward(*state, masked, previous, masked_drift)
        dz, dweights = mask_weights.backward(*state, grads, previous, masked_drift, drift_grad)
    assert [p is not None for p in products] == masked
    kept = [p for p in products if p is not None]

    def changed(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        def each(tensors: Sequence[Tensor | None]) -> list[Any]:
            return [None if t is None else change(t) for t in tensors]

        w, g = each(weights), each(grads)
        z_, q, old, along = each((z, thresholds, previous, drift_grad))
        forward = plain.mask_weights(w, z_, q, masked, old, masked_drift)
        backward = plain.mask_weights_backward(w, z_, q, g, old, masked_drift, along)
        return [*forward[0], *forward[1:], backward[0], *backward[1]]

    exact = changed(Tensor.double)
    largest = max(
        float(t.double().abs().max()) for t in (*weights, *(g for g in grads if g is not None))
    )
    largest += 0 if previous is None else float(previous.double().abs().max())
    # Gradients may cancel: they are sums of two products.
    largest_sums = [
        *(t.abs() for t in exact[: len(kept) + 2]),
        torch.tensor(2 * (largest**2 + largest)),
    ]
    largest_sums += [torch.tensor(largest + 0.7)] * len(weights)
    results = [*kept, masks, drift, dz, *dweights]
    for mine, right, size in zip(results, exact, largest_sums, strict=True):
        judge(mine, right, size, len(z) if mine is drift else 2)


KERNELS = {"select": fuzz_select, "mask_weights": fuzz_mask_weights}
