"""Percentiles of the networks that are trained most: one wide, one of many small tensors."""

from __future__ import annotations

from functools import partial

from benchmarks.launches.launch import Launch, Run, floats, route
from hypermask_fast.functional import mask_threshold
from hypermask_fast.kernels.masks import select


def _make(sizes: tuple[int, ...]) -> Run:
    masked = [True] * (len(sizes) - 1) + [False]
    return partial(select.thresholds, floats(sum(sizes)), sizes, 30.0, masked)


def _one(entries: int) -> Run:
    """The percentile of one tensor, as a layer has it done."""
    return partial(mask_threshold, floats(entries), 30.0)


_WIDE = (784_000, 1000, 1_000_000, 1000, 10_000, 10)
_MANY = (2304, 16) * 30

LAUNCHES = {
    "wide": Launch(partial(_make, _WIDE), "select", select.CONFIGS),
    "many": Launch(partial(_make, _MANY), "select", select.CONFIGS),
}
ROUTES = {
    f"one-{entries}": route("mask_threshold", partial(_one, entries))
    for entries in (2_304, 100_000, 1_000_000, 16_777_216)
}
