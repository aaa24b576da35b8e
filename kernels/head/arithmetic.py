"""Arithmetic that several kernels of the head share: exact products, and residuals of logits."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.target_info import is_hip

from hypermask_fast.kernels.device import INTERPRET, cast


@triton.jit
def _halves(x):
    """x rounded to tf32, and what is left; the product cuts off what of it is no tf32."""
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def exact_dot(a, b, acc):
    """acc + a b, with float32's accuracy.

    "tf32x3" without the instructions by which infinite terms do not become NaN: a third of all.
    """
    if INTERPRET or not is_hip():
        a_high, a_low = _halves(a)
        b_high, b_low = _halves(b)
        sums = tl.dot(a_low, b_high, input_precision="tf32")
        sums = tl.dot(a_high, b_low, sums, input_precision="tf32")
        # From 0, and added at the end: a matrix core rounds each of its sums towards 0.
        return acc + tl.dot(a_high, b_high, sums, input_precision="tf32")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def residuals(z, target, live):
    """z - target; 0 where z rounds to a target of a narrower dtype, and where not live."""
    wide = target.to(tl.float32)
    residual = z - wide
    if target.dtype != tl.float32:
        residual = tl.where(cast(z, target.dtype).to(tl.float32) == wide, 0.0, residual)
    return tl.where(live, residual, 0.0)
