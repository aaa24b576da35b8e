"""Figures of a compiled kernel: what it takes of a multiprocessor, and how long it should run."""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.static.compile import Compiled, is_pointer
from benchmarks.static.expressions import NotCoveredError
from benchmarks.static.memory import Region, Timing
from benchmarks.static.multiprocessor import Launched, Steady
from benchmarks.static.multiprocessor import replay as replay_launch
from benchmarks.static.sass import disassemble, usage

_ARGUMENTS = 0x210
"""Where the arguments begin in the constants, of sm_90."""
_REGISTERS, _SHARED, _WARPS, _PROGRAMS = 65_536, 233_472, 64, 32
_RESERVED = 1024
"""Of an H100's multiprocessor; each program takes so much shared memory more than it asks for."""


@lru_cache
def _usage(cubin: bytes) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        return usage(path)


def resident(registers: int, shared: int, warps: int) -> int:
    """Return how many programs an H100's multiprocessor runs at a time.

    Args:
        registers: Of a thread.
        shared: Bytes of a program.
        warps: Of a program.
    """
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = _REGISTERS // of_warp // 4 * 4 // warps if warps % 4 == 0 else 0
    by_registers = by_registers or _REGISTERS // (of_warp * warps)
    return min(by_registers, _SHARED // (shared + _RESERVED), _WARPS // warps, _PROGRAMS)


def static_figures(kernel: Compiled) -> dict[str, Any]:
    """Return the figures that take no replay.

    Args:
        kernel: For a GPU of NVIDIA.
    """
    registers, stack = _usage(kernel.asm["cubin"])
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    return {
        "registers": registers,
        "spills": stack,
        "shared": shared,
        "warps": warps,
        "programs": resident(registers, shared, warps),
    }


def _places(kernel: Compiled) -> tuple[dict[int, int], dict[int, Region]]:
    """Return the constants of a launch, and its tensors in memory."""
    constants = {0x28 + 0: 0, 0x0: 32 * kernel.metadata.num_warps, 0x4: 1, 0x8: 1}
    grid = (*kernel.grid, 1, 1)[:3]
    constants |= {0xC + 4 * axis: size for axis, size in enumerate(grid)}
    regions: dict[int, Region] = {}
    storages: dict[int, int] = {}
    at = _ARGUMENTS
    for name, kind in kernel.types.items():
        value = kernel.arguments[name]
        size = 8 if kind.startswith("*") or kind in ("i64", "u64", "fp64") else 4
        at += -at % size
        if is_pointer(value):
            storage = value.untyped_storage()
            number = storages.setdefault(storage._cdata, len(storages) + 1)
            begin = number << 36
            regions[number] = Region(begin, storage.nbytes(), name)
            bits = begin + value.storage_offset() * value.element_size()
        elif isinstance(value, float):
            bits = struct.unpack("<I", struct.pack("<f", value))[0]
        else:
            bits = int(value)
        constants[at] = bits & 0xFFFFFFFF
        if size == 8:
            constants[at + 4] = bits >> 32 & 0xFFFFFFFF
        at += size
    return constants, regions


def replay(kernel: Compiled, timing: Timing | None = None) -> tuple[Steady, Mapping[int, Region]]:
    """Return what a multiprocessor does with a kernel once it is full, and the kernel's tensors.

    Args:
        kernel: For sm_90.
        timing: Default: an H200's.

    Raises:
        NotCoveredError: The replay cannot follow it.
    """
    timing = timing or Timing()
    constants, regions = _places(kernel)
    grid = (*kernel.grid, 1, 1)[:3]
    figures = static_figures(kernel)
    programs = min(figures["programs"], -(-prod(grid) // timing.processors))
    launched = Launched(
        *(disassemble(kernel.asm["cubin"]), constants, grid, figures["warps"]),
        *(figures["shared"], regions, programs),
    )
    return replay_launch(launched, timing), regions


def replayed_figures(kernel: Compiled, timing: Timing | None = None) -> dict[str, Any]:
    """Return the figures of a replay.

    The largest tensor says how many tiles there are: all of it is read or written once.

    Args:
        kernel, timing: As of :func:`replay`.
    """
    timing = timing or Timing()
    try:
        steady, regions = replay(kernel, timing)
    except NotCoveredError as error:
        return {"not_covered": str(error)}
    figures: dict[str, Any] = {
        "instructions": round(steady.issued),
        "barriers": round(steady.barriers, 1),
        "loads": {str(size): round(count, 1) for size, count in steady.loads.items()},
    }
    moved = {place: size for place, size in steady.moved.items() if size}
    largest = max(moved, key=lambda place: regions[place[0]].size, default=None)
    if largest is None or regions[largest[0]].size <= timing.resident:
        return {**figures, "not_covered": "no tensor is too large for the cache"}
    tiles = regions[largest[0]].size / moved[largest]
    streamed = sum(size for place, size in moved.items() if regions[place[0]].size > timing.resident)
    return figures | {
        "cycles": round(steady.cycles, 1),
        "copy_us": round(tiles * streamed / timing.bandwidth * 1e6, 1),
        "model_us": round(tiles * steady.cycles / timing.clock / timing.processors * 1e6, 1),
    }
