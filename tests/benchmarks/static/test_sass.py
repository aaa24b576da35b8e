"""Machine code as it is printed, and its control codes."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from benchmarks.static.sass import loop, parse


def printed(address: int, text: str, control: int) -> str:
    """Two lines of nvdisasm, of which the second has the control code from its bit 41 on."""
    low = f"        /*{address:04x}*/   {text} ;   /* 0x{0:016x} */"
    return f"{low}\n   /* 0x{control << 41:016x} */\n"


CODE = (
    ".text.kernel:\n"
    + printed(0x00, "S2R R0, SR_TID.X", 1 | 7 << 5 | 7 << 8)
    + ".L_x_0:\n"
    + printed(
        0x10, "@!P2 LDG.E.128 R4, desc[UR4][R2.64+0x10]", 4 | 2 << 5 | 1 << 8 | 0b100001 << 11
    )
    + printed(0x20, "IADD3 R2, P0, R2.reuse, 0x10, RZ", 12 | 7 << 5 | 7 << 8 | 0b000100 << 11)
    + printed(0x30, "@P1 BRA `(.L_x_0)", 5 | 7 << 5 | 7 << 8)
    + ".L_x_1:\n"
    + printed(0x40, "BRA `(.L_x_1)", 0 | 7 << 5 | 7 << 8)
)


def test_an_instruction_is_read_with_its_control_code() -> None:
    _, load, add, jump, end = parse(CODE.splitlines())
    assert (load.address, load.guard, load.opcode, load.base) == (0x10, "!P2", "LDG.E.128", "LDG")
    assert load.operands == ("R4", "desc[UR4][R2.64+0x10]")
    assert (load.stall, load.signals, load.releases, load.waits) == (4, 2, 1, (0, 5))
    assert add.operands == ("R2", "P0", "R2", "0x10", "RZ")
    assert (add.stall, add.signals, add.releases, add.waits) == (12, None, None, (2,))
    assert (jump.target, end.target) == (0x10, 0x40)


def test_the_largest_loop_is_found_and_the_trap_at_the_end_is_none() -> None:
    instructions = parse(CODE.splitlines())
    found = loop(instructions)
    assert found is not None
    assert (found.address, found.target) == (0x30, 0x10)
    assert loop(instructions[:3] + instructions[4:]) is None
