"""Adam on a head A (N, H) and b (N,) from the factors of their gradients, dA = dz^T hidden.

dz (r, N), hidden (r, H), A and b are float32, the moments m and v float32 or bfloat16. The gradient
of a tile is formed in registers, by float32 multiply-adds for up to 16 factors, else by products of
float32's accuracy. Bytes: 24 N H (16 N H with moments in bfloat16) + 4 r N ceil(H / BLOCK_H), and
24 N for b.

The step's numbers are in a small tensor that :func:`adam_scalars` fills on the device, float32:

    0  scale        multiplies the gradient; negative to maximize
    1  decay        multiplies the parameter (decoupled weight decay), else 1
    2  l2           times the parameter is added to the gradient (coupled), else 0
    3  lerp         1 - beta1
    4  beta2
    5  square       1 - beta2
    6  eps          times the root of 1 - beta2^step
    7  step_size    lr times that root, over 1 - beta1^step
    8  skip         not 0: nothing is changed

The root is in 6 and 7 in place of a division of each second moment by it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import WGMMA_LEAST, fit, has_wgmma, on_device, only_if
from hypermask_fast.kernels.head.adam_wgmma import adam_by_wgmma
from hypermask_fast.kernels.head.arithmetic import exact_dot
from hypermask_fast.kernels.head.numbers import number, step_constants, store_scalars
from hypermask_fast.kernels.head.update import adam_update, load_scalars
from hypermask_fast.kernels.tuning import Config, choose

SCALARS = 9


def _config(rows: int, columns: int, warps: int) -> Config:
    return {"BLOCK_N": rows, "BLOCK_H": columns, "num_warps": warps}


CONFIGS: dict[str, tuple[Config, ...]] = {
    # With as many columns as threads Triton would share the loads of hidden through shared memory.
    "sums": (_config(32, 128, 8), _config(16, 128, 8), _config(32, 64, 4), _config(16, 64, 4)),
    "products": (_config(32, 128, 4), _config(64, 128, 8), _config(64, 64, 4)),
}
"""By how a gradient is formed: multiply-adds, or products; ``adam_wgmma`` has its own of these."""

_BUCKETS = (1, 4, 8, 12, 16)
"""Numbers of factors that a kernel of multiply-adds is compiled for."""


@triton.jit
def _adam_scalars_kernel(
    lr_ptr,
    step_ptr,
    scale_ptr,
    finite_ptr,
    out_ptr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    EPS: tl.constexpr,
    L2: tl.constexpr,
    DECAY: tl.constexpr,
    SIGN: tl.constexpr,
):
    """The table in the module's docstring, in float64 up to the stores."""
    lr = tl.load(lr_ptr).to(tl.float64)
    step = tl.load(step_ptr).to(tl.float64)
    scale = tl.load(scale_ptr).to(tl.float64)
    store_scalars(
        out_ptr, lr, step, scale, BETA1, BETA2, LOG_BETA1, LOG_BETA2, EPS, L2, DECAY, SIGN
    )
    if finite_ptr is None:
        tl.store(out_ptr + 8, 0.0)
    else:
        tl.store(out_ptr + 8, tl.where(tl.load(finite_ptr) != 0, 0.0, 1.0))


