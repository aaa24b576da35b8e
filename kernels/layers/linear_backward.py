"""Gradients of the weights and mask logits of a masked linear layer; see ``masked_linear``.

With G = dy^T x (N, K) in float32 registers, dW = G mask and dz = G W dmask/dz: one kernel, two
outputs. Bytes: N K (2 w + 2 z) + M N y ceil(K / BLOCK_K) + M K x ceil(N / BLOCK_N), with the sizes
of an element in lower case. For a bias G is the sum of dy (M, N) over rows, in parts of ``_CHUNK``
rows and then over these. Bytes: M N y. All sums have a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import cast, mask_slope, on_device, semi_binary
from hypermask_fast.kernels.layers.matmul import (
    aligned,
    dot,
    float32_products,
    load_threshold,
    product_sizes,
    rows_of,
    swizzle,
)
from hypermask_fast.kernels.tuning import Config, choose


def _configs(*rows: tuple[int, int, int, int, int]) -> tuple[Config, ...]:
    names = ("BLOCK_N", "BLOCK_K", "BLOCK_M", "num_warps", "num_stages")
    return tuple({**dict(zip(names, row, strict=True)), "GROUP": 8} for row in rows)


CONFIGS: dict[str, tuple[Config, ...]] = {
    "32bit": _configs(
        (64, 64, 32, 4, 3), (128, 64, 32, 8, 3), (64, 128, 32, 8, 3), (64, 64, 64, 8, 3)
    ),
    "16bit": _configs(
        (64, 128, 64, 8, 3), (128, 64, 64, 8, 3), (64, 64, 64, 4, 3), (64, 64, 32, 4, 3)
    ),
}
"""The default first, by bits of an element of x."""

_CHUNK = 256


@triton.jit(do_not_specialize=["M", "N", "K", "stride_g", "stride_x"])
def _masked_linear_weight_kernel(
    g_ptr,
    x_ptr,
    w_ptr,
    z_ptr,
    q_ptr,
    dw_ptr,
    dz_ptr,
    M,
    N,
    K,
    stride_g,
    stride_x,
    ALIGN_N: tl.constexpr,
    ALIGN_K: tl.constexpr,
    ALIGN_G: tl.constexpr,
    ALIGN_X: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    GROUP: tl.constexpr,
):
    """dW = G mask and dz = G W dmask/dz of a tile (BLOCK_N, BLOCK_K), with G = dy^T x."""
    N *= ALIGN_N
    K *= ALIGN_K
    stride_g *= ALIGN_G
    stride_x *= ALIGN_X
    tile_n, tile_k = swizzle(tl.program_id(0), tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K), GROUP)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    m = tl.arange(0, BLOCK_M)
    first_n = tile_n.to(tl.int64) * BLOCK_N
    first_k = tile_k.to(tl.int64) * BLOCK_K
    live_n = n < N - tile_n * BLOCK_N
    live_k = k < K - tile_k * BLOCK_K
    g_ptr += first_n
    x_ptr += first_k
    at_g = m[None, :] * stride_g + n[:, None]
    at_x = m[:, None] * stride_x + k[None, :]
    dtype: tl.constexpr = x_ptr.dtype.element_ty

    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for begin in range(0, M, BLOCK_M):
        live = m < M - begin
        g = tl.load(g_ptr + at_g, live_n[:, None] & live[None, :], other=0)
        x = tl.load(x_ptr + at_x, live[:, None] & live_k[None, :], other=0)
        acc = dot(g, x, acc, dtype, PRECISION)
        g_ptr += tl.cast(stride_g, tl.int64) * BLOCK_M
        x_ptr += tl.cast(stride_x, tl.int64) * BLOCK_M

    base = first_n * K + first_k
    at = n[:, None] * K + k[None, :]
    inside = live_n[:, None] & live_k[None, :]
    z = tl.load(z_ptr + base + at, inside, other=0)
    w = tl.load(w_ptr + base + at, inside, other=0).to(tl.float32)
    mask = semi_binary(z, load_threshold(q_ptr, 0), q_ptr is not None)
    tl.store(dw_ptr + base + at, cast(acc * mask, dw_ptr.dtype.element_ty), inside)
    dz = acc * w * mask_slope(z, mask)
    tl.store(dz_ptr + base + at, cast(dz, dz_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["M", "chunk"])
def _masked_linear_bias_kernel(
    g_ptr,
    b_ptr,
    zb_ptr,
    q_ptr,
    db_ptr,
    dzb_ptr,
    M,
    N,
    chunk,
    stride_g,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """db = the sums of chunks of rows of dy; given z_b, times mask, and dz_b = sum b dmask/dz."""
    part = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1).to(tl.int64) * BLOCK_N
    n = tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    live_n = n < N - first
    g_ptr += part * chunk * stride_g + first
    rows = tl.minimum(M - part * chunk, chunk)
    at = m[:, None] * stride_g + n[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, rows, BLOCK_M):
        live = m < rows - begin
        acc += tl.load(g_ptr + at, live[:, None] & live_n[None, :], other=0).to(tl.float32)
        g_ptr += tl.cast(stride_g, tl.int64) * BLOCK_M
    total = tl.sum(acc, 0)
    if zb_ptr is not None:
        zb = tl.load(zb_ptr + first + n, live_n, other=0)
        mask = semi_binary(zb, load_threshold(q_ptr, 0), q_ptr is not None)
        bias = tl.load(b_ptr + first + n, live_n, other=0).to(tl.float32)
        dzb = total * bias * mask_slope(zb, mask)
        tl.store(dzb_ptr + first + n, cast(dzb, dzb_ptr.dtype.element_ty), live_n)
        total *= mask
    tl.store(db_ptr + part * N + first + n, cast(total, db_ptr.dtype.element_ty), live_n)


def masked_linear_backward_bias(
    grad: Tensor,
    bias: Tensor,
    bias_logits: Tensor | None = None,
    bias_threshold: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of the bias and of its mask logits.

    Args:
        grad: dy (..., N).
        bias: (N,).
        bias_logits: (N,), or None where the bias is not masked.
        bias_threshold: 0-d, or None to keep every entry.

    Returns:
        (N,) each, of the dtypes of the bias and of its logits; None for logits that are None.
    """
    rows, width = rows_of(grad), bias.shape[0]
    bias_grad = bias.new_empty(width)
    logits_grad = None if bias_logits is None else bias_logits.new_empty(width)
    if not width:
        return bias_grad, logits_grad
    tile = {"BLOCK_M": 32, "BLOCK_N": 64}
    blocks = triton.cdiv(width, tile["BLOCK_N"])
    kernel = _masked_linear_bias_kernel
    with on_device(grad):
        if rows.shape[0] > _CHUNK:
            sums = grad.new_empty((triton.cdiv(rows.shape[0], _CHUNK), width), dtype=torch.float32)
            sizes = (rows.shape[0], width, _CHUNK, rows.stride(0))
            kernel[(sums.shape[0], blocks)](rows, None, None, None, sums, None, *sizes, **tile)
            rows = sums
        sizes = (rows.shape[0], width, rows.shape[0], rows.stride(0))
        logits = None if bias_logits is None else bias_logits.contiguous()
        gate = (bias.contiguous(), logits, bias_threshold, bias_grad, logits_grad)
        kernel[(1, blocks)](rows, *gate, *sizes, **tile)
    return bias_grad, logits_grad


