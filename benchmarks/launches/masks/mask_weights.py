"""Masked weights of a wide network, and of many small tensors, with every optional argument."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.launches.launch import Launch, Run, floats, route
from hypermask_fast.kernels.masks import weights as mask_weights
from hypermask_fast.masks.types import MaskRequest
from hypermask_fast.masks.weights import mask_weights as masks_of_all

_WIDE = ((1000, 784), (1000,), (1000, 1000), (1000,), (10, 1000), (10,))
_MANY = ((16, 16, 3, 3), (16,)) * 30


def _make(
    direction: str, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, everything: bool
) -> Run:
    weights = [floats(*shape, dtype=dtype) for shape in shapes]
    z = floats(sum(w.numel() for w in weights))
    thresholds = floats(len(shapes), positive=True) if everything else None
    previous = floats(z.numel(), dtype=dtype) if everything else None
    if direction == "forward":
        masked = [True] * (len(shapes) - 1) + [False]
        return partial(mask_weights.forward, weights, z, thresholds, masked, previous)
    grads = [*(floats(*shape, dtype=dtype) for shape in shapes[:-1]), None]
    drift = floats() if everything else None
    backward = partial(mask_weights.backward, weights, z, thresholds, grads, previous)
    return partial(backward, drift_grad=drift)


def _whole(shapes: tuple[tuple[int, ...], ...]) -> Run:
    """Percentiles, masks, products and drift, as a learner has them done."""
    weights = [floats(*shape) for shape in shapes]
    z = floats(sum(w.numel() for w in weights))
    masked = [True] * (len(shapes) - 1) + [False]
    return partial(masks_of_all, MaskRequest(weights, z, 30.0, masked, floats(z.numel())))


LAUNCHES = {
    f"{direction}-{name}": Launch(
        partial(_make, direction, shapes, dtype, everything),
        f"mask_weights_{direction}",
        mask_weights.CONFIGS,
    )
    for direction in ("forward", "backward")
    for name, shapes, dtype, everything in (
        ("wide", _WIDE, torch.float32, True),
        ("plain", _WIDE, torch.float32, False),
        ("bfloat16", _WIDE, torch.bfloat16, True),
        ("many", _MANY, torch.float32, True),
    )
}
ROUTES = {
    name: route("mask_weights", partial(_whole, shapes))
    for name, shapes in (("wide", _WIDE), ("many", _MANY))
}
