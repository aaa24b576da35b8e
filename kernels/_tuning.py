"""Launch configurations of the kernels: a table by device, and a conservative default.

A kernel file lists the configurations it ships in ``CONFIGS``, the default first. What
``python -m benchmarks tune`` measured is in tuned_configs.json: for each device and kernel a list
of entries ``{"sizes": {...}, "config": {...}, "ms": float, "alternative_ms": float}``, of which the
one with the nearest sizes is used, by ratio. Nothing is measured when a kernel runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

Config = Mapping[str, int]
"""Keyword arguments of a launch: tile sizes, num_warps, num_stages."""

_TABLE = Path(__file__).with_name("tuned_configs.json")
_forced: dict[str, Config] = {}


@cache
def _table() -> dict[str, dict[str, list[dict[str, Any]]]]:
    return json.loads(_TABLE.read_text()) if _TABLE.exists() else {}


def _distance(entry: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    return sum(abs(math.log2(max(1, entry[k]) / max(1, v))) for k, v in sizes.items())


@cache
def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


@cache
def _nearest(device: str, kernel: str, sizes: tuple[tuple[str, int], ...]) -> dict[str, Any] | None:
    wanted = dict(sizes)
    entries = [e for e in _table().get(device, {}).get(kernel, ()) if e["sizes"].keys() == wanted.keys()]
    return min(entries, key=lambda e: _distance(e["sizes"], wanted)) if entries else None


def measured(kernel: str, device: torch.device, **sizes: int) -> dict[str, Any] | None:
    """Return the tuned entry nearest to ``sizes``; None where nothing was measured.

    Args:
        kernel: Name in the table.
        device: Where it runs.
        **sizes: Of the problem, as in the table.
    """
    if device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    return _nearest(_device_name(index), kernel, tuple(sizes.items()))


def choose(kernel: str, configs: Sequence[Config], device: torch.device, **sizes: int) -> Config:
    """Return the configuration to launch a kernel with.

    Args:
        kernel: Name in the table.
        configs: Those that the kernel ships, the default first.
        device, **sizes: As in :func:`measured`.
    """
    if kernel in _forced:
        return _forced[kernel]
    entry = measured(kernel, device, **sizes) if _table() else None
    return configs[0] if entry is None else entry["config"]


@contextmanager
def forced(kernel: str, config: Config) -> Iterator[None]:
    """Launch a kernel with this configuration inside a ``with`` block, to measure or compile it."""
    before = _forced.get(kernel)
    _forced[kernel] = config
    try:
        yield
    finally:
        del _forced[kernel]
        if before is not None:
            _forced[kernel] = before
