"""Logits of one task embedding, z = A h + b, and in one pass the first histogram of ``select``.

A program forms a block of z, of one tensor, tile by tile, and then counts it: the block is read
back from the cache. A (N, H), h (1, H), b (N,) float32. Bytes: 4 N H + 8 N; the histogram by itself
would read 4 N more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import on_device
from hypermask_fast.kernels.head.logits import vector_logits
from hypermask_fast.kernels.masks.blocks import HISTOGRAM_BINS, blocks, this_block
from hypermask_fast.kernels.masks.select import WINDOW, add_to_histogram
from hypermask_fast.kernels.tuning import Config, choose

CONFIGS: tuple[Config, ...] = (
    {"BLOCK": 2048, "BLOCK_N": 64, "BLOCK_H": 32, "num_warps": 4},
    {"BLOCK": 4096, "BLOCK_N": 64, "BLOCK_H": 32, "num_warps": 4},
    {"BLOCK": 4096, "BLOCK_N": 64, "BLOCK_H": 64, "num_warps": 8},
)


@triton.jit
def _mask_logits_histogram_kernel(
    weight_ptr,
    bias_ptr,
    hidden_ptr,
    out_ptr,
    histogram_ptr,
    tensor_ptr,
    start_ptr,
    tensor_start_ptr,
    WIDTH: tl.constexpr,
    BINS: tl.constexpr,
    WINDOW: tl.constexpr,
    WINDOW_BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """z of a block (BLOCK,) of one tensor, counted into the tensor's row of the histogram."""
    tensor, start, count = this_block(tensor_ptr, start_ptr, tensor_start_ptr, BLOCK)
    for first in range(0, count, BLOCK_N):
        row = tl.arange(0, BLOCK_N)
        valid = row < count - first
        begin = start + first
        pointers = weight_ptr + begin * WIDTH, bias_ptr + begin, hidden_ptr
        z = vector_logits(*pointers, row, valid, WIDTH, BLOCK_H)
        tl.store(out_ptr + begin + row, z, mask=valid)
    # Other threads wrote what is read here.
    tl.debug_barrier()
    entry = tl.arange(0, BLOCK)
    valid = entry < count
    z = tl.load(out_ptr + start + entry, mask=valid, other=0.0)
    add_to_histogram(histogram_ptr + tensor * BINS, z, valid, WINDOW, WINDOW_BINS)


def mask_logits_histogram(
    weight: Tensor, bias: Tensor, hidden: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the logits of one task embedding, and the histogram that percentiles begin with.

    Args:
        weight: A (N, H).
        bias: b (N,).
        hidden: (1, H), the trunk's output.
        sizes: Numbers of entries of the T tensors, N together, each at least 1.

    Returns:
        (1, N), and int32 (T, 2048) for :func:`~hypermask_fast.kernels.masks.select.thresholds`.
    """
    out = weight.new_empty(1, len(weight))
    counts = torch.zeros(len(sizes), HISTOGRAM_BINS, dtype=torch.int32, device=weight.device)
    rows, width = weight.shape
    name = "mask_logits_histogram"
    config = choose(name, CONFIGS, weight.device, rows=rows, width=width)
    columns = min(config["BLOCK_H"], max(16, triton.next_power_of_2(width)))
    table = blocks(tuple(sizes), config["BLOCK"], weight.device)
    with on_device(weight):
        _mask_logits_histogram_kernel[table.grid](
            *(weight.contiguous(), bias.contiguous(), hidden.contiguous(), out),
            *(counts, *table[:3]),
            BINS=HISTOGRAM_BINS,
            WIDTH=width,
            **WINDOW,
            **{**config, "BLOCK_H": columns},
        )
    return out, counts
