"""How launches cut the entries of a network's tensors.

The entries (N,) of all tensors lie one after another, as mask logits do. A block is a run of at
most ``size`` entries of one tensor, so that a program of a kernel has one threshold, one pointer to
weights and one row of a histogram.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def this_block(tensor_ptr, start_ptr, tensor_start_ptr, SIZE: tl.constexpr):
    """The tensor of this program's block, its first entry (int64), and how many entries it has."""
    block = tl.program_id(0)
    tensor = tl.load(tensor_ptr + block)
    start = tl.load(start_ptr + block)
    rest = tl.load(tensor_start_ptr + tensor + 1) - start
    return tensor, start, tl.minimum(rest, SIZE).to(tl.int32)


class Blocks(NamedTuple):
    """Tables on the device; the blocks are in the order of the entries.

    Attributes:
        tensor: (B,) int32, the tensor of each block.
        start: (B,) int64, the first entry of each block, counted over all tensors.
        tensor_start: (T + 1,) int64, the first entry of each tensor; a block ends where its tensor
            does, or after ``size`` entries.
        chosen: (T,) int32, 1 where the tensor has blocks.
    """

    tensor: Tensor
    start: Tensor
    tensor_start: Tensor
    chosen: Tensor

    @property
    def grid(self) -> tuple[int]:
        """The number of blocks, B."""
        return (self.tensor.shape[0],)


@cache
def blocks(
    sizes: tuple[int, ...], size: int, device: torch.device, chosen: tuple[bool, ...] | None = None
) -> Blocks:
    """Return the blocks of a network's tensors, uploaded once and kept: graphs point to them.

    Nothing is dropped, 12 bytes a block of each network: a replay of a CUDA graph, also of one that
    a user captured, would read what the memory holds by then. A first call copies from the host,
    which the capture forbids: warm up before.

    Args:
        sizes: Numbers of entries of the T tensors.
        size: Entries of a full block.
        device: Where the tables are.
        chosen: For each tensor whether it has blocks; None for all.
    """
    starts = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    flags = np.ones(len(sizes), np.int32) if chosen is None else np.array(chosen, np.int32)
    counts = -(-np.array(sizes, np.int64) // size) * flags
    tensor = np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
    before = np.cumsum(counts) - counts
    start = starts[tensor] + (np.arange(len(tensor)) - before[tensor]) * size
    return Blocks(*(torch.from_numpy(table).to(device) for table in (tensor, start, starts, flags)))
