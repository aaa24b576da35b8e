"""Operands of machine instructions as Python expressions, and the small functions they call.

A vector register is an int64 array of a number below 2^32 for each lane, a uniform one such an int.
"""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np

LANES = np.arange(32)
WORD = 0xFFFFFFFF
ZERO = np.zeros(32, np.int64)
"""Never written to: an instruction puts a new array in place of a register."""


class NotCoveredError(Exception):
    """A kernel does what a replay cannot follow."""


def vector(x: Any) -> Any:
    """Return 32 lanes of a number below 2^32; lanes as they are."""
    return x if isinstance(x, np.ndarray) else np.full(32, x, np.int64)


def predicate(x: Any) -> Any:
    """Return 32 lanes of a truth value."""
    return x if isinstance(x, np.ndarray) else np.full(32, bool(x))


def signed(x: Any) -> Any:
    """Return a number below 2^32 as two's complement says."""
    return (x ^ 0x80000000) - 0x80000000


def wide(low: Any, high: Any) -> Any:
    """Return the signed 64-bit number of two registers."""
    if isinstance(low, np.ndarray) or isinstance(high, np.ndarray):
        return np.bitwise_or(low, np.left_shift(high, 32))
    joined = low | high << 32
    return joined - (1 << 64) if joined >> 63 else joined


