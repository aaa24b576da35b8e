"""Times many launches at once, as one CUDA graph where they can be captured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from hypermask_fast.kernels.captures import capture_pool

Run = Callable[[], object]

_LAUNCHES = 200
_CACHE_BYTES = 160 * 2**20
"""What a rotation of inputs has to exceed to be read from memory: some times the largest L2."""
_SETS = 160


def count_sets(nbytes: int, device: str) -> int:
    """Return how many sets of inputs of ``nbytes`` to launch in turn, so that caches stay cold."""
    if device != "cuda":
        return 1
    return max(1, min(_SETS, -(-_CACHE_BYTES // max(1, nbytes))))


def make_sets(make: Callable[[], Run], device: str) -> list[Run]:
    """Make as many sets of inputs as keep caches cold; their size is that of the first."""
    if device != "cuda":
        return [make()]
    before = torch.cuda.memory_allocated()
    first = make()
    count = count_sets(torch.cuda.memory_allocated() - before, device)
    return [first, *(make() for _ in range(count - 1))]


class Timer:
    """Times runs: with events around the replay of a graph of many, or with the host's clock.

    Args:
        runs: What to time, called in turn, such as one launch on several sets of inputs.
        device: "cuda", or "cpu", where a sample is one run.
        seconds: Device time of a sample to aim at. Default 2 ms.

    Attributes:
        way: "graph", "events" or "clock".
    """

    def __init__(self, runs: Sequence[Run], device: str, seconds: float = 2e-3) -> None:
        self._runs, self._count = list(runs), 1
        self._graph: torch.cuda.CUDAGraph | None = None
        self.way = "clock"
        if device != "cuda":
            runs[0]()
            return
        self.way = "events"
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # What is first in a process compiles, fills tables, and chooses algorithms.
        with torch.cuda.stream(side):
            for run in (*runs, *runs[:1]):
                run()
        torch.cuda.current_stream().wait_stream(side)
        once = self._between_events(self._launch_all) / 1e3
        rounds = max(1, min(_LAUNCHES // len(runs), int(seconds / max(once, 1e-6))))
        self._count = rounds * len(runs)
        self._capture(rounds)
        self._between_events(self._all)

    def _launch_all(self) -> None:
        for run in self._runs:
            run()

    def _all(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        for _ in range(self._count // len(self._runs)):
            self._launch_all()

    def _capture(self, rounds: int) -> None:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with capture_pool(stream.device) as pool, torch.cuda.graph(graph, pool=pool):
                for _ in range(rounds):
                    self._launch_all()
        except RuntimeError:
            # The stream of a capture that failed stays the current one; an error of the device
            # itself comes again here.
            torch.cuda.set_stream(stream)
            torch.cuda.synchronize()
            return
        self._graph, self.way = graph, "graph"

    @staticmethod
    def _between_events(run: Callable[[], None]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def sample(self) -> float:
        """Return milliseconds of a run: the mean over a graph, or over as many launches."""
        if self.way == "clock":
            start = time.perf_counter()
            self._runs[0]()
            return (time.perf_counter() - start) * 1e3
        return self._between_events(self._all) / self._count


def median_ms(runs: Sequence[Run], device: str = "cuda", samples: int = 7) -> float:
    """Return the median milliseconds of a run."""
    timer = Timer(runs, device)
    return statistics.median(timer.sample() for _ in range(samples))
