"""Captures of CUDA graphs that leave nothing behind where they fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch


@contextmanager
def capture_pool(device: torch.device) -> Iterator[Any]:
    """Yield the pool of memory for a capture; one that fails gives back what it holds.

    Args:
        device: Of the capture, with its index.
    """
    pool = torch.cuda.graph_pool_handle()
    try:
        yield pool
    except BaseException:
        # Before PyTorch 2.12 the end of a failed capture raises before the allocator is told of it.
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device.index, pool)
        # The generator still takes itself for captured, and would refuse to draw.
        generator = torch.cuda.default_generators[device.index]
        generator.graphsafe_set_state(generator.clone_state())
        raise
