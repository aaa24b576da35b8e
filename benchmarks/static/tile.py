"""What a multiprocessor is given to do, and what it did: a launch, a warp's part, and a tile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.static.lanes import Warp
from benchmarks.static.memory import Moved, Region
from benchmarks.static.sass import Instruction


class Launched(NamedTuple):
    """A launch for a multiprocessor.

    Attributes:
        instructions: Of the kernel.
        constants: Its arguments and sizes, 32 bits each, by offset.
        grid: Programs.
        warps: Of a program.
        shared: Bytes of a program.
        regions: Tensors, by the upper bits of their addresses.
        programs: That run at a time on a multiprocessor.
    """

    instructions: list[Instruction]
    constants: Mapping[int, int]
    grid: tuple[int, int, int]
    warps: int
    shared: int
    regions: Mapping[int, Region]
    programs: int


class Tally(NamedTuple):
    """What a warp did.

    Attributes:
        time: Until which it did.
        tiles: Turns of the kernel's largest loop; where there is none, whole programs.
        issued, barriers: Instructions.
        loads: By the bytes of a lane.
        moved: Bytes that were touched for the first time.
    """

    time: float
    tiles: int
    issued: int
    barriers: int
    loads: dict[int, int]
    moved: Moved


class Steady(NamedTuple):
    """A tile, as a multiprocessor does it that is full.

    Attributes:
        cycles: From one tile to the next.
        issued, barriers: Instructions of a warp.
        loads: Loads of a warp, by the bytes of a lane.
        moved: Bytes of all warps, by region, and whether they were written.
        waits: By the address of an instruction, the share of the warps' time before it issued.
    """

    cycles: float
    issued: float
    barriers: float
    loads: Mapping[int, float]
    moved: Mapping[tuple[int, bool], float]
    waits: Mapping[int, float]


class Issuing:
    """A warp, and when it may issue next."""

    def __init__(self, warp: Warp, slot: int, scheduler: int, time: float) -> None:
        self.warp, self.slot, self.scheduler = warp, slot, scheduler
        self.ready = self.issue = time
        self.scoreboards = [0.0] * 6
        self.copies: list[float] = []
        self.copied = 0.0
        self.products: list[float] = []
        self.multiplied = 0.0
        self.tiles = self.issued = self.barriers = 0
        self.loads: dict[int, int] = {}
        self.moved: Moved = {}
        self.begin: Tally | None = None
        self.end: Tally | None = None

    def tally(self) -> Tally:
        """Return what it did so far."""
        counts = dict(self.loads), dict(self.moved)
        return Tally(self.issue, self.tiles, self.issued, self.barriers, *counts)
