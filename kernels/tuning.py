"""Launch configurations of the kernels: a table by device, and a conservative default.

A kernel file lists the configurations it ships in ``CONFIGS``, the default first. What
``python -m benchmarks tune`` measured is in tuned_configs.json: for each device and kernel a list
of entries ``{"sizes": {...}, "config": {...}, "ms": float, "alternative_ms": float}``, of which the
one with the nearest sizes is used, by ratio, of those with the same bits and layout. Nothing is
measured when a kernel runs. Ways over several kernels ("head", "mask_weights", "mask_threshold")
have entries too, which say whether to take them.
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

TABLE = Path(__file__).with_name("tuned_configs.json")
_EXACT = ("bits", "layout")
"""Sizes that are kinds: of another one an entry says nothing."""
_forced: dict[str, Config] = {}
_recorded: list[tuple[str, dict[str, int]]] | None = None


@cache
def _table() -> dict[str, dict[str, list[dict[str, Any]]]]:
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def _distance(entry: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    return sum(abs(math.log2(max(1, entry[k]) / max(1, v))) for k, v in sizes.items())


@cache
def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


@cache
def _nearest(device: str, kernel: str, sizes: tuple[tuple[str, int], ...]) -> dict[str, Any] | None:
    wanted = dict(sizes)
    entries = [
        entry
        for entry in _table().get(device, {}).get(kernel, ())
        if entry["sizes"].keys() == wanted.keys()
        and all(entry["sizes"][k] == wanted[k] for k in _EXACT if k in wanted)
    ]
    return min(entries, key=lambda e: _distance(e["sizes"], wanted)) if entries else None


def knows(device: torch.device) -> bool:
    """Return whether anything was measured on a device of this kind."""
    return device.type == "cuda" and bool(_table().get(_name(device)))


def _name(device: torch.device) -> str:
    return _device_name(torch.cuda.current_device() if device.index is None else device.index)


def measured(kernel: str, device: torch.device, **sizes: int) -> dict[str, Any] | None:
    """Return the tuned entry nearest to ``sizes``; None where nothing was measured.

    Args:
        kernel: Name in the table.
        device: Where it runs.
        **sizes: Of the problem, as in the table.
    """
    if device.type != "cuda":
        return None
    return _nearest(_name(device), kernel, tuple(sizes.items()))


def beats_alternative(passes: Mapping[str, Mapping[str, int]], device: torch.device) -> bool:
    """Return whether kernels were measured to be faster, in sum, than the way without them.

    Args:
        passes: The sizes of each kernel, by its name in the table.
        device: Where they run. False where one of them was not measured on it.
    """
    saved = 0.0
    for kernel, sizes in passes.items():
        entry = measured(kernel, device, **sizes)
        if entry is None:
            return False
        saved += entry["alternative_ms"] - entry["ms"]
    return saved > 0


def was_slower(route: str, device: torch.device, **sizes: int) -> bool:
    """Return whether a way over kernels was measured to be slower than the one without them.

    Args:
        route: Name in the table.
        device, **sizes: As in :func:`measured`.
    """
    if _recorded is not None:
        _recorded.append((route, sizes))
    entry = measured(route, device, **sizes)
    return entry is not None and entry["alternative_ms"] < entry["ms"]


def choose(kernel: str, configs: Sequence[Config], device: torch.device, **sizes: int) -> Config:
    """Return the configuration to launch a kernel with.

    Args:
        kernel: Name in the table.
        configs: Those that the kernel ships, the default first.
        device, **sizes: As in :func:`measured`.
    """
    if _recorded is not None:
        _recorded.append((kernel, sizes))
    if kernel in _forced:
        return _forced[kernel]
    entry = measured(kernel, device, **sizes) if _table() else None
    return configs[0] if entry is None else entry["config"]


@contextmanager
def recording() -> Iterator[list[tuple[str, dict[str, int]]]]:
    """Collect what is looked up inside a ``with`` block: kernels and routes, with their sizes."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


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
