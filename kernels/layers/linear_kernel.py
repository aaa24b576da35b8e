"""The kernel of ``masked_linear``: rows times masked weights, and the sum of its parts."""

from __future__ import annotations

import triton
import triton.language as tl

from hypermask_fast.kernels.device import cast, semi_binary
from hypermask_fast.kernels.layers.matmul import dot, load_threshold, swizzle


@triton.jit(do_not_specialize=["M", "N", "K", "row_tiles", "steps", "stride_a"])
def masked_linear_product_kernel(
    a_ptr,
    w_ptr,
    z_ptr,
    q_ptr,
    b_ptr,
    zb_ptr,
    qb_ptr,
    order_ptr,
    starts_ptr,
    y_ptr,
    M,
    N,
    K,
    T,
    row_tiles,
    steps,
    stride_a,
    stride_z,
    ACROSS: tl.constexpr,
    ALIGN_N: tl.constexpr,
    ALIGN_K: tl.constexpr,
    ALIGN_A: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """y[m, n] = sum_k a[m, k] W[n, k] mask[n, k] + b[n] mask_b[n], in tiles (BLOCK_N, BLOCK_M).

    ACROSS: W and mask are stored (K, N). Program axis 1 splits the sum over k. Tasks share axis 0,
    so that W is read once for all; or, given ``order`` and ``starts``, each tile of rows has one.
    """
    N *= ALIGN_N
    K *= ALIGN_K
    stride_a *= ALIGN_A
    pid = tl.program_id(0)
    split = tl.program_id(1)
    if starts_ptr is None:
        task = pid % T
        pid = pid // T
    tile_n, tile_m = swizzle(pid, tl.cdiv(N, BLOCK_N), row_tiles, GROUP)

    columns = tl.arange(0, BLOCK_M)
    if starts_ptr is None:
        row = tile_m.to(tl.int64) * BLOCK_M
        a_ptr += row * stride_a
        y_ptr += ((split.to(tl.int64) * T + task) * M + row) * N
        rows = columns
        live = columns < M - row
    else:
        t = tl.arange(0, BLOCK_T)
        begins = tl.load(starts_ptr + t, t < T, other=0)
        ends = tl.load(starts_ptr + t + 1, t < T, other=0)
        tiles = tl.cdiv(ends - begins, BLOCK_M)
        task = tl.sum((tl.cumsum(tiles) <= tile_m).to(tl.int32))
        tile_m -= tl.sum(tl.where(t < task, tiles, 0))
        place = tl.sum(tl.where(t == task, begins, 0)) + tile_m * BLOCK_M + columns
        live = place < tl.sum(tl.where(t == task, ends, 0))
        rows = tl.load(order_ptr + place, live, other=0)
        y_ptr += split.to(tl.int64) * M * N
        # More programs than tiles of rows: the last ones have no task, and nothing to do.
        steps = tl.where(task < T, steps, 0)
        task = tl.minimum(task, T - 1)

    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    first = tile_n.to(tl.int64) * BLOCK_N
    live_n = n < N - tile_n * BLOCK_N
    start = split * steps * BLOCK_K
    if ACROSS:
        base = start.to(tl.int64) * N + first
        step = BLOCK_K * N
        at = k[None, :] * N + n[:, None]
    else:
        base = first * K + start
        step = BLOCK_K
        at = n[:, None] * K + k[None, :]
    w_ptr += base
    z_ptr += base + tl.cast(task, tl.int64) * stride_z
    a_ptr += start
    at_a = k[:, None] + rows[None, :] * stride_a
    q = load_threshold(q_ptr, task)
    HAS_Q: tl.constexpr = q_ptr is not None
    dtype: tl.constexpr = a_ptr.dtype.element_ty

    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for begin in range(start, tl.minimum(start + steps * BLOCK_K, K), BLOCK_K):
        live_k = k < K - begin
        inside = live_n[:, None] & live_k[None, :]
        w = tl.load(w_ptr + at, inside, other=0).to(tl.float32)
        mask = semi_binary(tl.load(z_ptr + at, inside, other=0), q, HAS_Q)
        a = tl.load(a_ptr + at_a, live_k[:, None] & live[None, :], other=0)
        acc = dot(w * mask, a, acc, dtype, PRECISION)
        w_ptr += step
        z_ptr += step
        a_ptr += BLOCK_K

    if b_ptr is not None:
        bias = tl.load(b_ptr + first + n, live_n, other=0).to(tl.float32)
        if zb_ptr is not None:
            zb = tl.load(zb_ptr + tl.cast(task, tl.int64) * N + first + n, live_n, other=0)
            bias *= semi_binary(zb, load_threshold(qb_ptr, task), qb_ptr is not None)
        acc += tl.where(split == 0, bias, 0.0)[:, None]
    y_ptr += first + rows[None, :] * N + n[:, None]
    tl.store(y_ptr, cast(acc, y_ptr.dtype.element_ty), live_n[:, None] & live[None, :])


@triton.jit
def masked_linear_sum_kernel(partial_ptr, y_ptr, size, splits, BLOCK: tl.constexpr):
    """y = the sum of ``splits`` partial results, in their order."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    live = i < size - first
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        acc += tl.load(partial_ptr + tl.cast(split, tl.int64) * size + first + i, live, other=0)
    tl.store(y_ptr + first + i, cast(acc, y_ptr.dtype.element_ty), live)
