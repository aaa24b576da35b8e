"""Binary masks of one bit an entry: packed, unpacked, summed, and multiplied with a vector.

Bit l of byte b is entry 8 b + l; the bits after the last entry are 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hypermask_fast.backends.choice import requested, uses_kernels
from hypermask_fast.native import library
from hypermask_fast.native.calls import call, pointers
from hypermask_fast.native.packed import PACKED_BLOCK, PackedPass


def packed_bytes(entries: int) -> int:
    """Return the bytes of a packed mask."""
    return -(-entries // 8)


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


def pack(mask: Tensor) -> Tensor:
    """Return a mask, bool (n,), as uint8 (ceil(n / 8),)."""
    if uses_kernels("pack", mask):
        from hypermask_fast.kernels.masks import top_k

        return top_k.pack(mask)
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8))
    return (padded.view(-1, 8) << _places(mask.device)).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, entries: int) -> Tensor:
    """Return a packed mask as bool (entries,)."""
    every = torch.arange(256, dtype=torch.uint8, device=bits.device)
    unpacked = (every[:, None] >> _places(bits.device)) & 1
    # Eight entries are copied at a time.
    eights = unpacked.view(torch.int64).flatten()
    return eights.index_select(0, bits.int()).view(torch.bool)[:entries]


def union(masks: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the union of packed masks; of none, an empty mask of the size of another."""
    total = torch.zeros_like(like)
    for bits in masks:
        total |= bits
    return total


def _runs_natively(dtype: torch.dtype, *tensors: Tensor) -> bool:
    return (
        dtype in (torch.float32, torch.float64)
        and all(t.device.type == "cpu" and t.is_contiguous() for t in tensors)
        and requested() == "auto"
        and library.load() is not None
    )


def _work(entries: int, rows: int) -> PackedPass:
    blocks = -(-entries // PACKED_BLOCK)
    return PackedPass(blocks=blocks, entries=entries, block_entries=PACKED_BLOCK, rows=rows)


def weighted_sum(
    masks: Sequence[Tensor], factors: Sequence[float], entries: int, dtype: torch.dtype
) -> Tensor:
    """Return the sum of packed masks times their factors, (entries,); no mask is unpacked.

    Args:
        masks: At least one, uint8 (ceil(entries / 8),).
        factors: One for each mask.
        entries: Their number.
        dtype: Of the result.
    """
    if _runs_natively(dtype, *masks):
        out = torch.empty(entries, dtype=dtype)
        call(
            "packed_sum_{}",
            dtype,
            _work(entries, len(masks)),
            bits=pointers(masks),
            factors=np.array(factors, np.float64),
            sum=out,
        )
        return out
    out = torch.zeros(entries, dtype=dtype, device=masks[0].device)
    for bits, factor in zip(masks, factors, strict=True):
        out.add_(unpack(bits, entries), alpha=factor)
    return out


def dots(masks: Sequence[Tensor], values: Tensor) -> Tensor:
    """Return the sum of the values under each of k packed masks, (k,); no mask is kept unpacked.

    Args:
        masks: uint8 (ceil(n / 8),) each.
        values: (n,).
    """
    entries, rows = len(values), len(masks)
    if masks and _runs_natively(values.dtype, values, *masks):
        work = _work(entries, rows)
        parts = np.empty((work.blocks, rows))
        call(
            "packed_dots_{}",
            values.dtype,
            work,
            bits=pointers(masks),
            values=values,
            products=parts,
        )
        return torch.from_numpy(parts.sum(0)).to(values.dtype)
    sums = [torch.dot(values, unpack(bits, entries).to(values.dtype)) for bits in masks]
    return torch.stack(sums) if sums else values.new_zeros(0)
