"""The model of a multiprocessor on code of which the time is known."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks.static.expressions import NotCoveredError
from benchmarks.static.sass import Instruction
from tests.benchmarks.static.machine import Timing, code, steady

TIMING = Timing()
LOOP = 5


def stream(*body: str | tuple[str, dict[str, Any]], bytes_: int = 512) -> list[Instruction]:
    """A loop without end over R2, an address of 16 bytes for each lane, that goes on by bytes."""
    lines: list[str | tuple[str, dict[str, Any]]] = [
        "S2R R0, SR_TID.X",
        "S2R R4, SR_CTAID.X",
        "ULDC.64 UR4, c[0x0][0x210]",
        "IMAD R0, R4, 0x100000, R0",
        "IMAD.WIDE.U32 R2, R0, 0x10, UR4",
        *body,
        f"IADD3 R2, P0, R2, 0x{bytes_:x}, RZ",
        "IADD3.X R3, R3, RZ, RZ, P0, !PT",
    ]
    return code(*lines, ("BRA loop", {"target": LOOP}), "EXIT")


LOAD = ("LDG.E.128 R8, desc[UR4][R2.64]", {"signals": 0})
USE = ("FADD R8, R8, R8", {"waits": (0,)})


def test_a_chain_of_loads_takes_a_latency_each() -> None:
    tile = steady(stream(LOAD, USE))
    # And the bytes' turn on the bus, four cycles of the pipe of loads, and what issues after it.
    expected = TIMING.dram + 512 / TIMING.share
    assert expected <= tile.cycles <= expected + 30
    assert tile.loads == {16: 1}
    assert tile.moved == {(1, False): 512}
    assert tile.issued == 5


def test_many_loads_take_their_turn_on_the_bus() -> None:
    tile = steady(stream(LOAD, USE), programs=32)
    assert tile.cycles == pytest.approx(512 / TIMING.share, rel=0.02)


def test_writes_take_the_bus_as_reads_do() -> None:
    tile = steady(stream(LOAD, ("STG.E.128 desc[UR4][R2.64], R8", {"waits": (0,)})), programs=32)
    assert tile.cycles == pytest.approx(1024 / TIMING.share, rel=0.05)
    assert tile.moved == {(1, False): 512, (1, True): 512}


@pytest.mark.parametrize("warps", [4, 8])
def test_a_scheduler_issues_one_instruction_a_cycle(warps: int) -> None:
    tile = steady(code(*["FADD R8, R8, R8"] * 200, ("BRA loop", {"target": 0})), warps=warps)
    assert tile.cycles == pytest.approx(200 * warps / 4, rel=0.06)


def test_integers_have_half_the_lanes() -> None:
    tile = steady(code(*["LOP3.LUT R8, R8, R8, RZ, 0xc0, !PT"] * 200, ("BRA loop", {"target": 0})))
    assert tile.cycles == pytest.approx(400, rel=0.06)


def test_a_stall_is_waited_for() -> None:
    lines = [("FADD R8, R8, R8", {"stall": 9})] * 50
    tile = steady(code(*lines, ("BRA loop", {"target": 0})))
    assert tile.cycles == pytest.approx(450, rel=0.03)


def test_a_line_that_was_asked_for_in_time_comes_from_the_cache() -> None:
    ahead = "CCTL.E.PF2 [R2.64+0x400]"
    wait = [("FADD R8, R8, R8", {"stall": 15})] * 4
    late = steady(stream(LOAD, USE, *wait))
    early = steady(stream(ahead, LOAD, USE, *wait))
    assert late.cycles - early.cycles == pytest.approx(TIMING.dram - TIMING.l2, abs=40)


def test_a_line_that_was_asked_for_late_takes_the_rest() -> None:
    between = [("FADD R8, R8, R8", {"stall": 10})] * 20
    late = steady(stream(LOAD, USE, *between))
    early = steady(stream("CCTL.E.PF2 [R2.64]", *between, LOAD, USE))
    assert late.cycles - early.cycles == pytest.approx(200, abs=20)


def test_what_was_read_is_found_again() -> None:
    again = ("LDG.E.128 R8, desc[UR4][R2.64]", {"signals": 1, "waits": (0,)})
    tile = steady(stream(LOAD, again, ("FADD R8, R8, R8", {"waits": (1,)})))
    once = steady(stream(LOAD, USE))
    assert tile.cycles - once.cycles == pytest.approx(TIMING.l1 + 4, abs=6)
    assert tile.moved == once.moved


def test_warps_wait_for_each_other() -> None:
    slow = [("FADD R8, R8, R8", {"stall": 15})] * 20
    lines = [
        "S2R R0, SR_TID.X",
        "ISETP.LT.AND P0, PT, R0, 0x20, PT",
        "BAR.SYNC.DEFER_BLOCKING 0x0",
        ("@!P0 BRA end", {"target": 24}),
        *slow,
        ("BRA loop", {"target": 2}),
    ]
    tile = steady(code(*lines), warps=4)
    assert tile.cycles == pytest.approx(20 * 15 + TIMING.barrier, rel=0.1)
    assert tile.barriers == 1


def test_copies_are_waited_for_by_group() -> None:
    lines = (
        "LDGSTS.E.BYPASS.128 [R7], desc[UR4][R2.64]",
        ("LDGDEPBAR", {"signals": 0}),
        "DEPBAR.LE SB0, 0x{}",
    )
    one, three = (
        steady(stream(*lines[:2], lines[2].format(left))).cycles
        for left in (0, 3)  # type: ignore[union-attr]
    )
    assert one == pytest.approx(TIMING.dram, rel=0.1)
    assert three == pytest.approx(one / 4, rel=0.15)


def test_products_take_the_tensor_core() -> None:
    lines = ["HGMMA.64x64x8.F32.TF32 R24, R72, gdesc[UR36], R24"] * 8
    wait = "WARPGROUP.DEPBAR.LE gsb0, 0x0"
    tile = steady(code(*lines, wait, ("BRA loop", {"target": 0})), warps=4)
    assert tile.cycles == pytest.approx(8 * 32 + TIMING.product, rel=0.1)


def test_a_program_without_a_loop_is_a_tile() -> None:
    instructions = stream(LOAD, USE)
    whole = [i for i in instructions if i.base != "BRA"]
    tile = steady(whole, programs=4)
    assert tile.issued == len(whole)
    assert tile.moved == pytest.approx({(1, False): 512})


def test_what_cannot_be_followed_is_said() -> None:
    with pytest.raises(NotCoveredError, match="FANCY"):
        steady(code("FANCY.NEW R0, R1", "EXIT"))
    with pytest.raises(NotCoveredError, match="not in its arguments"):
        steady(code("LDG.E R0, desc[UR4][R2.64]", "EXIT"))
    with pytest.raises(NotCoveredError, match="too few"):
        steady(code("FADD R8, R8, R8", "EXIT"), grid=1)
