"""What several kernels share: device functions, and the guard around a launch.

Every kernel adds ``program_id * tile`` to its pointers in int64, so that only offsets within a tile
are 32 bits wide. Tensors of float16 and bfloat16 are raised to float32 straight after each load:
Triton's interpreter would compute on the bit patterns of bfloat16.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice
from triton.language.target_info import is_hip

INTERPRET = tl.constexpr(bool(triton.knobs.runtime.interpret))

WGMMA_LEAST = 32
"""A matrix of no more rows does not fill a product of Hopper's matrix cores, of 64."""


@triton.jit
def cast(x, dtype: tl.constexpr):
    """Float32 x rounded to the nearest value of ``dtype``; the interpreter's bfloat16 truncates."""
    if INTERPRET and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def _approximate(x, OPERATION: tl.constexpr):
    """2^x ("ex2") or 1 / x ("rcp") of float32 by a GPU's own unit; subnormal numbers are 0."""
    return tl.inline_asm_elementwise(
        OPERATION + ".approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def abs_tanh(z):
    """|tanh z| of float32: on an NVIDIA GPU with the bits of torch.tanh.

    With the operations of CUDA's tanhf and in their order, but both of its ways are taken, and one
    is selected: that of libdevice branches at every element.
    """
    x = tl.abs(z)
    if INTERPRET:
        # Minimax polynomial of (tanh(x) / x - 1) / x^2 up to 0.625; within 2 ulp.
        s = x * x
        p = 2.147524003e-03
        p = p * s - 8.182659874e-03
        p = p * s + 2.170296166e-02
        p = p * s - 5.394720338e-02
        p = p * s + 1.333320976e-01
        p = p * s - 3.333333091e-01
        large = 1 - 2 / (tl.exp(2 * tl.minimum(x, 10.0, propagate_nan=tl.PropagateNan.ALL)) + 1)
        return tl.where(x < 0.625, x + x * s * p, large)
    elif is_hip():
        # It takes subnormal numbers for 0; below 2^-12 tanh only rounds to x.
        return tl.where(x < 1e-4, x, libdevice.tanh(x))
    else:
        s = x * x
        p = tl.fma(s, 0.01573968306183815, -0.05230396240949631)
        p = tl.fma(p, s, 0.13315297663211823)
        p = tl.fma(p, s, -0.33332768082618713)
        small = tl.fma(p * s, x, x)
        # 2 / ln 2, of which 2^x makes exp(2 x).
        e = _approximate(x * 2.885390043258667, "ex2")
        large = tl.fma(_approximate(e + 1.0, "rcp"), -2.0, 1.0)
        large = tl.where(x >= 9.010913848876953, 1.0, large)
        # NaN is not large.
        return tl.where(x >= 0.6000000238418579, large, small)


@triton.jit
def sign(z):
    """-1, 0 or 1; NaN counts as 0."""
    return tl.where(z > 0, 1.0, 0.0) - tl.where(z < 0, 1.0, 0.0)


@triton.jit
def cached(ptr, mask):
    """Load what is used several times, and is not kept in registers for that."""
    return tl.load(ptr, mask=mask, other=0.0, cache_modifier=".ca")


@triton.jit
def prefetch(ptr, mask):
    """Have an NVIDIA GPU bring what is loaded soon into its L2; elsewhere nothing."""
    if not INTERPRET and not is_hip():
        tl.inline_asm_elementwise(
            """{
            .reg .pred p;
            setp.ne.s32 p, $2, 0;
            @p prefetch.global.L2 [$1];
            mov.b32 $0, 0;
            }""",
            "=r,l,r",
            [ptr, mask.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def prefetch_run(ptr, count, MOST: tl.constexpr):
    """Prefetch ``count`` elements in a row, of MOST at most: an address for each 32 bytes."""
    EACH: tl.constexpr = 256 // ptr.dtype.element_ty.primitive_bitwidth
    at = EACH * tl.arange(0, triton.next_power_of_2(triton.cdiv(MOST, EACH)))
    prefetch(ptr + at, at < tl.minimum(count, MOST))


@triton.jit
def only_if(mask, flag):
    """The mask where a scalar holds; ``&`` of both is no mask to the interpreter of Triton 3.9."""
    return tl.where(flag, mask, False)


@triton.jit
def mask_slope(z, mask):
    """d|tanh z| / dz, given the mask: 0 where an entry was removed (mask 0)."""
    return tl.where(mask == 0, 0.0, sign(z.to(tl.float32)) * (1 - mask * mask))


@triton.jit
def semi_binary(z, threshold, HAS_THRESHOLD: tl.constexpr):
    """|tanh z| in z's dtype where it is not below the threshold, else 0; NaN stays NaN."""
    mask = cast(abs_tanh(z.to(tl.float32)), z.dtype).to(tl.float32)
    if HAS_THRESHOLD:
        mask = tl.where(mask < threshold, 0.0, mask)
    return mask


@cache
def multiprocessors(device: torch.device) -> int:
    """Return how many a GPU has; 1 of another device."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def has_wgmma(tensor: Tensor) -> bool:
    """Return whether a tensor is on a GPU of Hopper's kind, the current one, or on none at all."""
    if not tensor.is_cuda:
        return True
    target = triton.runtime.driver.active.get_current_target()
    return target.backend == "cuda" and target.arch // 10 == 9


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which kernels launch on the tensor's GPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def fit(block: int, size: int) -> int:
    """Return a tile no larger than the size needs, and no smaller than a product takes."""
    return min(block, max(16, triton.next_power_of_2(size)))