def masked_linear_backward_weight(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_logits: Tensor,
    weight_threshold: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weights and of their mask logits.

    Args:
        grad: dy (..., N).
        x: (..., K), of the dtype of dy.
        weight, weight_logits: (N, K).
        weight_threshold: 0-d, or None to keep every entry.

    Returns:
        (N, K) each, of the dtypes of the weights and of the logits.
    """
    width, depth = weight.shape
    weight_grad = weight.new_empty((width, depth))
    logits_grad = weight_logits.new_empty((width, depth))
    if not weight.numel():
        return weight_grad, logits_grad
    grads, rows = rows_of(grad), rows_of(x)
    bits = 8 * x.element_size()
    sizes = product_sizes(rows.shape[0], width, depth, bits)
    config = choose("masked_linear_weight", CONFIGS[f"{bits}bit"], x.device, **sizes)
    tiles = triton.cdiv(width, config["BLOCK_N"]) * triton.cdiv(depth, config["BLOCK_K"])
    (n, align_n), (k, align_k) = aligned(width), aligned(depth)
    (stride_g, align_g), (stride_x, align_x) = aligned(grads.stride(0)), aligned(rows.stride(0))
    with on_device(x):
        _masked_linear_weight_kernel[(tiles,)](
            grads,
            rows,
            weight.contiguous(),
            weight_logits.contiguous(),
            weight_threshold,
            weight_grad,
            logits_grad,
            rows.shape[0],
            n,
            k,
            stride_g,
            stride_x,
            ALIGN_N=align_n,
            ALIGN_K=align_k,
            ALIGN_G=align_g,
            ALIGN_X=align_x,
            PRECISION=float32_products(x.dtype),
            **config,
        )
    return weight_grad, logits_grad
