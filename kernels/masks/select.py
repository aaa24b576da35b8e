"""Percentiles of |tanh z|, or order statistics of |z|, of all tensors at once, by radix selection.

Of n magnitudes two neighbours are needed, those of the ranks floor(x) and ceil(x) with
x = p (n - 1) / 100 in float64; tanh keeps their order. The 31 bits of a float32 magnitude order as
the number does, and are settled in three passes of 11, 10 and 10: count the entries in the bin of
each rank by their next bits, then pick the bins that hold the ranks. Counts are integers, so the
order of their sums does not matter.

z is (N,), the entries of all T tensors one after another. The first histogram (T, 2048) int32 is of
the exponent of |z| and three bits of its fraction, of every tensor.

A pass reads 4 N bytes, of the tensors that have a threshold in the second and third, from the
second-level cache where z fits; histograms are 24 KiB a tensor, of which few bins are touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import abs_tanh, on_device
from hypermask_fast.kernels.masks.blocks import Blocks, blocks, this_block
from hypermask_fast.kernels.tuning import Config, choose

CONFIGS = (
    {"BLOCK": 4096, "num_warps": 8},
    {"BLOCK": 2048, "num_warps": 4},
    {"BLOCK": 2048, "num_warps": 8},
    {"BLOCK": 4096, "num_warps": 16},
    {"BLOCK": 8192, "num_warps": 16},
)

_FIRST_BINS = 2048
_BITS = 10
_BINS = 1 << _BITS
_WINDOW = {"WINDOW": (127 - 26) * 8, "WINDOW_BINS": 256}
"""Bins that most entries are expected in: magnitudes from 2^-26 to 2^6."""


@triton.jit
def magnitude_bits(z):
    """The bits of |z| as int32, which have the order of |z|; NaN are equal, and above all."""
    bits = z.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.where(bits > 0x7F800000, 0x7FC00000, bits)


@triton.jit
def _add_each(row_ptr, bins, valid):
    """Count entries one by one, or all at once where they fall into one bin."""
    first = tl.min(tl.where(valid, bins, 0x7FFFFFFF), 0)
    last = tl.max(tl.where(valid, bins, -1), 0)
    ones = valid.to(tl.int32)
    if first == last:
        tl.atomic_add(row_ptr + first, tl.sum(ones, 0), sem="relaxed")
    elif first < last:
        tl.atomic_add(row_ptr + bins, ones, mask=valid, sem="relaxed")


@triton.jit
def _select_histogram_kernel(
    z_ptr,
    histogram_ptr,
    tensor_ptr,
    start_ptr,
    tensor_start_ptr,
    BINS: tl.constexpr,
    WINDOW: tl.constexpr,
    WINDOW_BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count a block (BLOCK,) by the leading 11 bits into the row of its tensor.

    A histogram costs a warp BINS / 32 population counts an entry, so only a window is one.
    """
    tensor, start, count = this_block(tensor_ptr, start_ptr, tensor_start_ptr, BLOCK)
    offsets = tl.arange(0, BLOCK)
    valid = offsets < count
    z = tl.load(z_ptr + start + offsets, mask=valid, other=0.0)
    row_ptr = histogram_ptr + tensor * BINS
    bins = magnitude_bits(z) >> 20
    inside = valid & (bins >= WINDOW) & (bins < WINDOW + WINDOW_BINS)
    counts = tl.histogram(bins - WINDOW, WINDOW_BINS, mask=inside)
    window_ptr = row_ptr + WINDOW + tl.arange(0, WINDOW_BINS)
    tl.atomic_add(window_ptr, counts, mask=counts > 0, sem="relaxed")
    _add_each(row_ptr, bins, valid & ~inside)


@triton.jit
def _place(p_ptr, tensor_start_ptr, tensor):
    """Where the percentile is among a tensor's order statistics: the rank below, and the rest."""
    start = tl.load(tensor_start_ptr + tensor)
    last = tl.load(tensor_start_ptr + tensor + 1) - start - 1
    p = tl.minimum(tl.maximum(tl.load(p_ptr), 0.0), 100.0)
    place = p * last.to(tl.float64) / 100.0
    rank = place.to(tl.int32)
    return rank, place - rank.to(tl.float64)


@triton.jit
def _bin_of_rank(row_ptr, rank, BINS: tl.constexpr):
    """The bin that holds the entry of a rank, and its rank among those of the bin."""
    up_to = tl.cumsum(tl.load(row_ptr + tl.arange(0, BINS)), 0)
    passed = up_to <= rank
    return tl.sum(passed.to(tl.int32), 0), rank - tl.max(tl.where(passed, up_to, 0), 0)


@triton.jit
def _store_picked(row_ptr, low, high, low_rank, high_rank):
    tl.store(row_ptr, low)
    tl.store(row_ptr + 1, high)
    tl.store(row_ptr + 2, low_rank)
    tl.store(row_ptr + 3, high_rank)


