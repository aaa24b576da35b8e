"""The time that processes spend on each other, by clocks that are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from hypermask_fast.runs import together
from hypermask_fast.training.distributed import processes
from hypermask_fast.training.distributed.processes import Processes


class Event:
    """A CUDA event, of which two stand apart as long as what came between them took."""

    now = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.now

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Processes:
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    return Processes()


@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_every_kind_of_exchange_is_measured(
    kinds: int, alone: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(processes.time, "perf_counter", iter(range(10**6)).__next__)
    steps, total = 17 * 4, 0.0
    for _ in range(steps):
        for kind in range(kinds):
            with alone.exchanging(torch.device("cuda")):
                Event.now += 1.0 + 100 * kind
            total += 1.0 + 100 * kind
    assert alone.seconds == pytest.approx(total / 1e3)


def test_on_a_cpu_all_time_is_that_of_the_host(
    alone: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.time, "perf_counter", iter([1.0, 3.0, 7.0, 7.5]).__next__)
    for _ in range(2):
        with alone.exchanging(torch.device("cpu")):
            pass
    assert alone.seconds == 2.5


def test_the_efficiency_is_what_exchanges_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(world=2, seconds=10.0)
    monkeypatch.setattr(together, "joined", lambda: found)
    monkeypatch.setattr(together.time, "perf_counter", iter([100.0, 120.0]).__next__)
    efficiency = together.Efficiency()
    found.seconds = 15.0
    line = efficiency.line(50)
    assert line is not None
    assert line.startswith("2 processes: 2.5 steps/s")
    assert "25 % of the time in exchanges" in line
    assert line.endswith("at most 75 %")
