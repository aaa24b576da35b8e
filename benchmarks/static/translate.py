"""Makes a Python function of each machine instruction, of what decides addresses and jumps.

``function(R, U, P, V, w)`` changes the vector and uniform registers R and U and the predicates P
and V of the warp w; ``C`` are the launch's constants. Floating-point results are 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.static import expressions, integers
from benchmarks.static.expressions import NotCoveredError, address, operand
from benchmarks.static.integers import Text
from benchmarks.static.sass import Instruction

Function = Callable[[Any, Any, Any, Any, Any], Any]

_FLOAT = {
    *("FADD", "FMUL", "FFMA", "FSEL", "FMNMX", "FSET", "FRND", "FSWZADD", "FMNMX3"),
    *("F2F", "F2FP", "I2FP", "HADD2", "HMUL2", "HFMA2", "HMNMX2", "HSET2", "HMMA", "LDSM"),
}
_DOUBLE = {"DADD", "DMUL", "DFMA"}
_NOTHING = {
    *("NOP", "BAR", "BSSY", "BSYNC", "BREAK", "BRA", "EXIT", "CALL", "RET", "WARPSYNC", "MEMBAR"),
    *("FENCE", "WARPGROUP", "LDGDEPBAR", "DEPBAR", "HGMMA", "ERRBAR", "CCTL", "YIELD", "UCGABAR"),
    *("NANOSLEEP", "ELECT", "ACQBULK", "CCTLL", "DEPBAR"),
}
_MEMORY = {
    *("LDG", "STG", "LDS", "STS", "LDGSTS", "LDSM", "STSM", "REDG", "RED", "ATOMG", "ATOMS"),
    *("LDL", "STL", "CCTL"),
}
_BYTES = {".128": 16, ".64": 8, ".U16": 2, ".S16": 2, ".U8": 1, ".S8": 1}


class Step(NamedTuple):
    """What an instruction does to a warp.

    Attributes:
        function: Changes its registers; None where it changes none.
        registers, predicates: Vector registers and predicates that it writes.
        address: Where it reads or writes memory, a number for each lane; None.
        bytes: For each lane.
        copied: Where in shared memory it writes what it reads; None.
    """

    function: Function | None
    registers: tuple[int, ...] = ()
    predicates: tuple[int, ...] = ()
    address: Function | None = None
    bytes: int = 0
    copied: Function | None = None


def width(instruction: Instruction) -> int:
    """Return the bytes that an access to memory moves for each lane."""
    if instruction.base in ("LDSM", "STSM"):
        return 16 if instruction.opcode.endswith(".4") else 8 if ".2" in instruction.opcode else 4
    return next((size for name, size in _BYTES.items() if name in instruction.opcode), 4)


def _load_shared(i: Instruction) -> str:
    target = i.operands[0]
    if target == "RZ":
        return ""
    first = int(target[1:])
    size = width(i)
    if size < 4:
        return f"R[{first}] = w.shared.narrow({size}, {address(i.operands[1])})\n"
    words = f"words = w.shared.words({address(i.operands[1])})\n"
    return words + "".join(
        f"R[{first + n}] = w.shared.load(words + {n})\n" for n in range(size // 4)
    )


def _store_shared(i: Instruction) -> str:
    source, size = i.operands[1], width(i)
    at = address(i.operands[0])
    if size < 4:
        return f"w.shared.put({size}, {at}, {operand(source)}, w.mask)\n"
    text = f"words = w.shared.words({at})\n"
    for n in range(size // 4):
        value = "0" if source == "RZ" else f"R[{int(source[1:]) + n}]"
        text += f"w.shared.store(words + {n}, {value}, w.mask)\n"
    return text


def _load_local(i: Instruction) -> str:
    first = int(i.operands[0][1:])
    at = f"at = int(vector({address(i.operands[1])})[w.first])\n"
    return at + "".join(
        f"R[{first + n}] = w.local.get(at + {4 * n}, ZERO)\n" for n in range(max(1, width(i) // 4))
    )


def _store_local(i: Instruction) -> str:
    text = f"at = int(vector({address(i.operands[0])})[w.first])\n"
    for n in range(max(1, width(i) // 4)):
        value = "ZERO" if i.operands[1] == "RZ" else f"R[{int(i.operands[1][1:]) + n}]"
        old = f"w.local.get(at + {4 * n}, ZERO)"
        text += f"w.local[at + {4 * n}] = np.where(w.mask, {value}, {old})\n"
    return text


def _zero(count: int) -> Text:
    def text(i: Instruction) -> str:
        first = i.operands[0]
        if first.startswith("P"):
            first = i.operands[1]
        if not re.fullmatch(r"R\d+", first):
            return ""
        size = count or max(1, width(i) // 4)
        if i.base == "HMMA":
            size = 4
        return "".join(f"R[{int(first[1:]) + n}] = ZERO\n" for n in range(size))

    return text


_TEXTS: Mapping[str, Text] = {
    **integers.TEXTS,
    **dict.fromkeys(_FLOAT, _zero(1)),
    **dict.fromkeys(_DOUBLE, _zero(2)),
    **dict.fromkeys(("LDG", "LDSM", "ATOMG", "ATOMS"), _zero(0)),
    **dict.fromkeys(_NOTHING | {"STG", "LDGSTS", "STSM", "REDG", "RED"}, lambda i: ""),
    "LDL": _load_local,
    "STL": _store_local,
    "LDS": _load_shared,
    "STS": _store_shared,
}
_NAMESPACE = {
    name: getattr(expressions, name)
    for name in (
        *("vector", "predicate", "signed", "wide", "choose", "permute", "to_float", "reciprocal"),
        *("truncated", "ones", "ballot", "LANES", "ZERO"),
    )
} | {"np": np}


def _where(instruction: Instruction) -> str | None:
    base = instruction.base
    if base not in _MEMORY or (base == "CCTL" and ".PF" not in instruction.opcode):
        return None
    at = [x for x in instruction.operands if x.endswith("]")]
    if base == "CCTL" and ".64" not in at[0]:
        at = [re.sub(r"\[(R\d+)", r"[\1.64", at[0])]
    # Of a copy to shared memory the second is where it reads.
    return address(at[1] if base == "LDGSTS" else at[0])


def translate(instructions: list[Instruction], constants: Mapping[int, int]) -> list[Step]:
    """Return what each instruction does.

    Args:
        instructions: Of a kernel.
        constants: Of the launch, 32 bits each, by their offset.

    Raises:
        NotCoveredError: One of them is not known.
    """
    source = ""
    for number, instruction in enumerate(instructions):
        if instruction.base not in _TEXTS:
            raise NotCoveredError(instruction.opcode)
        text = _TEXTS[instruction.base](instruction)
        if text:
            body = "".join(f"    {line}\n" for line in text.splitlines())
            source += f"def f{number}(R, U, P, V, w):\n{body}"
        if (at := _where(instruction)) is not None:
            source += f"def a{number}(R, U, P, V, w):\n    return vector({at})\n"
        if instruction.base == "LDGSTS":
            at = address(instruction.operands[0])
            source += f"def c{number}(R, U, P, V, w):\n    return vector({at})\n"
    functions: dict[str, Any] = {**_NAMESPACE, "C": constants}
    exec(compile(source, "<machine code>", "exec"), functions)
    steps = []
    for number, instruction in enumerate(instructions):
        text = _TEXTS[instruction.base](instruction)
        steps.append(
            Step(
                functions.get(f"f{number}"),
                tuple(sorted({int(n) for n in re.findall(r"\bR\[(\d+)\] = ", text)})),
                tuple(sorted({int(n) for n in re.findall(r"\bP\[(\d+)\] = ", text)})),
                functions.get(f"a{number}"),
                width(instruction) if functions.get(f"a{number}") else 0,
                functions.get(f"c{number}"),
            )
        )
    return steps