@triton.jit
def _first_picked(histogram_ptr, p_ptr, rank_ptr, tensor_start_ptr, tensor, BINS: tl.constexpr):
    """The bins of a tensor's two ranks, by the percentage or both that of its rank, from 0."""
    if rank_ptr is None:
        rank, part = _place(p_ptr, tensor_start_ptr, tensor)
        upper = rank + (part > 0).to(tl.int32)
    else:
        rank = tl.load(rank_ptr + tensor)
        upper = rank
    row_ptr = histogram_ptr + tensor * BINS
    low, low_rank = _bin_of_rank(row_ptr, rank, BINS)
    high, high_rank = _bin_of_rank(row_ptr, upper, BINS)
    return low, high, low_rank, high_rank


@triton.jit
def _refined(histogram_ptr, picked_ptr, tensor, BITS: tl.constexpr):
    """The leading bits of the two values, longer by BITS, and their ranks among such values."""
    BINS: tl.constexpr = 1 << BITS
    low = tl.load(picked_ptr + 4 * tensor)
    high = tl.load(picked_ptr + 4 * tensor + 1)
    row_ptr = histogram_ptr + 2 * tensor * BINS
    upper_ptr = row_ptr + tl.where(low == high, 0, BINS)
    low_bin, low_rank = _bin_of_rank(row_ptr, tl.load(picked_ptr + 4 * tensor + 2), BINS)
    high_bin, high_rank = _bin_of_rank(upper_ptr, tl.load(picked_ptr + 4 * tensor + 3), BINS)
    return (low << BITS) + low_bin, (high << BITS) + high_bin, low_rank, high_rank


