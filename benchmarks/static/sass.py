"""Reads the machine code of an NVIDIA kernel, with the control codes of each instruction."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import triton

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_LOW = re.compile(r"^\s+/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/")
_HIGH = re.compile(r"^\s+/\* (0x[0-9a-f]{16}) \*/")
_LABEL = re.compile(r"^(?:\.type\s+)?([.$\w]+):$")
_TARGET = re.compile(r"`\(([.$\w]+)\)")


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        address: In bytes from the kernel's begin.
        guard: The predicate under which it runs, as "!P0"; "" if always.
        opcode: With its modifiers, as "LDG.E.128".
        operands: As written.
        stall: Cycles until the warp's next instruction may issue.
        signals: The scoreboard that is free once the result is there; None.
        releases: The scoreboard that is free once the operands were read; None.
        waits: Scoreboards that have to be free.
        target: Address of a jump; None.
    """

    address: int
    guard: str
    opcode: str
    operands: tuple[str, ...]
    stall: int = 1
    signals: int | None = None
    releases: int | None = None
    waits: tuple[int, ...] = ()
    target: int | None = None

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]


def _run(tool: str, *arguments: str) -> str:
    command = [str(_TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def usage(cubin: Path) -> tuple[int, int]:
    """Return the registers of a thread, and the bytes of its stack.

    Args:
        cubin: The compiled kernel.
    """
    text = _run("cuobjdump", "-res-usage", str(cubin))
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", text)[0]
    return int(registers), int(stack)


def disassemble(cubin: bytes) -> list[Instruction]:
    """Return the instructions of a compiled kernel.

    Args:
        cubin: The object that the compiler made.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        return parse(_run("nvdisasm", "-hex", "-c", str(path)).splitlines())


def _instruction(address: int, text: str, high: int) -> Instruction:
    control = high >> 41
    guard = ""
    if text.startswith("@"):
        guard, _, text = text[1:].partition(" ")
    opcode, _, rest = text.strip().partition(" ")
    operands = tuple(part.strip().replace(".reuse", "") for part in rest.split(",") if part.strip())
    signals, releases, waits = control >> 5 & 7, control >> 8 & 7, control >> 11 & 63
    return Instruction(
        *(address, guard, opcode, operands, control & 15),
        signals=None if signals == 7 else signals,
        releases=None if releases == 7 else releases,
        waits=tuple(number for number in range(6) if waits >> number & 1),
    )


def parse(lines: Iterable[str]) -> list[Instruction]:
    """Return the instructions of what ``nvdisasm -hex -c`` prints.

    Args:
        lines: Of its output.
    """
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    low: tuple[int, str] | None = None
    for line in lines:
        if match := _LOW.match(line):
            low = int(match[1], 16), match[2]
            labels |= dict.fromkeys(waiting, low[0])
            waiting = []
        elif low is not None and (match := _HIGH.match(line)):
            found.append(_instruction(*low, int(match[1], 16)))
            low = None
        elif match := _LABEL.match(line.strip()):
            waiting.append(match[1])
    return [
        instruction._replace(target=labels[match[1]])
        if instruction.operands
        and (match := _TARGET.search(instruction.operands[-1])) is not None
        and instruction.base != "RET"
        else instruction
        for instruction in found
    ]


def loop(instructions: Iterable[Instruction]) -> Instruction | None:
    """Return the jump back that ends the largest loop; None where nothing is repeated.

    Args:
        instructions: Of a kernel.
    """
    backward = [
        found
        for found in instructions
        if found.base == "BRA" and found.target is not None and found.target < found.address
    ]
    return max(backward, key=lambda jump: jump.address - (jump.target or 0), default=None)
