"""CUDA's current devices and streams, without a GPU: what PyTorch's own capture does to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


class Stream:
    def __init__(self, device: torch.device | None = None) -> None:
        self.device = torch.device("cuda", CUDA.device) if device is None else device
        self.waits: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waits.append(other)


class StreamContext:
    """As PyTorch's: one that is not left changes nothing back."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self.before = CUDA.current_stream(self.stream.device), CUDA.current_stream()
        CUDA.set_stream(self.stream)

    def __exit__(self, *_: object) -> None:
        for stream in self.before:
            CUDA.set_stream(stream)


class Generator:
    """One that a capture which failed leaves as within the capture."""

    def __init__(self) -> None:
        self.captures = False

    def clone_state(self) -> Generator:
        return Generator()

    def graphsafe_set_state(self, other: Generator) -> None:
        self.captures = other.captures


class Graph:
    """Holds the device that its stream is of, and what was launched while it was captured."""

    def __init__(self) -> None:
        self.launched: list[tuple[int, Any]] = []

    def capture_begin(self, pool: Any = None, **_: Any) -> None:
        assert CUDA.capturing is None
        self.pool = pool
        CUDA.pools.add(pool)
        CUDA.capturing, CUDA.invalid = self, False
        self.stream = CUDA.current_stream()
        CUDA.generators[CUDA.device].captures = True

    def capture_end(self) -> None:
        assert CUDA.current_stream() is self.stream
        CUDA.capturing = None
        if CUDA.invalid:
            raise RuntimeError("operation failed due to a previous error during capture")
        CUDA.pools.remove(self.pool)
        CUDA.generators[CUDA.device].captures = False

    def replay(self) -> None:
        CUDA.ran += self.launched


class Cuda:
    """Two GPUs of one thread."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, Any] = {}
        self.generators = (Generator(), Generator())
        self.capturing: Graph | None = None
        self.invalid = False
        self.pools: set[Any] = set()  # that allocations go to
        self.ran: list[tuple[int, Any]] = []

    def current_stream(self, device: Any = None) -> Any:
        index = self.device if device is None else torch.device(device).index
        return self.streams.setdefault(index, Stream(torch.device("cuda", index)))

    def set_stream(self, stream: Any) -> None:
        """Make it current, and its device, as PyTorch does."""
        self.device = stream.device.index
        self.streams[self.device] = stream

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        before, self.device = self.device, device.index
        try:
            yield
        finally:
            self.device = before

    def launch(self, device: torch.device, what: Any) -> None:
        """Run something on the current stream of a device, or note it in the graph."""
        assert not self.generators[device.index].captures or self.capturing
        is_captured = self.capturing and self.current_stream(device) is self.capturing.stream
        (self.capturing.launched if self.capturing and is_captured else self.ran).append(
            (device.index, what)
        )

    def empty_cache(self) -> None:
        assert not self.pools, "captures_underway.empty()"

    def end_allocating(self, device: int, pool: Any) -> None:
        if pool not in self.pools:
            raise RuntimeError("not currently recording to the pool")
        self.pools.remove(pool)

    def fail(self) -> None:
        """Do what a capture forbids."""
        self.invalid = True
        raise RuntimeError("not permitted when stream is capturing")


CUDA = Cuda()


def install(patch: pytest.MonkeyPatch) -> Cuda:
    """Put the stand-in in the place of torch.cuda, but for ``torch.cuda.graph``."""
    global CUDA
    CUDA = Cuda()
    nothing: Callable[[], None] = lambda: None  # noqa: E731
    for name, value in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "current_stream": CUDA.current_stream,
        "set_stream": CUDA.set_stream,
        "stream": StreamContext,
        "device": CUDA.on,
        "default_generators": CUDA.generators,
        "synchronize": nothing,
        "empty_cache": CUDA.empty_cache,
        "graph_pool_handle": object,
    }.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch._C, "_host_emptyCache", nothing, raising=False)
    patch.setattr(torch._C, "_cuda_endAllocateToPool", CUDA.end_allocating, raising=False)
    patch.setattr(torch.cuda.graph, "default_capture_stream", None)
    return CUDA
