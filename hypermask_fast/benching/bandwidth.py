"""The bandwidth of a device's memory, as a copy has it."""

from __future__ import annotations

import statistics

import torch

from hypermask_fast.benching.laps import Clock, clock_of


def copy_bandwidth(device: str, clock: Clock | None = None) -> float:
    """Return bytes a second, read and written, of a copy: the median of 9.

    Of 256 MiB, or on a GPU, timed between events, of 1 GiB.

    Args:
        device: "cpu" or "cuda".
        clock: Default: the time that passes.
    """
    clock = clock_of(device) if clock is None else clock
    source = torch.ones(2**28 if device == "cuda" else 2**26, device=device)
    target, nbytes = torch.empty_like(source), 2 * source.nbytes
    seconds = []
    for _ in range(10):
        begin = clock.mark()
        target.copy_(source)
        end = clock.mark()
        clock.wait()
        seconds.append(clock.seconds(begin, end))
    del source, target
    if device == "cuda":
        torch.cuda.empty_cache()
    return nbytes / statistics.median(seconds[1:])
