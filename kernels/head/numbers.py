"""The numbers of an Adam step, from its options, in float64 up to their stores."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.constants import constant


@triton.jit
def step_numbers(
    lr,
    step,
    scale,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    EPS: tl.constexpr,
    L2: tl.constexpr,
    DECAY: tl.constexpr,
    SIGN: tl.constexpr,
):
    """What :mod:`hypermask_fast.kernels.head.adam` tabulates, of float64 numbers."""
    # A step that is not taken does not count, and the first may not be.
    step = tl.maximum(step, 1.0)
    root = tl.sqrt(1 - tl.exp(step * LOG_BETA2))
    return (
        (SIGN * scale).to(tl.float32),
        (1 - lr * DECAY).to(tl.float32),
        tl.full((), L2, tl.float32),
        tl.full((), 1 - BETA1, tl.float32),
        tl.full((), BETA2, tl.float32),
        tl.full((), 1 - BETA2, tl.float32),
        (EPS * root).to(tl.float32),
        (lr * root / (1 - tl.exp(step * LOG_BETA1))).to(tl.float32),
    )


@triton.jit
def store_scalars(
    out_ptr,
    lr,
    step,
    scale,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    EPS: tl.constexpr,
    L2: tl.constexpr,
    DECAY: tl.constexpr,
    SIGN: tl.constexpr,
):
    """Write them in their order."""
    numbers = step_numbers(
        lr, step, scale, BETA1, BETA2, LOG_BETA1, LOG_BETA2, EPS, L2, DECAY, SIGN
    )
    for slot in tl.static_range(8):
        tl.store(out_ptr + slot, numbers[slot])


def number(device: torch.device, value: float | Tensor) -> Tensor:
    """Return a 0-d tensor of what is one or a number."""
    return value if isinstance(value, Tensor) else constant(value, device, torch.float64)


def step_constants(
    beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool, maximize: bool
) -> dict[str, float]:
    """Return what of a step's options a kernel is compiled for, by name."""
    return {
        "BETA1": beta1,
        "BETA2": beta2,
        # Of 0 it only has to vanish when raised to a power.
        "LOG_BETA1": math.log(beta1) if beta1 else -1e4,
        "LOG_BETA2": math.log(beta2) if beta2 else -1e4,
        "EPS": eps,
        "L2": 0.0 if decoupled else weight_decay,
        "DECAY": weight_decay if decoupled else 0.0,
        "SIGN": -1.0 if maximize else 1.0,
    }
