"""Masks of the largest scores of a wide network and of many small tensors, gradients, and bits."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.launches.launch import Launch, Run, floats, route
from hypermask_fast.kernels.masks import top_k
from hypermask_fast.masks.top_k import dropped_count, top_k_weights

_WIDE = ((1024, 784), (1024, 1024), (10, 1024))
_MANY = ((20, 20, 3, 3), (40, 20, 3, 3)) * 10


def _make(direction: str, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> Run:
    weights = [floats(*shape, dtype=dtype) for shape in shapes]
    sizes = [w.numel() for w in weights]
    scores = floats(sum(sizes))
    if direction == "backward":
        grads = [torch.empty_like(w) for w in weights]
        return partial(top_k.backward, weights, scores, grads, True)
    dropped = [dropped_count(size, 0.1) for size in sizes]
    return partial(top_k.forward, weights, scores, sizes, dropped)


def _pack() -> Run:
    return partial(top_k.pack, floats(2_363_392) > 0)


def _whole(shapes: tuple[tuple[int, ...], ...]) -> Run:
    """Selection and products, as a learner has them done."""
    weights = [floats(*shape) for shape in shapes]
    sizes = [w.numel() for w in weights]
    dropped = [dropped_count(size, 0.1) for size in sizes]
    return partial(top_k_weights, weights, floats(sum(sizes)), dropped)


LAUNCHES = {
    f"{direction}-{name}": Launch(
        partial(_make, direction, shapes, dtype), f"top_k_{direction}", top_k.CONFIGS
    )
    for direction in ("forward", "backward")
    for name, shapes, dtype in (
        ("wide", _WIDE, torch.float32),
        ("bfloat16", _WIDE, torch.bfloat16),
        ("many", _MANY, torch.float32),
    )
} | {"pack": Launch(_pack, "top_k_pack", top_k.PACK_CONFIGS)}
ROUTES = {
    name: route("top_k", partial(_whole, shapes))
    for name, shapes in (("wide", _WIDE), ("many", _MANY))
}