@triton.jit(do_not_specialize=["count"])
def _factored_adam_kernel(
    dz_ptr,
    hidden_ptr,
    scalars_ptr,
    weight_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    bias_ptr,
    bias_exp_avg_ptr,
    bias_exp_avg_sq_ptr,
    rows,
    count,
    dz_stride,
    WIDTH: tl.constexpr,
    FACTORS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Adam on a tile (BLOCK_N, BLOCK_H) of A; the first column of tiles also does b."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    row = tl.arange(0, BLOCK_N)
    column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    scalars = load_scalars(scalars_ptr)
    valid = only_if(row < rows - start, tl.load(scalars_ptr + 8) == 0)
    inside = column < WIDTH
    dz_ptr += start
    dz_stride = tl.cast(dz_stride, tl.int64)
    grad = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
    bias_grad = tl.zeros((BLOCK_N,), tl.float32)
    if BLOCK_R == 1:
        for factor in tl.static_range(FACTORS):
            used = factor < count
            dz = tl.load(dz_ptr + factor * dz_stride + row, mask=only_if(valid, used), other=0.0)
            h_ptr = hidden_ptr + factor * WIDTH + column
            h = tl.load(h_ptr, mask=only_if(inside, used), other=0.0)
            grad = tl.fma(dz[:, None], h[None, :], grad)
            bias_grad += dz
    else:
        for first in range(0, count, BLOCK_R):
            factor = first + tl.arange(0, BLOCK_R)
            used = factor < count
            at = dz_ptr + factor[None, :].to(tl.int64) * dz_stride + row[:, None]
            dz = tl.load(at, mask=valid[:, None] & used[None, :], other=0.0)
            h_ptr = hidden_ptr + factor[:, None] * WIDTH + column[None, :]
            h = tl.load(h_ptr, mask=used[:, None] & inside[None, :], other=0.0)
            grad = exact_dot(dz, h, grad)
            bias_grad += tl.sum(dz, 1)
    at = start * WIDTH + (row[:, None] * WIDTH + column[None, :])
    mask = valid[:, None] & inside[None, :]
    a = tl.load(weight_ptr + at, mask=mask, other=0.0)
    adam_update(weight_ptr, exp_avg_ptr, exp_avg_sq_ptr, at, a, grad, mask, scalars)
    if bias_ptr is not None:  # noqa: SIM102 - decides what is compiled
        if tl.program_id(1) == 0:
            b = tl.load(bias_ptr + start + row, mask=valid, other=0.0)
            adam_update(
                *(bias_ptr, bias_exp_avg_ptr, bias_exp_avg_sq_ptr),
                *(start + row, b, bias_grad, valid, scalars),
            )


def adam_scalars(
    device: torch.device,
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: float | Tensor,
    grad_scale: float | Tensor = 1.0,
    maximize: bool = False,
    finite: Tensor | None = None,
) -> Tensor:
    """Return the numbers of one step, formed on the device without waiting for it.

    What is a tensor is read when a captured CUDA graph is replayed; what is a number stays.

    Args:
        device: Of the parameters, and of the tensors.
        lr: Learning rate.
        beta1, beta2, eps, weight_decay, decoupled, maximize: As in ``torch.optim.Adam`` and
            ``AdamW``.
        step: Number of this update, from 1.
        grad_scale: Multiplies the gradient.
        finite: 0-d; False leaves parameters and moments as they are. Default: True.

    Returns:
        float32 (SCALARS,).
    """
    out = torch.empty(SCALARS, device=device)
    with on_device(out):
        _adam_scalars_kernel[(1,)](
            *(number(device, lr), number(device, step), number(device, grad_scale), finite, out),
            num_warps=1,
            **step_constants(beta1, beta2, eps, weight_decay, decoupled, maximize),
        )
    return out


def factored_adam(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    dz: Tensor,
    hidden: Tensor,
    scalars: Tensor,
    *,
    bias: Tensor | None = None,
    bias_exp_avg: Tensor | None = None,
    bias_exp_avg_sq: Tensor | None = None,
) -> None:
    """Apply one Adam step to A, and to b where it is given, in place.

    Args:
        weight: A (N, H), contiguous.
        exp_avg, exp_avg_sq: Moments (N, H), float32 or bfloat16, contiguous.
        dz: (r, N), rows may be apart; columns beyond those are not used.
        hidden: (r, H).
        scalars: Of :func:`adam_scalars`.
        bias, bias_exp_avg, bias_exp_avg_sq: b (N,) and its moments; its gradient is the sum of dz.
    """
    (rows, width), count = weight.shape, len(hidden)
    if not weight.numel():
        return
    dz = dz if dz.stride(1) == 1 else dz.contiguous()
    bucket = next((size for size in _BUCKETS if size >= count), 0)
    name = "sums" if bucket else "products"
    parameters = weight, exp_avg, exp_avg_sq, bias, bias_exp_avg, bias_exp_avg_sq
    with on_device(weight):
        if min(count, width) > WGMMA_LEAST and has_wgmma(weight):
            adam_by_wgmma(parameters, dz, hidden, scalars)
            return
        sizes = {"rows": rows, "width": width, "count": count}
        config = choose(f"factored_adam_{name}", CONFIGS[name], weight.device, **sizes)
        columns = fit(config["BLOCK_H"], width)
        grid = (triton.cdiv(rows, config["BLOCK_N"]), triton.cdiv(width, columns))
        _factored_adam_kernel[grid](
            *(dz, hidden.contiguous(), scalars, *parameters, rows, count, dz.stride(0)),
            WIDTH=width,
            FACTORS=bucket,
            BLOCK_R=1 if bucket else 32,
            enable_fp_fusion=False,
            **{**config, "BLOCK_H": columns},
        )
