"""Figures of a compiled kernel: what it takes of a multiprocessor, and how long it should run."""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.static.compile import Compiled
from benchmarks.static.expressions import NotCoveredError
from benchmarks.static.memory import Region, Timing
from benchmarks.static.multiprocessor import replay as replay_launch
from benchmarks.static.sass import disassemble, usage
from benchmarks.static.tile import Launched, Steady

_REPLAYED = "sm_90"
_MOST_WAITED = 10
_ARGUMENTS = 0x210
"""Where the arguments begin in the constants of sm_90."""
_SHARED = {"sm_80": 167_936, "sm_90": 233_472, "sm_100": 233_472}
_REGISTERS, _WARPS, _PROGRAMS, _RESERVED = 65_536, 64, 32, 1024
"""Of a multiprocessor; each program takes so much shared memory more than it asks for."""


@lru_cache
def _usage(cubin: bytes) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        return usage(path)


def code_size(cubin: bytes) -> int:
    """Return the instructions of a kernel, of 16 bytes each.

    Args:
        cubin: An ELF object with one kernel.
    """
    table, size, count, names = struct.unpack_from("<Q", cubin, 40) + struct.unpack_from(
        "<3H", cubin, 58
    )
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + size * n) for n in range(count)]
    strings = sections[names][4]
    return max(
        section[5] // 16
        for section in sections
        if cubin[strings + section[0] :].startswith(b".text.")
    )


def resident(target: str, registers: int, shared: int, warps: int) -> int:
    """Return how many programs a multiprocessor runs at a time.

    Args:
        target: A GPU of NVIDIA.
        registers: Of a thread.
        shared: Bytes of a program.
        warps: Of a program.
    """
    # Registers are given to a warp in blocks of 256, to warps of one scheduler from a quarter.
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = 4 * (_REGISTERS // 4 // of_warp) // warps
    by_shared = _SHARED[target] // (shared + _RESERVED)
    return min(by_registers, by_shared, _WARPS // warps, _PROGRAMS)


def static_figures(kernel: Compiled, target: str) -> dict[str, int]:
    """Return the figures that take no replay.

    Args:
        kernel: Compiled for the target.
        target: Of ``compile.TARGETS``.
    """
    shared, warps = int(kernel.metadata.shared), int(kernel.metadata.num_warps)
    if "cubin" not in kernel.asm:
        text = kernel.asm["amdgcn"]
        found = dict(re.findall(r"\.(vgpr_spill_count|vgpr_count):\s*(\d+)", text))
        numbers = {"registers": "vgpr_count", "spills": "vgpr_spill_count"}
        return {name: int(found[key]) for name, key in numbers.items()} | {
            "shared": shared,
            "warps": warps,
        }
    registers, stack = _usage(kernel.asm["cubin"])
    return {
        "registers": registers,
        "spills": stack,
        "shared": shared,
        "warps": warps,
        "programs": resident(target, registers, shared, warps),
        "code": code_size(kernel.asm["cubin"]),
    }


def _flat(kinds: Iterable[Any], values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of the machine code with their types: what tuples hold, no constants."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


def _places(kernel: Compiled) -> tuple[dict[int, int], dict[int, Region]]:
    """Return the constants of a launch, and its tensors in memory."""
    constants = {0x0: 32 * kernel.metadata.num_warps, 0x4: 1, 0x8: 1}
    constants |= {0xC + 4 * axis: size for axis, size in enumerate(kernel.grid)}
    regions: dict[int, Region] = {}
    storages: dict[int, int] = {}
    at = _ARGUMENTS
    for kind, value in _flat(kernel.types.values(), map(kernel.arguments.get, kernel.types)):
        size = 8 if kind.startswith("*") or kind.endswith("64") else 4
        at += -at % size
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            number = storages.setdefault(storage._cdata, len(storages) + 1)
            regions[number] = Region(number << 36, storage.nbytes())
            bits = (number << 36) + int(value.storage_offset()) * value.element_size()
        elif isinstance(value, float):
            bits = int.from_bytes(struct.pack("<f", value), "little")
        else:
            bits = int(value)
        constants[at] = bits & 0xFFFFFFFF
        if size == 8:
            constants[at + 4] = bits >> 32 & 0xFFFFFFFF
        at += size
    return constants, regions


def _replay(kernel: Compiled, timing: Timing) -> tuple[Steady, Mapping[int, Region], list[str]]:
    constants, regions = _places(kernel)
    figures = static_figures(kernel, _REPLAYED)
    programs = min(figures["programs"], -(-prod(kernel.grid) // timing.processors))
    instructions = disassemble(kernel.asm["cubin"])
    launched = Launched(
        *(instructions, constants, kernel.grid, figures["warps"]),
        *(figures["shared"], regions, programs),
    )
    steady = replay_launch(launched, timing)
    most = sorted(instructions, key=lambda found: -steady.waits[found.address])[:_MOST_WAITED]
    waits = [
        f"{steady.waits[i.address]:5.1%} {i.address:#06x} {i.opcode} {', '.join(i.operands)}"
        for i in most
    ]
    return steady, regions, waits


def replayed_figures(kernel: Compiled, timing: Timing | None = None) -> dict[str, Any]:
    """Return what a multiprocessor does with a kernel once it is full.

    The largest tensor says how many tiles there are: all of it is read or written once.

    Args:
        kernel: For sm_90.
        timing: Default: an H200's.

    Returns:
        ``instructions``, ``barriers`` and ``loads`` (by the bytes of a lane) of a warp and tile,
        ``waits``, the instructions that are most waited for, with their share of a warp's time,
        ``cycles`` of a tile, ``copy_us`` of a copy of as many bytes, and ``model_us``. Where the
        replay cannot follow the kernel, "not_covered" says why.
    """
    timing = timing or Timing()
    try:
        steady, regions, waits = _replay(kernel, timing)
    except NotCoveredError as error:
        return {"not_covered": str(error)}
    figures: dict[str, Any] = {
        "instructions": round(steady.issued),
        "barriers": round(steady.barriers, 1),
        "loads": {str(size): round(count, 1) for size, count in steady.loads.items()},
        "waits": waits,
    }
    streamed = {
        place: size
        for place, size in steady.moved.items()
        if size and regions[place[0]].size > timing.resident
    }
    largest = max(streamed, key=lambda place: regions[place[0]].size, default=None)
    if largest is None:
        return {"not_covered": "no large tensor is read or written"}
    tiles = regions[largest[0]].size / streamed[largest]
    return figures | {
        "cycles": round(steady.cycles),
        "copy_us": round(tiles * sum(streamed.values()) / timing.bandwidth * 1e6, 1),
        "model_us": round(tiles * steady.cycles / timing.clock / timing.processors * 1e6, 1),
    }


def figures_of(kernel: Compiled, target: str, replayed: bool) -> dict[str, Any]:
    """Return all figures of a kernel that there are for a target.

    Args:
        kernel, target: As of :func:`static_figures`.
        replayed: Also those of :func:`replayed_figures`, for sm_90.
    """
    more = replayed_figures(kernel) if replayed and target == _REPLAYED else {}
    return static_figures(kernel, target) | more
