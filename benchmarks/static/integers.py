"""Machine instructions on registers and predicates, as lines of Python.

Each function of ``TEXTS`` takes an instruction and returns what it does, in the names that
:mod:`benchmarks.static.translate` describes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from benchmarks.static import expressions
from benchmarks.static.expressions import NotCoveredError, constant, logic, operand, pair, truth
from benchmarks.static.sass import Instruction

Text = Callable[[Instruction], str]

_COMPARE = {"GE": ">=", "GT": ">", "LE": "<=", "LT": "<", "EQ": "==", "NE": "!="}
_SPECIAL = {"SR_TID.X": "w.threads", "SR_LANEID": "LANES", "SR_CgaCtaId": "0"} | {
    f"SR_CTAID.{axis}": f"w.program[{number}]" for number, axis in enumerate("XYZ")
}


def _split(operands: tuple[str, ...]) -> tuple[str, list[str], list[str]]:
    """Return the destination, the predicates written beside it, and the rest."""
    rest = list(operands[1:])
    written = []
    while rest and re.fullmatch(r"U?P(\d|T)", rest[0]):
        written.append(rest.pop(0))
    return operands[0], written, rest


def _assign(target: str, value: str) -> str:
    if target in ("RZ", "URZ"):
        return ""
    if target.startswith("UR"):
        return f"U[{target[2:]}] = int({value}) & {expressions.WORD}\n"
    return f"R[{target[1:]}] = vector(({value}) & {expressions.WORD})\n"


def _assign_truth(target: str, value: str) -> str:
    if target in ("PT", "UPT"):
        return ""
    if target.startswith("UP"):
        return f"V[{target[2:]}] = bool({value})\n"
    return f"P[{target[1:]}] = predicate({value})\n"


def _next(register: str) -> str:
    match = re.fullmatch(r"(U?R)(\d+)", register)
    return register if match is None else f"{match[1]}{int(match[2]) + 1}"


def _assign_wide(target: str, value: str) -> str:
    high = _assign(_next(target), "wide_result >> 32")
    return f"wide_result = {value}\n" + _assign(target, "wide_result") + high


def _carries(terms: list[str], carry: list[str]) -> str:
    return " + ".join(terms) + "".join(f" + ({truth(name)})" for name in carry)


def _add(i: Instruction) -> str:
    target, written, rest = _split(i.operands)
    if ".64" in i.opcode:
        return _assign_wide(target, " + ".join(pair(x) for x in rest))
    numbers = [x for x in rest if not re.fullmatch(r"!?U?P(\d|T)", x)]
    carry = [x for x in rest if x not in numbers]
    text = f"total = {_carries([operand(x) for x in numbers], carry)}\n"
    text += "".join(
        _assign_truth(name, f"(total >> 32) > {number}") for number, name in enumerate(written)
    )
    return text + _assign(target, "total")


def _multiply(i: Instruction) -> str:
    target, written, rest = _split(i.operands)
    a, b, c, *carry = rest
    unsigned = ".U32" in i.opcode
    factors = [operand(x) if unsigned else f"signed({operand(x)})" for x in (a, b)]
    if ".WIDE" in i.opcode:
        text = _assign_wide(target, f"{factors[0]} * {factors[1]} + {pair(c)}")
        return text + "".join(_assign_truth(name, "False") for name in written)
    if ".HI" in i.opcode:
        word = expressions.WORD
        text = f"product, added = {factors[0]} * {factors[1]}, {pair(c)}\n"
        text += f"total = (product >> 32 & {word}) + (added >> 32 & {word})\n"
        text += f"total = total + ((product & {word}) + (added & {word}) >> 32)\n"
        text += "".join(_assign_truth(name, "(total >> 32) > 0") for name in written)
        return text + _assign(target, "total")
    return _assign(target, _carries([f"{operand(a)} * {operand(b)}", operand(c)], carry))


def _lea(i: Instruction) -> str:
    target, written, rest = _split(i.operands)
    carry = [x for x in rest if re.fullmatch(r"!?U?P(\d|T)", x)]
    numbers = [x for x in rest if x not in carry]
    shift = int(numbers[-1], 16)
    a = operand(numbers[0])
    if ".HI" in i.opcode:
        if "SX32" in i.opcode:
            shifted = f"(signed({a}) >> {32 - shift} & {expressions.WORD})"
        else:
            high = operand(numbers[2])
            shifted = f"(({a} >> {32 - shift} | {high} << {shift}) & {expressions.WORD})"
    else:
        shifted = f"({a} << {shift} & {expressions.WORD})"
    text = f"total = {_carries([shifted, operand(numbers[1])], carry)}\n"
    text += "".join(_assign_truth(name, "(total >> 32) > 0") for name in written)
    return text + _assign(target, "total")


def _shift(i: Instruction) -> str:
    target, low, by, high = i.operands
    a, s, c = operand(low), f"np.minimum({operand(by)}, 63)", operand(high)
    if operand(by).isdigit():
        s = operand(by)
    if ".L" in i.opcode:
        if ".HI" in i.opcode:
            return _assign(target, f"(wide({a}, {c}) << {s}) >> 32")
        return _assign(target, f"{a} << {s}")
    if ".HI" in i.opcode:
        return _assign(target, f"signed({c}) >> {s}" if ".S32" in i.opcode else f"{c} >> {s}")
    return _assign(target, f"wide({a}, {c}) >> {s}")


def _lop3(i: Instruction) -> str:
    if re.fullmatch(r"U?P(\d|T)", i.operands[0]):
        written, target, *rest = i.operands
    else:
        written, (target, *rest) = "PT", i.operands
    a, b, c, table = rest[:4]
    text = f"total = {logic(operand(a), operand(b), operand(c), int(table, 16))}\n"
    return text + _assign_truth(written, "total != 0") + _assign(target, "total")


def _plop3(i: Instruction) -> str:
    target, other, a, b, c, table, second = i.operands
    text = ""
    for name, bits in ((target, table), (other, second)):
        text += f"number = 4 * {truth(a)} + 2 * {truth(b)} + 1 * {truth(c)}\n".replace(
            "* True", "* 1"
        ).replace("* False", "* 0")
        text += f"value_{name} = ({int(bits, 16)} >> number & 1) != 0\n"
    return text + "".join(_assign_truth(name, f"value_{name}") for name in (target, other))


def _compare(i: Instruction) -> str:
    target, other, a, b, before, *low = i.operands
    parts = i.opcode.split(".")
    kind = parts[1]
    x, y = operand(a), operand(b)
    if "U32" not in parts:
        x, y = f"signed({x})", f"signed({y})"
    result = f"({x} {_COMPARE[kind]} {y})"
    if "EX" in parts:
        below = truth(low[0])
        strict = {"GE": ">", "LE": "<"}.get(kind, _COMPARE[kind])
        result = {
            "EQ": f"(({x} == {y}) & {below})",
            "NE": f"(({x} != {y}) | {below})",
        }.get(kind, f"(({x} {strict} {y}) | (({x} == {y}) & {below}))")
    symbol = next(s for name, s in (("AND", "&"), ("OR", "|"), ("XOR", "^")) if name in parts)
    text = f"held, before = {result}, {truth(before)}\n"
    text += f"value, opposite = held {symbol} before, np.logical_not(held) {symbol} before\n"
    return text + _assign_truth(target, "value") + _assign_truth(other, "opposite")


def _compare_floats(i: Instruction) -> str:
    """Of numbers that are 0 in registers."""
    target, other, a, b, before = i.operands[:5]
    kind = i.opcode.split(".")[1 if i.base != "HSETP2" or "BF16" not in i.opcode else 2]

    def number(text: str) -> float:
        bare = text.strip("-|")
        negative = -1.0 if text.startswith("-") else 1.0
        if re.match(r"U?R(\d|Z)|c\[", bare):
            return 0.0
        return negative * float(bare.replace("INF", "inf").replace("QNAN", "nan").lstrip("+"))

    x, y = number(a), number(b)
    holds = {
        **{"LT": x < y, "LE": x <= y, "GT": x > y, "GE": x >= y, "EQ": x == y, "NE": x != y},
        **{"NAN": False, "NUM": True, "MAX": x >= y, "MIN": x <= y},
    }.get(kind.removesuffix("U") if kind not in ("NEU",) else "NE", False)
    symbol = "|" if ".OR" in i.opcode else "^" if ".XOR" in i.opcode else "&"
    text = f"value = {holds} {symbol} {truth(before)}\n"
    text += f"opposite = {not holds} {symbol} {truth(before)}\n"
    return text + _assign_truth(target, "value") + _assign_truth(other, "opposite")


def _pick(i: Instruction) -> str:
    target, a, b, which = i.operands
    return _assign(target, f"choose({truth(which)}, {operand(a)}, {operand(b)})")


def _extreme(i: Instruction) -> str:
    target, *rest = i.operands
    *numbers, which = rest
    values = [operand(x) if ".U32" in i.opcode else f"signed({operand(x)})" for x in numbers]
    if i.base == "VIADDMNMX":
        values = [
            f"signed(({operand(numbers[0])} + {operand(numbers[1])}) & 4294967295)",
            values[2],
        ]
    text = f"total = {values[0]}\n"
    for value in values[1:]:
        both = f"np.minimum(total, {value}), np.maximum(total, {value})"
        text += f"total = choose({truth(which)}, {both})\n"
    return text + _assign(target, "total")


def _shuffle(i: Instruction) -> str:
    _, target, source, lane, _ = i.operands
    by = operand(lane)
    index = {
        "BFLY": f"LANES ^ ({by})",
        "IDX": f"{by} + 0 * LANES",
        "UP": f"np.where(LANES >= ({by}), LANES - ({by}), LANES)",
        "DOWN": f"np.where(LANES + ({by}) < 32, LANES + ({by}), LANES)",
    }[i.opcode.split(".")[1]]
    return _assign(target, f"vector({operand(source)})[({index}) & 31]")


def _vote(i: Instruction) -> str:
    source = i.operands[-1]
    if i.operands[0][:2] == "UP" or i.operands[0][0] == "P":
        return _assign_truth(i.operands[0], f"ballot({truth(source)}, w.active) != 0")
    return _assign(i.operands[0], f"ballot({truth(source)}, w.active)")


def _reduce(i: Instruction) -> str:
    kind = i.opcode.split(".")[1].lower()
    return _assign(i.operands[0], f"signed({operand(i.operands[1])})[w.active].{kind}()")


def _move(i: Instruction) -> str:
    target, source = i.operands[0], i.operands[-1]
    if ".64" in i.opcode and "c[" in source:
        # The register of the index may be one that is written.
        both = f"low, high = {constant(source)}, {constant(source, 4)}\n"
        return both + _assign(target, "low") + _assign(_next(target), "high")
    if i.base == "CS2R":
        return _assign(target, "0") + ("" if ".32" in i.opcode else _assign(_next(target), "0"))
    return _assign(target, _SPECIAL.get(source) or operand(source))


def _first_lane(i: Instruction) -> str:
    return _assign(i.operands[0], f"vector({operand(i.operands[1])})[w.first]")


def _predicates_to_register(i: Instruction) -> str:
    target, _, other, mask = i.operands
    chosen = int(mask, 16)
    name = "V" if i.base == "UP2UR" else "P"
    bits = [f"{name}[{n}] * {1 << n}" for n in range(7) if chosen >> n & 1]
    kept = f"({operand(other)} & {expressions.WORD ^ chosen})"
    return _assign(target, " + ".join([*bits, kept]))


def _register_to_predicates(i: Instruction) -> str:
    source, mask = operand(i.operands[1]), int(i.operands[2], 16)
    return "".join(
        _assign_truth(f"P{n}", f"({source} >> {n} & 1) != 0") for n in range(7) if mask >> n & 1
    )


def _one(expression: str) -> Text:
    """Of one source, for which {a} stands."""

    def text(i: Instruction) -> str:
        return _assign(i.operands[0], expression.format(a=operand(i.operands[1])))

    return text


def _extend(i: Instruction) -> str:
    target, source, bits = i.operands
    size = int(bits, 16)
    low = f"({operand(source)} & {(1 << size) - 1})"
    if ".U32" in i.opcode:
        return _assign(target, low)
    return _assign(target, f"({low} ^ {1 << size - 1}) - {1 << size - 1}")


def _permute(i: Instruction) -> str:
    target, low, selector, high = i.operands
    chosen = operand(selector)
    if not chosen.isdigit():
        raise NotCoveredError("PRMT by a register")
    return _assign(target, f"permute({operand(low)}, {chosen}, {operand(high)})")


def _from_integer(i: Instruction) -> str:
    target, source = i.operands
    if ".F64" in i.opcode or ".RP" not in i.opcode:
        return _assign(target, "0")
    if ".U64" in i.opcode:
        return _assign(target, f"vector(to_float({pair(source)}, 64, False))")
    signed_source = ".U32" not in i.opcode
    return _assign(target, f"vector(to_float({operand(source)}, 32, {signed_source}))")


def _to_integer(i: Instruction) -> str:
    target, source = i.operands
    if ".U64" in i.opcode:
        return _assign_wide(target, f"truncated({operand(source)})")
    if ".F64" in i.opcode:
        return _assign(target, "0")
    return _assign(target, f"truncated({operand(source)})")


def _special_function(i: Instruction) -> str:
    if ".RCP" in i.opcode and "64H" not in i.opcode:
        return _assign(i.operands[0], f"reciprocal({operand(i.operands[1])}) if w.divides else 0")
    return _assign(i.operands[0], "0")


def _half_constant(i: Instruction) -> str:
    target, a, b, high, low = i.operands
    numbers = all(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", x) for x in (high, low))
    if {a.strip("-"), b.strip("-")} <= {"RZ"} and numbers:
        return _assign(target, str(expressions.halves(high, low)))
    return _assign(target, "0")


TEXTS: Mapping[str, Text] = {
    **dict.fromkeys(("IADD3", "UIADD3", "VIADD"), _add),
    **dict.fromkeys(("IMAD", "UIMAD"), _multiply),
    **dict.fromkeys(("LEA", "ULEA"), _lea),
    **dict.fromkeys(("SHF", "USHF"), _shift),
    **dict.fromkeys(("LOP3", "ULOP3"), _lop3),
    **dict.fromkeys(("PLOP3", "UPLOP3"), _plop3),
    **dict.fromkeys(("ISETP", "UISETP"), _compare),
    **dict.fromkeys(("FSETP", "DSETP", "HSETP2"), _compare_floats),
    **dict.fromkeys(("SEL", "USEL"), _pick),
    **dict.fromkeys(("VIMNMX", "VIMNMX3", "VIADDMNMX", "IMNMX", "UIMNMX"), _extreme),
    **dict.fromkeys(("MOV", "UMOV", "S2R", "S2UR", "CS2R", "LDC", "ULDC"), _move),
    **dict.fromkeys(("SGXT", "USGXT"), _extend),
    **dict.fromkeys(("PRMT", "UPRMT"), _permute),
    **dict.fromkeys(("VOTE", "VOTEU"), _vote),
    **dict.fromkeys(("P2R", "UP2UR"), _predicates_to_register),
    **dict.fromkeys(("POPC", "UPOPC"), _one("ones({a})")),
    "UFLO": _one("max(0, {a}.bit_length() - 1)"),
    "IABS": _one("np.abs(signed({a}))"),
    "R2P": _register_to_predicates,
    "R2UR": _first_lane,
    "SHFL": _shuffle,
    "REDUX": _reduce,
    "I2F": _from_integer,
    "F2I": _to_integer,
    "MUFU": _special_function,
    "HFMA2": _half_constant,
    "FCHK": lambda i: _assign_truth(i.operands[0], "False"),
}
