"""What lives on the meta device, counted by its maker."""

from __future__ import annotations

import torch

from hypermask_fast.planning.live_memory import KEPT, LiveMemory


def test_live_memory_counts_what_lives() -> None:
    with LiveMemory(heap=False) as memory:
        with memory.making("a"):
            a = torch.empty(1000, device="meta")
            view = a[10:]
        with memory.making("b"):
            b = torch.empty(500, device="meta")
        del b
        assert memory.live("a") == 4000
        assert memory.live("b") == 0
        assert memory.take_peak() == {"a": 4000, "b": 2000}
        del a
        assert memory.live("a") == 4000
        del view
        assert memory.live("a") == 0


def test_small_blocks_stay_with_a_cpu_process() -> None:
    with LiveMemory(heap=True) as memory:
        torch.empty(2**20, device="meta")
        big = torch.empty(2**24, device="meta")
        assert memory.take_peak() == {"other": 2**26, KEPT: 2**22}
        del big
        assert memory.take_peak() == {"other": 2**26, KEPT: 2**22}
        torch.empty(10, device="meta")
        assert memory.take_peak() == {KEPT: 2**22}
