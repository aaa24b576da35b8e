"""Integers, predicates and jumps of machine code, against Python's integers and numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from benchmarks.static.lanes import Code, Warp
from benchmarks.static.memory import Shared, wavefronts
from benchmarks.static.sass import Instruction
from benchmarks.static.translate import translate
from tests.benchmarks.static.machine import code

WORD = 0xFFFFFFFF


def run(instructions: list[Instruction], **registers: Any) -> Warp:
    """A warp at its end; registers are R or U with a number, P are predicates."""
    warp = Warp(Code(instructions, translate(instructions, {})), (0, 0, 0), 0, Shared(4096), True)
    for name, value in registers.items():
        bank = {"R": warp.registers, "U": warp.uniform, "P": warp.predicates}[name[0]]
        bank[int(name[1:])] = value
    while warp.at is not None:
        warp.step()
    return warp


def words(seed: int) -> np.ndarray[Any, Any]:
    edge = np.array([0, 1, 2, 0x7FFFFFFF, 0x80000000, 0x80000001, WORD - 1, WORD])
    return np.concatenate([edge, np.random.default_rng(seed).integers(0, 1 << 32, 24)])


A, B, C, D = (words(seed) for seed in range(4))
EXIT = "EXIT"


@pytest.mark.parametrize(
    "table", [0x00, 0x0F, 0x3C, 0x78, 0x80, 0x96, 0xC0, 0xE8, 0xF8, 0xFE, 0xFF]
)
def test_logic_of_three(table: int) -> None:
    text = f"LOP3.LUT P0, R4, R1, R2, R3, 0x{table:x}, !PT"
    warp = run(code(text, f"LOP3.LUT R5, R1, R2, RZ, 0x{table:x}, !PT", EXIT), R1=A, R2=B, R3=C)
    for c, register in ((C, 4), (0 * C, 5)):
        expected = sum(
            (table >> (A >> bit & 1) * 4 + (B >> bit & 1) * 2 + (c >> bit & 1) & 1) << bit
            for bit in range(32)
        )
        assert (warp.registers[register] == expected).all()
    assert (warp.predicates[0] == (warp.registers[4] != 0)).all()


def joined(low: Any, high: Any) -> list[int]:
    return [int(x) | int(y) << 32 for x, y in zip(low, high, strict=True)]


def test_sums_of_64_bits_carry() -> None:
    lines = ("IADD3 R4, P0, R0, R2, RZ", "IADD3.X R5, R1, R3, RZ, P0, !PT")
    less = ("IADD3 R6, P1, R0, -R2, RZ", "IADD3.X R7, R1, ~R3, RZ, P1, !PT")
    warp = run(code(*lines, *less, EXIT), R0=A, R1=B, R2=C, R3=D)
    pairs = zip(joined(A, B), joined(C, D), strict=True)
    expected = [((x + y) % 2**64, (x - y) % 2**64) for x, y in pairs]
    registers = warp.registers
    found = zip(joined(registers[4], registers[5]), joined(registers[6], registers[7]), strict=True)
    assert list(found) == expected


def test_products_are_wide_and_signed() -> None:
    lines = ("IMAD.WIDE R4, R0, R1, R2", "IMAD.WIDE.U32 R6, R0, R1, RZ", "IMAD.HI R8, R0, R1, RZ")
    warp = run(code(*lines, "IMAD R9, R0, R1, R2", EXIT), R0=A, R1=B, R2=C, R3=D)
    signed = (
        [(int(x) ^ 1 << 31) - (1 << 31) for x in A],
        [(int(x) ^ 1 << 31) - (1 << 31) for x in B],
    )
    products = [x * y for x, y in zip(*signed, strict=True)]
    sums = [(p + c) % 2**64 for p, c in zip(products, joined(C, D), strict=True)]
    registers = warp.registers
    assert joined(registers[4], registers[5]) == sums
    assert joined(registers[6], registers[7]) == [
        int(x) * int(y) for x, y in zip(A, B, strict=True)
    ]
    assert list(registers[8]) == [p >> 32 & WORD for p in products]
    assert list(registers[9]) == [
        (int(x) * int(y) + int(z)) & WORD for x, y, z in zip(A, B, C, strict=True)
    ]


def test_addresses_of_scaled_numbers() -> None:
    lines = (
        "LEA R4, P0, R0, R2, 0x4",
        "LEA.HI.X R5, R0, R3, R1, 0x4, P0",
        "LEA R6, P1, R0, R2, 0x2",
        "LEA.HI.X.SX32 R7, R0, R3, 0x2, P1",
        "SHF.L.U64.HI R8, R0, 0x5, R1",
        "SHF.R.S32.HI R9, RZ, 0x1f, R0",
        "SHF.R.U32.HI R10, RZ, 0x3, R0",
    )
    registers = run(code(*lines, EXIT), R0=A, R1=B, R2=C, R3=D).registers
    base = joined(C, D)
    wide = [(x * 16 + y) % 2**64 for x, y in zip(joined(A, B), base, strict=True)]
    assert joined(registers[4], registers[5]) == wide
    signed = [(int(x) ^ 1 << 31) - (1 << 31) for x in A]
    narrow = [(x * 4 + y) % 2**64 for x, y in zip(signed, base, strict=True)]
    assert joined(registers[6], registers[7]) == narrow
    assert list(registers[8]) == [x << 5 >> 32 & WORD for x in joined(A, B)]
    assert list(registers[9]) == [WORD if x < 0 else 0 for x in signed]
    assert list(registers[10]) == [int(x) >> 3 for x in A]


@pytest.mark.parametrize("kind", ["LT", "LE", "GT", "GE", "EQ", "NE"])
@pytest.mark.parametrize("unsigned", [False, True])
def test_comparisons_of_64_bits(kind: str, unsigned: bool) -> None:
    low = f"ISETP.{kind}.U32.AND P0, PT, R0, R2, PT"
    high = f"ISETP.{kind}.{'U32.' if unsigned else ''}AND.EX P1, PT, R1, R3, PT, P0"
    some = np.where(np.arange(32) % 3 == 0, B, D)
    warp = run(code(low, high, EXIT), R0=A, R1=B, R2=np.where(A % 2 == 0, A, C), R3=some)
    left, right = joined(A, B), joined(np.where(A % 2 == 0, A, C), some)
    if not unsigned:
        left, right = ([(x ^ 1 << 63) - (1 << 63) for x in side] for side in (left, right))
    symbol = {"LT": "__lt__", "LE": "__le__", "GT": "__gt__", "GE": "__ge__"}
    method = (symbol | {"EQ": "__eq__", "NE": "__ne__"})[kind]
    expected = [getattr(x, method)(y) for x, y in zip(left, right, strict=True)]
    assert list(warp.predicates[1]) == expected


def test_lanes_part_and_join() -> None:
    instructions = code(
        "S2R R0, SR_TID.X",
        "ISETP.GE.AND P0, PT, R0, 0x5, PT",
        ("BSSY B0, there", {"target": 6}),
        ("@P0 BRA there", {"target": 5}),
        "MOV R1, 0x7",
        "BSYNC B0",
        "VIADD R1, R1, 0x1",
        "EXIT",
    )
    warp = run(instructions, R1=np.full(32, 100))
    assert list(warp.registers[1]) == [8 if lane < 5 else 101 for lane in range(32)]


def test_lanes_that_wait_go_on_when_the_others_end() -> None:
    instructions = code(
        "S2R R0, SR_TID.X",
        "ISETP.GE.AND P0, PT, R0, 0x5, PT",
        ("BSSY B0, there", {"target": 5}),
        ("@P0 BRA there", {"target": 5}),
        "EXIT",
        "BSYNC B0",
        "VIADD R1, R1, 0x1",
        "EXIT",
    )
    warp = run(instructions, R1=np.zeros(32, np.int64))
    assert list(warp.registers[1]) == [int(lane >= 5) for lane in range(32)]


def test_a_loop_ends_for_each_lane_when_its_own_does() -> None:
    instructions = code(
        "S2R R0, SR_TID.X",
        ("BSSY B0, there", {"target": 5}),
        "VIADD R1, R1, 0x1",
        "ISETP.LT.AND P0, PT, R1, R0, PT",
        ("@P0 BRA there", {"target": 2}),
        "BSYNC B0",
        "EXIT",
    )
    warp = run(instructions, R1=np.zeros(32, np.int64))
    assert list(warp.registers[1]) == [max(1, lane) for lane in range(32)]


def test_what_is_guarded_is_left_in_other_lanes() -> None:
    even = np.arange(32) % 2 == 0
    warp = run(code("@!P3 VIADD R1, R1, 0x1", EXIT), R1=A, P3=even)
    assert (warp.registers[1] == np.where(even, A, (A + 1) & WORD)).all()


def test_shared_memory_keeps_words_and_bytes() -> None:
    lines = (
        "STS.64 [R0+0x8], R2",
        "LDS R4, [R0+0xc]",
        "STS.U8 [R1+0x400], R2",
        "LDS.U8 R5, [R1+0x400]",
    )
    lanes = np.arange(32)
    warp = run(code(*lines, EXIT), R0=8 * lanes, R1=lanes, R2=A, R3=B)
    assert (warp.registers[4] == B).all()
    assert (warp.registers[5] == A & 255).all()


def test_bits_are_counted_and_lanes_collected() -> None:
    lines = ("POPC R2, R0", "VOTE.ANY R3, PT, P0", "REDUX.SUM.S32 UR4, R5", "IABS R6, R0")
    odd = np.arange(32) % 2 == 1
    warp = run(code(*lines, EXIT), R0=A, R5=np.arange(32), P0=odd)
    assert list(warp.registers[2]) == [int(x).bit_count() for x in A]
    assert (warp.registers[3] == 0xAAAAAAAA).all()
    assert warp.uniform[4] == sum(range(32))
    signed = [(int(x) ^ 1 << 31) - (1 << 31) for x in A]
    assert list(warp.registers[6]) == [abs(x) & WORD for x in signed]


def test_lanes_give_each_other_their_numbers() -> None:
    lines = (
        "SHFL.BFLY PT, R2, R0, 0x4, 0x1f",
        "SHFL.UP PT, R3, R0, 0x1, RZ",
        "SHFL.IDX PT, R4, R0, R1, 0x1f",
    )
    registers = run(code(*lines, EXIT), R0=A, R1=B & 31).registers
    lanes = np.arange(32)
    assert (registers[2] == A[lanes ^ 4]).all()
    assert (registers[3] == A[np.maximum(lanes - 1, 0)]).all()
    assert (registers[4] == A[B & 31]).all()


def test_spilled_registers_come_back() -> None:
    odd = np.arange(32) % 2 == 1
    lines = ("STL.64 [R9+0x8], R2", "@P0 STL [R9+0xc], R0", "LDL.64 R4, [R9+0x8]")
    warp = run(code(*lines, EXIT), R0=A, R2=B, R3=C, P0=odd, R9=np.full(32, 64))
    assert (warp.registers[4] == B).all()
    assert (warp.registers[5] == np.where(odd, A, C)).all()


def test_bytes_are_permuted_and_signs_extended() -> None:
    lines = (
        "PRMT R2, R0, 0x7632, R1",
        "PRMT R3, R0, 0x9910, RZ",
        "SGXT R4, R0, 0x8",
        "SGXT.U32 R5, R0, 0x4",
    )
    registers = run(code(*lines, EXIT), R0=A, R1=B).registers
    assert (registers[2] == (A >> 16 | (B >> 16) << 16)).all()
    assert (registers[3] == (((A & 0xFFFF) ^ 0x8000) - 0x8000) & WORD).all()
    assert (registers[4] == ((A & 255 ^ 128) - 128) & WORD).all()
    assert (registers[5] == (A & 15)).all()


@pytest.mark.parametrize("by", [1, 3, 7, 100, 65537])
def test_integers_are_divided_by_the_reciprocal(by: int) -> None:
    # As compilers do: an estimate of 2^32 / by, a step of Newton, and two corrections.
    lines = (
        "I2F.U32.RP R2, R1",
        "MUFU.RCP R2, R2",
        "IADD3 R2, R2, 0xffffffe, RZ",
        "F2I.FTZ.U32.TRUNC.NTZ R3, R2",
        "IADD3 R4, RZ, -R3, RZ",
        "IMAD R4, R4, R1, RZ",
        "MOV R2, RZ",
        "IMAD.HI.U32 R3, R3, R4, R2",
        "IMAD.HI.U32 R3, R3, R0, RZ",
        "IADD3 R4, -R3, RZ, RZ",
        "IMAD R4, R1, R4, R0",
        "ISETP.GE.U32.AND P0, PT, R4, R1, PT",
        "@P0 IADD3 R4, -R1, R4, RZ",
        "@P0 IADD3 R3, R3, 0x1, RZ",
        "ISETP.GE.U32.AND P0, PT, R4, R1, PT",
        "@P0 IADD3 R3, R3, 0x1, RZ",
    )
    assert (run(code(*lines, EXIT), R0=A, R1=np.full(32, by)).registers[3] == A // by).all()


@pytest.mark.parametrize(
    ("stride", "size", "cycles"),
    [
        (4, 4, 1),
        (0, 4, 1),
        (8, 4, 2),
        (128, 4, 32),
        (132, 4, 1),
        (16, 16, 4),
        (8, 8, 2),
        (0, 16, 4),
    ],
)
def test_conflicts_of_banks(stride: int, size: int, cycles: int) -> None:
    assert wavefronts(np.arange(32) * stride, size) == cycles
