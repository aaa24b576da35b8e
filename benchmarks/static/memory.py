"""When memory answers: the caches, the multiprocessor's share of the bus, and shared memory.

Times are in cycles of the multiprocessor. A sector of 32 bytes that is read first comes from DRAM,
a latency after its bytes had their turn on the bus. Others are found in the program's share of L1
or in the multiprocessor's of L2, or are on their way there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.static.expressions import ZERO, NotCoveredError

SECTOR = 32
Moved = dict[tuple[int, bool], int]
"""Bytes by region, and whether they were written."""


class Timing(NamedTuple):
    """Of one multiprocessor of an H200; an H100 differs in the bus.

    Attributes:
        clock: Cycles a second.
        bandwidth: Bytes a second that a copy reaches on all multiprocessors.
        processors: Multiprocessors.
        dram, l2, l1: Latencies of a load.
        shared, shuffle, special, product, barrier: Latencies of other instructions.
        l2_bytes: A cycle, from L2.
        l2_size, l1_size: Bytes, of one multiprocessor.
        resident: Tensors up to this size are in L2 from the start.
        ahead: Cycles of the bus by which writes may be late before they hold up their warp.
    """

    clock: float = 1.755e9
    bandwidth: float = 4.2e12
    processors: int = 132
    dram: int = 600
    l2: int = 270
    l1: int = 36
    shared: int = 28
    shuffle: int = 24
    special: int = 24
    product: int = 20
    barrier: int = 20
    l2_bytes: int = 64
    l2_size: int = 50_000_000 // 132
    l1_size: int = 256 * 1024
    resident: int = 1 << 20
    ahead: int = 2000

    @property
    def share(self) -> float:
        """Bytes a cycle of the bus for one multiprocessor."""
        return self.bandwidth / self.processors / self.clock


class Shared:
    """Shared memory of a program, as words of 32 bits."""

    def __init__(self, size: int) -> None:
        self._words = np.zeros(max(size, 1024) // 4 + 64, np.uint32)
        self._views: dict[int, Any] = {
            1: self._words.view(np.uint8),
            2: self._words.view(np.uint16),
        }

    def words(self, address: Any) -> Any:
        """Return the numbers of words, of addresses; those of lanes that are off may be wild."""
        return np.minimum((address & 0xFFFFFF) >> 2, len(self._words) - 4) + ZERO

    def load(self, word: Any) -> Any:
        """Return words."""
        return self._words[word].astype(np.int64)

    def store(self, word: Any, value: Any, mask: Any) -> None:
        """Write words, in the lanes of a mask."""
        values = np.broadcast_to(np.asarray(value), 32)
        self._words[word[mask]] = values[mask].astype(np.uint32)

    def narrow(self, size: int, address: Any) -> Any:
        """Return numbers of one or two bytes."""
        view = self._views[size]
        at = np.minimum((address & 0xFFFFFF) // size, len(view) - 1) + ZERO
        return view[at].astype(np.int64)

    def put(self, size: int, address: Any, value: Any, mask: Any) -> None:
        """Write numbers of one or two bytes, in the lanes of a mask."""
        view = self._views[size]
        at = np.minimum((address & 0xFFFFFF) // size, len(view) - 1) + ZERO
        values = np.broadcast_to(np.asarray(value), 32) & (256**size - 1)
        view[at[mask]] = values[mask].astype(view.dtype)


def wavefronts(address: Any, size: int) -> int:
    """Return the cycles that an access to shared memory takes, for its conflicts of banks.

    Args:
        address: Of the lanes that are on.
        size: Bytes for each.
    """
    lanes = max(1, 128 // size) if size > 4 else 32
    words = (address >> 2).tolist()
    cycles = 0
    for first in range(0, len(words), lanes):
        banks: dict[int, int] = {}
        for word in {w + n for w in words[first : first + lanes] for n in range(max(1, size // 4))}:
            banks[word & 31] = banks.get(word & 31, 0) + 1
        cycles += max(banks.values(), default=1)
    return max(1, cycles)


class Region(NamedTuple):
    """A tensor in memory: its first address, and its bytes."""

    begin: int
    size: int


class Memory:
    """Global memory as one multiprocessor sees it."""

    def __init__(self, timing: Timing, regions: Mapping[int, Region], programs: int) -> None:
        self._timing, self._regions = timing, regions
        self._byte = 1 / timing.share
        self._bus = 0.0
        self._port = 0.0
        self._l2: dict[int, float] = {}
        self._l1: list[dict[int, float]] = [{} for _ in range(programs)]
        self._l1_sectors = timing.l1_size // SECTOR // programs
        self._seen: tuple[set[int], set[int]] = (set(), set())

    def streams(self, region: int) -> bool:
        """Return whether a tensor does not stay in the cache."""
        return self._regions[region].size > self._timing.resident

    def _region(self, sector: int) -> int:
        at = sector * SECTOR
        found = at >> 36
        region = self._regions.get(found)
        if region is None or not -128 <= at - region.begin < region.size + 128:
            raise NotCoveredError(f"the address {at:#x}, which is not in its arguments")
        return found

    def _touch(self, sector: int, region: int, write: bool, moved: Moved) -> bool:
        """Count a sector that was not read, or not written, before."""
        seen = self._seen[write]
        if sector in seen:
            return False
        seen.add(sector)
        moved[region, write] = moved.get((region, write), 0) + SECTOR
        return True

    def _enter(self, cache: dict[int, float], sector: int, time: float, most: int) -> None:
        cache[sector] = time
        if len(cache) > most:
            del cache[next(iter(cache))]

    def fetch(self, sectors: set[int], time: float, program: int | None, moved: Moved) -> float:
        """Return when the last of some sectors is there.

        Args:
            sectors: Their numbers.
            time: Of the request.
            program: Whose L1 they pass; None past L1.
            moved: Counts what is touched for the first time.
        """
        timing = self._timing
        l1 = None if program is None else self._l1[program]
        last = time
        for sector in sectors:
            if l1 is not None and sector in l1:
                last = max(last, time + timing.l1, l1[sector])
                continue
            arrives = self._l2.get(sector)
            if arrives is None:
                region = self._region(sector)
                self._touch(sector, region, False, moved)
                if not self.streams(region):
                    arrives = 0.0
                else:
                    self._bus = max(self._bus, time) + SECTOR * self._byte
                    arrives = self._bus + timing.dram
                self._enter(self._l2, sector, arrives, timing.l2_size // SECTOR)
            self._port = max(self._port, time) + SECTOR / timing.l2_bytes
            arrives = max(arrives, self._port + timing.l2)
            if l1 is not None:
                self._enter(l1, sector, arrives, self._l1_sectors)
            last = max(last, arrives)
        return last

    def store(self, sectors: set[int], time: float, moved: Moved) -> float:
        """Write sectors; return when the writing warp may use its registers again.

        Args:
            sectors, time, moved: As of :meth:`fetch`.
        """
        for sector in sectors:
            region = self._region(sector)
            if self._touch(sector, region, True, moved):
                if self.streams(region):
                    self._bus = max(self._bus, time) + SECTOR * self._byte
                self._enter(self._l2, sector, time, self._timing.l2_size // SECTOR)
        return time + 20 + max(0.0, self._bus - time - self._timing.ahead)