@triton.jit
def _select_refine_kernel(
    z_ptr,
    p_ptr,
    rank_ptr,
    before_ptr,
    picked_ptr,
    refined_ptr,
    histogram_ptr,
    tensor_ptr,
    start_ptr,
    tensor_start_ptr,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    FIRST_BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count those of a block that begin as the lower rank's value does, and as the upper's does.

    They are few and spread over the bins, or else equal: atomics on them do not collide much. How
    they begin, each program picks by itself from the last histogram; a tensor's first one notes it.
    """
    BINS: tl.constexpr = 1 << BITS
    tensor, start, count = this_block(tensor_ptr, start_ptr, tensor_start_ptr, BLOCK)
    if picked_ptr is None:
        low, high, low_rank, high_rank = _first_picked(
            before_ptr, p_ptr, rank_ptr, tensor_start_ptr, tensor, FIRST_BINS
        )
    else:
        low, high, low_rank, high_rank = _refined(before_ptr, picked_ptr, tensor, BITS)
    if start == tl.load(tensor_start_ptr + tensor):
        _store_picked(refined_ptr + 4 * tensor, low, high, low_rank, high_rank)
    offsets = tl.arange(0, BLOCK)
    valid = offsets < count
    bits = magnitude_bits(tl.load(z_ptr + start + offsets, mask=valid, other=0.0))
    leading = bits >> (SHIFT + BITS)
    bins = (bits >> SHIFT) & (BINS - 1)
    row_ptr = histogram_ptr + 2 * tensor * BINS
    _add_each(row_ptr, bins, valid & (leading == low))
    # With ranks they are one, which Triton 3.6 must not be left to find out.
    if rank_ptr is None:  # noqa: SIM102 - decides what is compiled
        if low != high:
            _add_each(row_ptr + BINS, bins, valid & (leading == high))


@triton.jit(do_not_specialize=["tensors"])
def _select_end_kernel(
    first_ptr,
    histogram_ptr,
    picked_ptr,
    p_ptr,
    thresholds_ptr,
    has_nan_ptr,
    tensor_start_ptr,
    chosen_ptr,
    tensors,
    BITS: tl.constexpr,
    FIRST_BINS: tl.constexpr,
    BLOCK_TENSORS: tl.constexpr,
):
    """Write the percentile between the tanh of a tensor's two order statistics of |z|.

    The first program also looks for NaN in the rows of the first histogram.
    """
    tensor = tl.program_id(0)
    if tensor == 0:
        # Arithmetic makes quiet NaNs only, whose bins are the last four; infinity is below.
        rows = tl.arange(0, BLOCK_TENSORS)[:, None]
        tail = first_ptr + rows * FIRST_BINS + FIRST_BINS - 4 + tl.arange(0, 4)[None, :]
        counts = tl.load(tail, mask=rows < tensors, other=0)
        tl.store(has_nan_ptr, tl.max(tl.max(counts, 1), 0) > 0)
    chosen = tl.load(chosen_ptr + tensor) != 0
    low_bits, high_bits, _, _ = _refined(histogram_ptr, picked_ptr, tensor, BITS)
    _, part = _place(p_ptr, tensor_start_ptr, tensor)
    low = abs_tanh(low_bits.to(tl.float32, bitcast=True)).to(tl.float64)
    high = abs_tanh(high_bits.to(tl.float32, bitcast=True)).to(tl.float64)
    # As torch.lerp: the result stays between the two.
    up = low + part * (high - low)
    down = high - (high - low) * (1 - part)
    value = tl.where(part < 0.5, up, down).to(tl.float32)
    tl.store(thresholds_ptr + tensor, tl.where(chosen, value, float("-inf")))


@triton.jit
def _select_end_at_kernel(histogram_ptr, picked_ptr, found_ptr, BITS: tl.constexpr):
    """Write the bits of a tensor's one order statistic, and its rank among entries equal to it."""
    tensor = tl.program_id(0)
    bits, _, rank, _ = _refined(histogram_ptr, picked_ptr, tensor, BITS)
    tl.store(found_ptr + 2 * tensor, bits)
    tl.store(found_ptr + 2 * tensor + 1, rank)


class Thresholds(NamedTuple):
    """What :func:`thresholds` returns.

    Attributes:
        values: (T,) float32, the percentile of |tanh z|: entries below it are removed. Minus
            infinity, which removes nothing, for a tensor without a threshold.
        has_nan: 0-d bool, whether any entry of any tensor is NaN. A percentile that falls among
            NaNs is NaN, and removes nothing.
    """

    values: Tensor
    has_nan: Tensor


class _Counts(NamedTuple):
    """The first and the last histogram, and what was picked before the last."""

    first: Tensor
    last: Tensor
    picked: Tensor


def _counted(
    z: Tensor,
    every: Blocks,
    table: Blocks,
    config: Config,
    p: Tensor | None = None,
    ranks: Tensor | None = None,
) -> _Counts:
    """Launch the three counts.

    Args:
        z: The entries.
        every, table: The blocks that the first count is of, and the others.
        config: Of the launches.
        p, ranks: The percentage, or a rank of each tensor.
    """
    tensors = len(every.chosen)
    bins = (_FIRST_BINS, 2 * _BINS, 2 * _BINS)
    # One buffer: one launch fills it.
    counts = torch.zeros(tensors * sum(bins), dtype=torch.int32, device=z.device)
    first, second, third = counts.split([tensors * count for count in bins])
    begun, picked = torch.empty((2, tensors, 4), dtype=torch.int32, device=z.device).unbind()
    _select_histogram_kernel[every.grid](
        *(z, first, *every[:3]), BINS=_FIRST_BINS, **_WINDOW, **config
    )
    for shift, *pointers in (
        (_BITS, first, None, begun, second),
        (0, second, begun, picked, third),
    ):
        _select_refine_kernel[table.grid](
            *(z, p, ranks, *pointers, *table[:3]),
            SHIFT=shift,
            BITS=_BITS,
            FIRST_BINS=_FIRST_BINS,
            **config,
        )
    return _Counts(first, third, picked)


def thresholds(
    z: Tensor, sizes: Sequence[int], p: float | Tensor, masked: Sequence[bool]
) -> Thresholds | None:
    """Return the smallest mask value that survives, of every tensor of a network.

    Nothing is read back to the host, so it can be captured in a CUDA graph.

    Args:
        z: (N,) float32, the mask logits of all tensors.
        sizes: Numbers of entries of the T tensors, each at least 1 and less than 2^31.
        p: Percent of each mask that is removed: a number, or a 0-d float64 tensor on z's device;
            outside of [0, 100] it acts as the nearer end.
        masked: For each tensor whether it has a threshold.

    Returns:
        None, without a launch, where nothing is removed: p is the number 0, or no tensor is masked.
    """
    if not any(masked) or (not isinstance(p, Tensor) and p == 0):
        return None
    z, device, tensors = z.contiguous(), z.device, len(sizes)
    if not isinstance(p, Tensor):
        p = torch.full((), p, dtype=torch.float64, device=device)
    p = p.to(device, torch.float64)
    config = choose("select", CONFIGS, device, entries=z.numel())
    every = blocks(tuple(sizes), config["BLOCK"], device)
    table = blocks(tuple(sizes), config["BLOCK"], device, tuple(masked))
    values = torch.empty(tensors, dtype=torch.float32, device=device)
    has_nan = torch.empty((), dtype=torch.bool, device=device)

    with on_device(z):
        counts = _counted(z, every, table, config, p=p)
        _select_end_kernel[(tensors,)](
            *(*counts, p, values, has_nan, table.tensor_start, table.chosen, tensors),
            BITS=_BITS,
            FIRST_BINS=_FIRST_BINS,
            BLOCK_TENSORS=triton.next_power_of_2(tensors),
        )
    return Thresholds(values, has_nan)


def order_statistics(z: Tensor, sizes: Sequence[int], ranks: Tensor) -> Tensor:
    """Return of every tensor the magnitude that has a rank, and its rank among those equal to it.

    Args:
        z, sizes: As of :func:`thresholds`.
        ranks: (T,) int32 on z's device, counted from 0, each below the tensor's size.

    Returns:
        (T, 2) int32: the bits of the magnitude as float32, those of NaN being 0x7FC00000, and how
        many of the entries equal to it come before.
    """
    z, tensors = z.contiguous(), len(sizes)
    config = choose("select", CONFIGS, z.device, entries=z.numel())
    every = blocks(tuple(sizes), config["BLOCK"], z.device)
    found = torch.empty(tensors, 2, dtype=torch.int32, device=z.device)

    with on_device(z):
        _, histogram, picked = _counted(z, every, every, config, ranks=ranks)
        _select_end_at_kernel[(tensors,)](histogram, picked, found, BITS=_BITS)
    return found
