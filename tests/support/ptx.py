"""Runs the float32 instructions of a PTX program of one element a thread, by numpy.

The approximations of a GPU's own unit are the exact functions, rounded; what multiplies and adds
rounds twice. So two programs can be compared, of the same instructions in another order or with
branches, and none with a GPU.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence

import numpy as np

Floats = np.ndarray
_LEAST = np.finfo(np.float32).tiny
_FUNCTIONS: dict[str, Callable[..., Floats]] = {
    "abs": np.abs,
    "mul": np.multiply,
    "add": np.add,
    "fma": lambda a, b, c: (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32),
    "ex2": lambda a: np.exp2(a, dtype=np.float64).astype(np.float32),
    "rcp": lambda a: np.divide(1.0, a, dtype=np.float64).astype(np.float32),
    "mov": lambda a: a,
}
_COMPARISONS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "ge": np.greater_equal,
    "lt": np.less,
    "gt": np.greater,
    "le": np.less_equal,
    "ltu": lambda a, b: ~(a >= b),
    "geu": lambda a, b: ~(a < b),
}
_INSTRUCTION = re.compile(r"(?:@(!?)(%p\d+) )?([a-z0-9_.]+)\s*([^;]*);")


def _flushed(x: Floats) -> Floats:
    """Subnormal numbers as 0 of their sign."""
    small = np.abs(x) < _LEAST
    return np.where(small, np.copysign(np.float32(0), x), x) if small.any() else x


def instructions(ptx: str) -> list[tuple[str, ...]]:
    """The labels, branches, comparisons and float32 instructions of a program, in words."""
    found: list[tuple[str, ...]] = []
    for line in ptx.partition("\n{\n")[2].splitlines():
        text = line.partition("//")[0].strip()
        if text.startswith("$L__BB"):
            found.append(("label", text.rstrip(":")))
        match = _INSTRUCTION.fullmatch(text)
        if match is None:
            continue
        negated, predicate, name, operands = match.groups()
        words = [word.strip(" {}[]") for word in operands.split(",")]
        if name.startswith("bra"):
            found.append(("bra", words[0], predicate or "", negated or ""))
        elif name in ("ld.global.b32", "st.global.b32"):
            found.append((name[:2], words[0] if name[0] == "l" else words[1]))
        elif ".f32" in name or (name == "mov.b32" and words[-1].startswith("0f")):
            found.append((name, *words))
    return found


def run(program: Sequence[tuple[str, ...]], z: Floats) -> Floats:
    """Return what the program stores for each element; branches go forward only.

    Args:
        program: Of :func:`instructions`.
        z: What it loads, float32.
    """
    registers: dict[str, Floats] = {}
    waiting: dict[str, Floats] = {}
    active = np.ones(len(z), dtype=bool)
    some = every = True
    stored = np.full_like(z, np.nan)

    def value(word: str) -> Floats:
        if word.startswith("0f"):
            return np.float32(struct.unpack(">f", bytes.fromhex(word[2:]))[0])
        return registers[word]

    def put(word: str, new: Floats) -> None:
        old = registers.get(word)
        registers[word] = new if old is None or every else np.where(active, new, old)

    for name, *words in program:
        operation, *kinds = name.split(".")
        if operation == "label":
            active = active | waiting.pop(words[0], np.zeros_like(active))
            some, every = active.any(), active.all()
        elif not some:
            continue
        elif operation == "bra":
            label, predicate, negated = words
            taken = active.copy()
            if predicate:
                taken &= registers[predicate] ^ bool(negated)
            waiting[label] = waiting.get(label, np.zeros_like(active)) | taken
            active = active & ~taken
            some, every = active.any(), active.all()
        elif operation == "ld":
            put(words[0], z)
        elif operation == "st":
            stored = np.where(active, value(words[0]), stored)
        elif operation == "setp":
            put(words[0], _COMPARISONS[kinds[0]](value(words[1]), value(words[2])))
        elif operation == "selp":
            chosen = registers[words[3]]
            put(words[0], np.where(chosen, value(words[1]), value(words[2])))
        else:
            inputs = [value(word) for word in words[1:]]
            if "ftz" in kinds:
                inputs = [_flushed(x) for x in inputs]
            result = _FUNCTIONS[operation](*inputs)
            put(words[0], _flushed(result) if "ftz" in kinds else result)
    return stored
