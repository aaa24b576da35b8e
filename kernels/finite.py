"""Whether all of many numbers are finite: a flag of each block of them, and who knows it already.

A kernel that writes numbers can leave such flags beside them, for a later one to look at in place
of the numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import on_device
from hypermask_fast.kernels.tuning import choose

CONFIGS = (
    {"BLOCK": 4096, "num_warps": 8},
    {"BLOCK": 2048, "num_warps": 4},
    {"BLOCK": 8192, "num_warps": 8},
)
_NOTE = "_finite_flags"


@triton.jit
def all_finite(x, valid):
    """Whether all entries of a tile are finite that are valid, as int32."""
    return tl.min((tl.abs(x) < float("inf")).to(tl.int32) | (valid == 0).to(tl.int32), 0)


@triton.jit(do_not_specialize=["entries"])
def _finite_kernel(values_ptr, flags_ptr, entries, BLOCK: tl.constexpr):
    """The flag of one block (BLOCK,)."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = tl.arange(0, BLOCK)
    valid = offsets < entries - first
    x = tl.load(values_ptr + first + offsets, mask=valid, other=0.0)
    tl.store(flags_ptr + tl.program_id(0), all_finite(x, valid))


def remember(values: Tensor, flags: Tensor) -> None:
    """Note the flags of numbers that a kernel has just written."""
    setattr(values, _NOTE, (values._version, flags))


def known(values: Tensor) -> Tensor | None:
    """Return the flags that were noted, where the numbers are still those; else None."""
    version, flags = getattr(values, _NOTE, (None, None))
    return flags if version == values._version else None


def flags_of(values: Tensor) -> Tensor:
    """Return flags, int32, all of them 1 where all numbers are finite.

    Args:
        values: float32, contiguous.
    """
    entries = values.numel()
    config = choose("finite", CONFIGS, values.device, entries=entries)
    flags = torch.empty(
        triton.cdiv(entries, config["BLOCK"]), dtype=torch.int32, device=values.device
    )
    if entries:
        with on_device(values):
            _finite_kernel[(len(flags),)](values, flags, entries, **config)
    return flags
