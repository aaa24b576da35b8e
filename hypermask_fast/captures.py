"""What a capture of a CUDA graph leaves behind where it fails."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch


def give_back(device: torch.device, pool: Any) -> None:
    """Let memory be freed and random numbers be drawn again after a capture that failed.

    Args:
        device: Of the capture, with its index.
        pool: ``torch.cuda.graph_pool_handle()`` that it was given.
    """
    # Before PyTorch 2.12 the end of a failed capture raises before the allocator is told of it.
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)
    # The generator still takes itself for captured, and would refuse to draw.
    generator = torch.cuda.default_generators[device.index]
    generator.graphsafe_set_state(generator.clone_state())
