"""Percentiles of the networks that are trained most: one wide, one of many small tensors."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.launches import Launch, Run, floats, route
from hypermask_fast.functional import mask_threshold
from hypermask_fast.kernels.masks import select


def _make(sizes: tuple[int, ...], has_histogram: bool) -> Run:
    z = floats(sum(sizes))
    histogram = None
    if has_histogram:
        # Every entry in the bin of 1: counts must fit, values need not.
        one = (torch.arange(2048) == 0x3F8).to(torch.int32)
        histogram = torch.tensor(sizes, dtype=torch.int32).unsqueeze(1) * one
    masked = [True] * (len(sizes) - 1) + [False]
    return partial(select.thresholds, z, sizes, 30.0, masked, histogram)


def _one(entries: int) -> Run:
    """The percentile of one tensor, as a layer has it done."""
    return partial(mask_threshold, floats(entries), 30.0)


_WIDE = (784_000, 1000, 1_000_000, 1000, 10_000, 10)
_MANY = (2304, 16) * 30

LAUNCHES = {
    "wide": Launch(partial(_make, _WIDE, False), "select", select.CONFIGS),
    "many": Launch(partial(_make, _MANY, False), "select", select.CONFIGS),
    "many-histogram": Launch(partial(_make, _MANY, True), "select", select.CONFIGS),
}
ROUTES = {
    f"one-{entries}": route("mask_threshold", partial(_one, entries))
    for entries in (2_304, 100_000, 1_000_000, 16_777_216)
}
