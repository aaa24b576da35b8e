"""Percentiles of the networks that are trained most: one wide, one of many small tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hypermask_fast.kernels import select


def _launch(sizes: tuple[int, ...], has_histogram: bool) -> Callable[[], object]:
    def launch() -> object:
        z = torch.empty(sum(sizes), device="cuda")
        histogram = None
        if has_histogram:
            histogram = torch.empty((len(sizes), 2048), dtype=torch.int32, device="cuda")
        masked = [True] * (len(sizes) - 1) + [False]
        return select.thresholds(z, sizes, 30.0, masked, histogram)

    return launch


_WIDE = (784_000, 1000, 1_000_000, 1000, 10_000, 10)
_MANY = (2304, 16) * 30

LAUNCHES = {
    "wide": (_launch(_WIDE, False), "select", select.CONFIGS),
    "many": (_launch(_MANY, True), "select", select.CONFIGS),
}
