"""One multiprocessor: when its warps issue their instructions, by the code's own control codes.

Four schedulers issue an instruction a cycle each. A warp goes on after the stall that its last
instruction asks for, and once the scoreboards it waits for are free. The pipes of loads, special
functions and products take their cycles in turn. Not here: the cache of instructions, address
translation, conflicts of register banks, turns of the bus between reading and writing.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.static.expressions import NotCoveredError
from benchmarks.static.lanes import Code, Warp
from benchmarks.static.memory import Memory, Shared, Timing, wavefronts
from benchmarks.static.sass import Instruction, loop
from benchmarks.static.tile import Issuing, Launched, Steady, Tally
from benchmarks.static.translate import translate

_INTEGER = {
    *("IADD3", "LOP3", "LEA", "ISETP", "SHF", "SEL", "PRMT", "FMNMX", "FSETP", "FSEL", "IABS"),
    *("VIADD", "VIMNMX", "VIADDMNMX", "VIMNMX3", "MOV", "SGXT", "PLOP3", "P2R", "R2P", "FCHK"),
    *("FSET", "F2FP", "POPC", "VOTE", "CS2R", "IMAD"),
}
"""Two cycles each: there are 16 lanes for them at a scheduler."""
_SHARED = {"LDS", "STS", "LDSM", "STSM", "ATOMS"}
_GLOBAL = {"LDG", "STG", "LDGSTS", "REDG", "RED", "ATOMG", "CCTL"}
_BEGIN = 50
"""Cycles from a program's end to the begin of the next one in its place."""
_TILES = 6
_ALL_TILES = 16
"""Of a program, and of all, that are timed at least after the first two of each."""
_MOST = 600_000
"""Instructions that are run before a kernel is given up: some ten seconds."""
_SHORT = 14
"""Cycles until a scoreboard is free that nothing here holds longer."""


class _EndedError(Exception):
    """A program ended after few turns of its largest loop."""


class _Program:
    def __init__(self, warps: int) -> None:
        self.left = warps
        self.at_barrier: dict[str, list[Issuing]] = {}


def _number(text: str) -> int:
    found = re.search(r"0x([0-9a-f]+)$", text)
    return int(found[1], 16) if found else 0


