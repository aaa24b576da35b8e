"""Adam of a tile of parameters in registers, by the numbers that ``adam`` tabulates."""

from __future__ import annotations

import triton
import triton.language as tl

from hypermask_fast.kernels.device import cast


@triton.jit
def load_scalars(scalars_ptr):
    """What :func:`adam_update` takes."""
    numbers = ()
    for slot in tl.static_range(8):
        numbers += (tl.load(scalars_ptr + slot),)
    return numbers


@triton.jit
def load_moments(exp_avg_ptr, exp_avg_sq_ptr, offsets, mask):
    """Both moments of a tile, as they are stored."""
    exp_avg = tl.load(exp_avg_ptr + offsets, mask=mask, other=0.0)
    return exp_avg, tl.load(exp_avg_sq_ptr + offsets, mask=mask, other=0.0)


@triton.jit
def adam_values(parameter, exp_avg, exp_avg_sq, grad, scalars):
    """What torch.optim.Adam makes of a parameter and its moments, all float32."""
    scale, decay, l2, lerp, beta2, square, eps, step_size = scalars
    grad = tl.fma(l2, parameter, grad * scale)
    # As torch.lerp: from the nearer end.
    nearer = tl.where(lerp < 0.5, exp_avg, grad)
    exp_avg = tl.fma(tl.where(lerp < 0.5, lerp, lerp - 1), grad - exp_avg, nearer)
    exp_avg_sq = tl.fma(square * grad, grad, beta2 * exp_avg_sq)
    ratio = exp_avg / (tl.sqrt(exp_avg_sq) + eps)
    return tl.fma(-step_size, ratio, parameter * decay), exp_avg, exp_avg_sq


@triton.jit
def adam_from(
    parameter_ptr, exp_avg_ptr, exp_avg_sq_ptr, offsets, parameter, moments, grad, mask, scalars
):
    """torch.optim.Adam of a tile of which the parameter (float32) and the moments are loaded."""
    parameter, exp_avg, exp_avg_sq = adam_values(
        parameter, moments[0].to(tl.float32), moments[1].to(tl.float32), grad, scalars
    )
    tl.store(parameter_ptr + offsets, parameter, mask=mask)
    stored: tl.constexpr = exp_avg_ptr.dtype.element_ty
    tl.store(exp_avg_ptr + offsets, cast(exp_avg, stored), mask=mask)
    tl.store(exp_avg_sq_ptr + offsets, cast(exp_avg_sq, stored), mask=mask)


@triton.jit
def adam_update(
    parameter_ptr, exp_avg_ptr, exp_avg_sq_ptr, offsets, parameter, grad, mask, scalars
):
    """torch.optim.Adam of a tile at ``offsets``, of which the parameter (float32) is loaded."""
    moments = load_moments(exp_avg_ptr, exp_avg_sq_ptr, offsets, mask)
    adam_from(
        *(parameter_ptr, exp_avg_ptr, exp_avg_sq_ptr, offsets),
        *(parameter, moments, grad, mask, scalars),
    )
