"""What cases need of a machine: bytes, processes and time; and which run side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps.case import EXACT, StepCase
from hypermask_fast.errors import ConfigError

# What a process needs beside the bytes of its parameters.
_REST = 5 * 10**8
# Processes that start at once on a GPU's machine.
_PROCESSES = 40
# What starting, compiling and the first step take on a GPU's machine, and some parameters more.
_START_SECONDS, _START_PARAMETERS = 45.0, 1e8


@cache
def _free_at_first() -> int:
    """Return what is free of a GPU before processes of this run take of it."""
    return torch.cuda.mem_get_info()[0]


def _available_bytes(device: str) -> int:
    if device == "cuda":
        return _free_at_first()
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 2**10
    raise ConfigError("/proc/meminfo has no MemAvailable; the suites run on Linux only")


def groups_of(variants: Sequence[str], case: StepCase, device: str) -> list[list[str]]:
    """Return variants that run side by side, "published" in each group where memory allows."""
    room = room_of(device)

    def fits(group: Sequence[str]) -> bool:
        return sum(needed(v, case) for v in group) <= room

    if fits(variants):
        return [list(variants)]
    if "published" not in variants:
        return [[v] for v in variants]
    groups = []
    for pair in (["published", v] for v in variants if v != "published"):
        groups += [pair] if fits(pair) else [[v] for v in pair]
    return groups


def room_of(device: str) -> float:
    """Return the bytes that a case may take."""
    return 0.9 * _available_bytes(device)


def needed(variant: str, case: StepCase) -> int:
    """Return about the bytes that a variant takes."""
    return case.bytes_of[variant] * case.parameters() + _REST


def without_room(
    variants: Sequence[str], case: StepCase, device: str
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the variants that fit on a GPU, and why others have failed."""
    room = room_of(device)
    failed = {
        v: {
            "failed": f"it needs about {needed(v, case) / 2**30:.0f} GiB, and "
            f"{room / 2**30:.0f} GiB are free"
        }
        for v in variants
        if device == "cuda" and needed(v, case) > room
    }
    return [v for v in variants if v not in failed], failed


def chosen(variants: Sequence[str], case: StepCase) -> list[str]:
    """Return those of some variants that a case has."""
    return [v for v in variants if v in case.variants]


def start_seconds(case: StepCase) -> float:
    """Return about what a case takes on a GPU before its steps are measured."""
    return _START_SECONDS + case.parameters() / _START_PARAMETERS


def batches(
    cases: Sequence[StepCase], variants: Sequence[str], device: str
) -> list[list[StepCase]]:
    """Return cases in batches whose processes fit side by side; on a CPU one at a time.

    On a GPU's machine most of a case's time is spent on starting and compiling, which the
    processes of a batch do at once.
    """
    found: list[list[StepCase]] = []
    room, used, processes = room_of(device), math.inf, 0
    for case in cases:
        each = [needed(v, case) for v in (EXACT, *chosen(variants, case))]
        # The first two fit by what they leave out.
        need = sum(n for n in each if n <= room)
        if device == "cpu" or used + need > room or processes + len(each) > _PROCESSES:
            found.append([])
            used, processes = 0.0, 0
        found[-1].append(case)
        used, processes = used + need, processes + len(each)
    return found