class _Multiprocessor:
    """Runs programs of a launch until it knows how fast they are done."""

    def __init__(self, launched: Launched, timing: Timing, jump: int | None) -> None:
        self._launched, self._timing, self._jump = launched, timing, jump
        steps = translate(launched.instructions, launched.constants)
        self._code = Code(launched.instructions, steps)
        self._divides = any(i.opcode.startswith("I2F") for i in launched.instructions)
        self._memory = Memory(timing, launched.regions, launched.programs)
        self.waits = [0.0] * len(steps)
        self._lsu = 0.0
        self._integer, self._special, self._product = ([0.0] * 4 for _ in range(3))
        self._free = [0.0] * 4
        self._heap: list[tuple[float, int, Issuing]] = []
        self._pushed = 0
        self._programs: dict[int, _Program] = {}
        self._next = self._programs_of_grid()
        self._waits = [self._waiting(i) for i in launched.instructions]

    def _programs_of_grid(self) -> Iterator[tuple[int, int, int]]:
        x, y, z = self._launched.grid
        for number in range(x * y * z):
            yield number % x, number // x % y, number // (x * y)

    def _waiting(self, i: Instruction) -> Callable[[Issuing], float] | None:
        """What else than scoreboards an instruction waits for."""
        if i.base == "DEPBAR":
            left = _number(i.operands[-1])
            return lambda w: max(w.copies[: len(w.copies) - left], default=0.0)
        if i.base == "WARPGROUP" and "DEPBAR" in i.opcode:
            pending = _number(i.operands[-1])
            return lambda w: max(
                [*w.products[: len(w.products) - pending], 0.0 if pending else w.multiplied],
                default=0.0,
            )
        return None

    def _push(self, w: Issuing) -> None:
        """Put a warp where its next instruction's time is."""
        at = w.warp.at
        if at is None:
            return
        time = w.ready
        for number in self._launched.instructions[at].waits:
            time = max(time, w.scoreboards[number])
        wait = self._waits[at]
        if wait is not None:
            time = max(time, wait(w))
        self._pushed += 1
        heapq.heappush(self._heap, (time, self._pushed, w))

    def _start(self, slot: int, time: float) -> bool:
        program = next(self._next, None)
        if program is None:
            return False
        self._programs[slot] = _Program(self._launched.warps)
        shared = Shared(self._launched.shared)
        for number in range(self._launched.warps):
            warp = Warp(self._code, program, number, shared, self._divides)
            scheduler = (slot * self._launched.warps + number) % 4
            w = Issuing(warp, slot, scheduler, time)
            self._all.append(w)
            self._push(w)
        return True

    def _busy(self, i: Instruction, w: Issuing, time: float) -> float:
        """Return when an instruction's pipe takes it."""
        s, base = w.scheduler, i.base
        if base in _INTEGER:
            return self._integer[s]
        if base in _GLOBAL or base in _SHARED or base == "SHFL":
            return self._lsu - 64
        if base == "MUFU":
            return self._special[s] - 8
        if base in ("HMMA", "HGMMA"):
            return self._product[s] - (4 if base == "HMMA" else 64)
        return time

    def _global(self, i: Instruction, w: Issuing, at: Any, size: int, time: float) -> float:
        base = i.base
        if base != "CCTL":
            w.loads[size] = w.loads.get(size, 0) + (base in ("LDG", "LDGSTS"))
        sectors = set((at >> 5).tolist())
        lines = len({sector >> 2 for sector in sectors})
        begin = max(self._lsu, time)
        self._lsu = begin + max(lines, len(at) * size // 128)
        if base == "LDGSTS":
            self._lsu += wavefronts(w.warp.copied, size)
        if base == "CCTL":
            self._memory.fetch(sectors, begin, None, w.moved)
            return begin + _SHORT
        if base in ("STG", "REDG", "RED"):
            return self._memory.store(sectors, begin, w.moved)
        past = ".BYPASS" in i.opcode or base == "ATOMG" or ".GPU" in i.opcode
        return self._memory.fetch(sectors, begin, None if past else w.slot, w.moved)

    def _time(self, i: Instruction, w: Issuing, at: Any, size: int, time: float) -> float:
        """Return when an instruction's result is there, and take its time of the pipes."""
        s, base, timing = w.scheduler, i.base, self._timing
        if base in _INTEGER:
            self._integer[s] = max(self._integer[s], time) + 2
        elif base in _GLOBAL and at is not None and len(at):
            done = self._global(i, w, at, size, time)
            if base == "LDGSTS":
                w.copied = max(w.copied, done)
                return self._lsu + _SHORT
            return done
        elif base in _SHARED and at is not None and len(at):
            self._lsu = max(self._lsu, time) + wavefronts(at, size)
            return self._lsu + (timing.shared if base in ("LDS", "LDSM") else 12)
        elif base in ("LDL", "STL"):
            self._lsu = max(self._lsu, time) + size / 4
            return self._lsu + timing.l1
        elif base == "SHFL":
            self._lsu = max(self._lsu, time) + 2
            return self._lsu + timing.shuffle
        elif base == "MUFU":
            self._special[s] = max(self._special[s], time) + 8
            return self._special[s] + timing.special
        elif base == "HMMA":
            self._product[s] = max(self._product[s], time) + 6
            return self._product[s] + timing.product
        elif base == "HGMMA":
            columns = re.search(r"64x(\d+)x", i.opcode)
            assert columns is not None
            self._product[s] = max(self._product[s], time) + int(columns[1]) / 2
            w.multiplied = self._product[s] + timing.product
            if "gsb0" in i.operands[-1]:
                w.products.append(w.multiplied)
                del w.products[:-16]
        elif base == "LDGDEPBAR":
            w.copies.append(w.copied)
            del w.copies[:-16]
        return time + _SHORT

    def _barrier(self, i: Instruction, w: Issuing, time: float) -> None:
        """Let a warp wait for the others of its program."""
        program = self._programs[w.slot]
        name, *count = i.operands
        expected = _number(count[0]) // 32 if count and "0x" in count[0] else program.left
        here = program.at_barrier.setdefault(name, [])
        here.append(w)
        self._pass(here, min(expected, program.left), time)

    def run(self) -> Steady:
        """Return what happens once the multiprocessor is full."""
        launched = self._launched
        self._all: list[Issuing] = []
        for slot in range(launched.programs):
            if not self._start(slot, 200.0 * slot):
                break
        full = len(self._programs)
        instructions = launched.instructions
        jump, heap, free = self._jump, self._heap, self._free
        most = (2 * full + max(_TILES * full, _ALL_TILES)) * launched.warps
        ends, starts, left = 0, 0, _MOST
        begin = last = 0.0
        while heap:
            time, order, w = heapq.heappop(heap)
            scheduler = w.scheduler
            number = w.warp.at
            assert number is not None
            i = instructions[number]
            later = max(free[scheduler], self._busy(i, w, time))
            if later > time:
                # It keeps its place before those that come later.
                heapq.heappush(heap, (later, order, w))
                continue
            at = w.warp.step()
            self.waits[number] += time - w.issue
            w.issue = time
            free[scheduler] = time + 1
            w.issued += 1
            left -= 1
            if not left:
                raise NotCoveredError(f"tiles of more than {_MOST} instructions")
            w.ready = time + max(1, i.stall)
            done = self._time(i, w, at, self._code.steps[number].bytes, time)
            if i.signals is not None:
                w.scoreboards[i.signals] = max(w.scoreboards[i.signals], done)
            if i.releases is not None:
                loads = i.base in ("LDG", "LDS", "LDSM", "SHFL", "MUFU")
                read = min(done, max(self._lsu, time) + 12) if loads else done
                w.scoreboards[i.releases] = max(w.scoreboards[i.releases], read)
            jumped = w.warp.at != number + 1
            if jumped:
                w.ready = max(w.ready, time + 8)
            if i.base == "BAR":
                w.barriers += 1
                self._barrier(i, w, time)
                continue
            finished = jumped and i.address == jump and w.warp.at is not None
            if w.warp.at is None:
                if jump is not None:
                    raise _EndedError
                finished = True
                if not self._leave(w, time):
                    break
            self._push(w)
            if not finished:
                continue
            # A tile is done once for each of its warps.
            ends += 1
            w.tiles += 1
            last = time
            if starts:
                w.end = w.tally()
                w.begin = w.begin or (w.end if jump is not None else Tally(time, 0, 0, 0, {}, {}))
            elif ends >= 2 * full * launched.warps:
                starts, begin = ends, last
            if ends >= most:
                break
        return self._steady((last - begin) / max(1, ends - starts))

    def _leave(self, w: Issuing, time: float) -> bool:
        """Let a warp end, and after its program's last one the next program begin, if there is."""
        program = self._programs[w.slot]
        program.left -= 1
        for here in program.at_barrier.values():
            self._pass(here, program.left, time)
        return program.left > 0 or self._start(w.slot, time + _BEGIN)

    def _pass(self, here: list[Issuing], expected: int, time: float) -> None:
        """Let warps go on that wait at a barrier, if they are all there."""
        if len(here) < expected:
            return
        for other in here:
            other.ready = max(other.ready, time + self._timing.barrier)
            self._push(other)
        here.clear()

    def _steady(self, cycles: float) -> Steady:
        both = [(w.begin, w.end) for w in self._all if w.begin is not None and w.end is not None]
        pairs = [(begin, end) for begin, end in both if end.tiles > begin.tiles]
        tiles = sum(end.tiles - begin.tiles for begin, end in pairs)
        if not tiles:
            raise NotCoveredError("a launch of too few tiles")

        def mean(name: str) -> float:
            return sum(getattr(end, name) - getattr(begin, name) for begin, end in pairs) / tiles

        loads: dict[int, float] = {}
        moved: dict[tuple[int, bool], float] = {}
        for begin, end in pairs:
            for size, count in end.loads.items():
                new = count - begin.loads.get(size, 0)
                loads[size] = loads.get(size, 0) + new / tiles
            for place, count in end.moved.items():
                new = count - begin.moved.get(place, 0)
                moved[place] = moved.get(place, 0) + new / tiles * self._launched.warps
        loads = {size: count for size, count in sorted(loads.items()) if count}
        warps = self._launched.warps
        if self._jump is not None:
            # Each warp from end to end of a tile: programs need not be in step.
            cycles = 1 / sum(
                (end.tiles - begin.tiles) / (end.time - begin.time) for begin, end in pairs
            )
        # Writes, and what is asked for ahead, wait for the bus where no warp waits for them.
        bus = sum(size for place, size in moved.items() if self._memory.streams(place[0]))
        cycles = max(cycles * warps, bus / self._timing.share)
        all_waits = sum(self.waits)
        addresses = (instruction.address for instruction in self._launched.instructions)
        shares = (wait / all_waits for wait in self.waits)
        waits = dict(zip(addresses, shares, strict=True))
        return Steady(cycles, mean("issued"), mean("barriers"), loads, moved, waits)


def replay(launched: Launched, timing: Timing) -> Steady:
    """Return how a full multiprocessor does a tile of a launch.

    Args:
        launched: On one multiprocessor.
        timing: Of it.

    Raises:
        NotCoveredError: The kernel reads its addresses from memory, has an instruction that is not
            known, or too few tiles.
    """
    largest = loop(launched.instructions)
    try:
        return _Multiprocessor(launched, timing, largest and largest.address).run()
    except _EndedError:
        # The loop is within a tile.
        return _Multiprocessor(launched, timing, None).run()
