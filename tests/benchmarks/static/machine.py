"""Machine code made by hand, for a model of a multiprocessor."""

from __future__ import annotations

from typing import Any

from benchmarks.static.memory import Region, Shared, Timing
from benchmarks.static.multiprocessor import replay
from benchmarks.static.sass import Instruction
from benchmarks.static.tile import Launched, Steady

ARGUMENT = 0x210
BASE = 1 << 36


def line(
    number: int,
    text: str,
    *,
    stall: int = 1,
    signals: int | None = None,
    waits: tuple[int, ...] = (),
    target: int | None = None,
) -> Instruction:
    """An instruction of text, at a number, of which 16 bytes each are before it."""
    guard = ""
    if text.startswith("@"):
        guard, _, text = text[1:].partition(" ")
    opcode, _, rest = text.partition(" ")
    operands = tuple(part.strip() for part in rest.split(",") if part.strip())
    to = None if target is None else 16 * target
    return Instruction(
        *(16 * number, guard, opcode, operands, stall),
        **{"signals": signals, "waits": waits, "target": to},
    )


def code(*lines: str | tuple[str, dict[str, Any]]) -> list[Instruction]:
    """Instructions, each text or text with what :func:`line` takes."""
    return [
        line(n, x) if isinstance(x, str) else line(n, x[0], **x[1]) for n, x in enumerate(lines)
    ]


def steady(
    instructions: list[Instruction],
    *,
    warps: int = 1,
    programs: int = 1,
    size: int = 1 << 30,
    timing: Timing | None = None,
    grid: int = 10_000,
) -> Steady:
    """A tile of a kernel whose argument is a tensor of so many bytes."""
    constants = {0x0: 32 * warps, ARGUMENT: BASE & 0xFFFFFFFF, ARGUMENT + 4: BASE >> 32}
    launched = Launched(
        *(instructions, constants, (grid, 1, 1), warps, 1024),
        *({1: Region(BASE, size)}, programs),
    )
    return replay(launched, timing or Timing())


__all__ = ["ARGUMENT", "BASE", "Region", "Shared", "Timing", "code", "line", "steady"]