def choose(condition: Any, yes: Any, no: Any) -> Any:
    """Return one of two numbers, in each lane."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, yes, no)
    return yes if condition else no


def permute(low: Any, selector: int, high: Any) -> Any:
    """Return four of the eight bytes of two registers, by nibbles; with bit 3, their sign."""
    joined = [low >> 8 * i & 255 for i in range(4)] + [high >> 8 * i & 255 for i in range(4)]
    result = low & 0
    for place in range(4):
        nibble = selector >> 4 * place & 15
        byte = joined[nibble & 7]
        if nibble & 8:
            byte = (byte >> 7) * 255
        result = result | byte << 8 * place
    return result


def to_float(x: Any, bits: int, is_signed: bool) -> Any:
    """Return the bits of a number as float32, rounded up."""
    number = np.asarray(x).astype(np.int64)
    if bits == 32 and is_signed:
        number = signed(number)
    exact = number.astype(np.float64)
    rounded = exact.astype(np.float32)
    rounded = np.where(rounded < exact, np.nextafter(rounded, np.float32(np.inf)), rounded)
    return rounded.astype(np.float32).view(np.uint32).astype(np.int64)


def reciprocal(x: Any) -> Any:
    """Return the bits of 1 / x, of those of a float32."""
    with np.errstate(divide="ignore", over="ignore"):
        value = np.float32(1) / vector(x).astype(np.uint32).view(np.float32)
    return value.view(np.uint32).astype(np.int64)


def truncated(x: Any) -> Any:
    """Return a float32, of its bits, towards 0."""
    value = vector(x).astype(np.uint32).view(np.float32).astype(np.float64)
    return np.nan_to_num(np.clip(value, 0, 2.0**62)).astype(np.int64)


def halves(high: str, low: str) -> int:
    """Return the bits of two float16 numbers in a register."""
    return int.from_bytes(struct.pack("<ee", float(low), float(high)), "little")


def ones(x: Any) -> Any:
    """Return how many bits are set."""
    return np.bitwise_count(x).astype(np.int64) if isinstance(x, np.ndarray) else x.bit_count()


def ballot(x: Any, active: Any) -> int:
    """Return the lanes in which a predicate holds, as bits."""
    return int(((predicate(x) & active) << LANES).sum())


_CONSTANT = re.compile(r"c\[0x0\]\[(?:(U?R\d+)\+?)?(0x[0-9a-f]+)?\]")


def constant(text: str, more: int = 0) -> str:
    """Return the expression of a constant of the launch.

    Args:
        text: As "c[0x0][0x210]" or "c[0x0][UR4+0x210]"; its first lane's number is taken for all.
        more: Bytes to go on.
    """
    match = _CONSTANT.fullmatch(text)
    if match is None:
        raise NotCoveredError(f"the constants {text}")
    at = int(match[2] or "0", 16) + more
    if match[1] is None:
        return f"C.get({at}, 0)"
    return f"C.get(int(vector({operand(match[1])})[w.first]) + {at}, 0)"


def operand(text: str) -> str:
    """Return the expression of an integer operand, below 2^32.

    Args:
        text: As written: a register, a number, or a constant of the launch.
    """
    if text.startswith("-") and not text.startswith("-0x"):
        return f"({2**32} - {operand(text[1:])})"
    if text.startswith("~"):
        return f"({operand(text[1:])} ^ {WORD})"
    if text in ("RZ", "URZ", "SRZ"):
        return "0"
    if match := re.fullmatch(r"(U?)R(\d+)", text):
        return f"{'U' if match[1] else 'R'}[{match[2]}]"
    if text.startswith("c["):
        return constant(text)
    if re.fullmatch(r"-?0x[0-9a-f]+", text):
        return str(int(text, 16) & WORD)
    raise NotCoveredError(f"the operand {text}")


def pair(text: str) -> str:
    """Return the expression of a 64-bit operand.

    Args:
        text: Its first register, or a number.
    """
    match = re.fullmatch(r"([-~]?)(U?)R(\d+)(\.64)?", text)
    if match is None:
        return operand(text)
    name = "U" if match[2] else "R"
    both = f"wide({name}[{match[3]}], {name}[{int(match[3]) + 1}])"
    return f"({match[1]}{both})" if match[1] else both


def truth(text: str) -> str:
    """Return the expression of a predicate, as "!P0"."""
    if text.startswith("!"):
        inner = truth(text[1:])
        return {"True": "False", "False": "True"}.get(inner, f"np.logical_not({inner})")
    if text in ("PT", "UPT"):
        return "True"
    return f"{'V' if text[0] == 'U' else 'P'}[{text[-1]}]"


def address(text: str) -> str:
    """Return the expression of an address, as "desc[UR4][R2.64+0x10]" or "[R3+UR4]"."""
    inner = text[text.rindex("[") + 1 : -1]
    terms = [
        str(int(part, 16))
        if "0x" in part
        else pair(part)
        if part.endswith(".64") or text.startswith("desc")
        else operand(part.removesuffix(".X4").removesuffix(".X16"))
        for part in inner.split("+")
    ]
    return " + ".join(terms)


_TWO = {
    **{0: "0", 1: "({a} | {b}) ^ W", 2: "({a} ^ W) & {b}", 3: "{a} ^ W", 4: "{a} & ({b} ^ W)"},
    **{5: "{b} ^ W", 6: "{a} ^ {b}", 7: "({a} & {b}) ^ W", 8: "{a} & {b}"},
    **{9: "({a} ^ {b}) ^ W", 10: "{b}", 11: "({a} ^ W) | {b}", 12: "{a}", 13: "{a} | ({b} ^ W)"},
    **{14: "{a} | {b}", 15: "W"},
}


def logic(a: str, b: str, c: str, table: int, ones: int = WORD) -> str:
    """Return the expression of a bitwise function of three operands.

    Args:
        a, b, c: Their expressions.
        table: Its bit 4 a + 2 b + c is the result.
        ones: All bits of an operand.
    """

    def of_two(bits: int) -> str:
        """Bit 2 b + c."""
        return _TWO[bits].format(a=b, b=c).replace("W", str(ones))

    if c == "0":
        reduced = sum((table >> 2 * i & 1) << i for i in range(4))
        if a == "0":
            reduced = reduced & 3 | (reduced & 3) << 2
        return f"({_TWO[reduced].format(a=a, b=b).replace('W', str(ones))})"
    low, high = of_two(table & 15), of_two(table >> 4)
    if low == high or a == "0":
        return f"({low})"
    return f"({a} & ({high}) | ({a} ^ {ones}) & ({low}))"
