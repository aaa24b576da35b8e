"""Linear layers whose weights are masked in registers: y = x (W mask)^T + b mask_b.

mask = |tanh z| where it is not below the threshold q, for W and z (N, K), x (M, K), y (M, N). No
kernel writes W mask or the mask to memory; each makes it from z while a tile of W is loaded.

* Forward, and backward to x (dx = dy (W mask)), are one kernel: the product of rows with masked
  weights, read along or across. The weights are its first operand, so that 16 rows fill a tensor
  core's instruction. A tile of W and z is read, and its tanh formed, ``ceil(M / BLOCK_M)`` times
  (but for the first from L2: programs that share it run side by side), a tile of x
  ``ceil(N / BLOCK_N)`` times. Bytes: N K (w + z) ceil(M / BLOCK_M) + M K x ceil(N / BLOCK_N) +
  M N y, with the sizes of an element in lower case. For M <= BLOCK_M, W and z are read once. Beyond
  a few tiles of rows tanh takes longer than 16-bit products: there W mask from ``mask_weights`` and
  a plain product may be faster.
* Where few tiles would leave most of a GPU idle, the sum is split, and a small kernel adds the
  parts: see :func:`_splits`. Bytes: 8 M N for each part.
* Backward to W and z, and to b and z_b, are in ``masked_linear_backward``.

All sums have a fixed order. Dtypes: x, y and dy have one of float32, float16, bfloat16; W has the
same, or float32 where x is narrower (autocast: W mask is then rounded to the dtype of x). z has
float32, or another of these. Each gradient has the dtype of its tensor.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels._device import cast, on_device, semi_binary
from hypermask_fast.kernels._matmul import (
    aligned,
    dot,
    float32_products,
    load_threshold,
    rows_of,
    swizzle,
)
from hypermask_fast.kernels._tuning import Config, choose


def _config(m: int, n: int, k: int, warps: int, stages: int, split: int = 0) -> Config:
    tile = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8, "SPLIT": split}
    return {**tile, "num_warps": warps, "num_stages": stages}


CONFIGS: dict[str, tuple[Config, ...]] = {
    "rows16_32bit": (_config(16, 64, 64, 4, 3), _config(16, 128, 32, 4, 3)),
    "rows16_16bit": (_config(16, 64, 64, 4, 4), _config(16, 64, 128, 4, 3)),
    "rows128_32bit": (_config(64, 64, 32, 4, 3), _config(128, 64, 32, 4, 3)),
    "rows128_16bit": (_config(64, 64, 64, 4, 3), _config(128, 64, 64, 4, 3)),
    "rows_32bit": (_config(128, 128, 32, 8, 3), _config(128, 64, 32, 4, 3)),
    "rows_16bit": (_config(128, 128, 64, 8, 3), _config(256, 64, 64, 8, 3)),
}
"""The default first, by rows (up to 16, up to 128, more) and bits of an element of x or of W, the
larger. ``SPLIT`` is the number of parts of the sum, or 0 for :func:`_splits`.
"""
_SUM_BLOCK = 1024


@triton.jit(do_not_specialize=["M", "N", "K", "row_tiles", "steps", "stride_a"])
def _masked_linear_product_kernel(
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
    z_ptr += base + tl.cast(task, tl.int64) * N * K
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
def _masked_linear_sum_kernel(partial_ptr, y_ptr, size, splits, BLOCK: tl.constexpr):
    """y = the sum of ``splits`` partial results, in their order."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    live = i < size - first
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        acc += tl.load(partial_ptr + tl.cast(split, tl.int64) * size + first + i, live, other=0)
    tl.store(y_ptr + first + i, cast(acc, y_ptr.dtype.element_ty), live)


def _class(rows: int, bits: int) -> str:
    return f"rows{16 if rows <= 16 else 128 if rows <= 128 else ''}_{bits}bit"


def _splits(tiles: int, rows: int, depth: int, step: int) -> int:
    """Return into how many parts the sum of a product is split.

    As many as give 256 programs, at most 16; a part has at least four steps, and is at least as
    long as there are rows, so that the parts of y take no more memory than the weights.
    """
    return max(1, min(16, 256 // tiles, depth // max(4 * step, rows)))


def _multiply(
    kernel: str,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    threshold: Tensor | None,
    bias: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    tasks: Tensor | None = None,
) -> Tensor:
    """Launch the product; ``bias`` is b, z_b and its threshold."""
    across = kernel == "masked_linear_input"
    rows = rows_of(x)
    height, depth = rows.shape
    width = weight.shape[1 if across else 0]
    count = logits.shape[0] if logits.dim() == 3 else 1
    each = (count,) if logits.dim() == 3 and tasks is None else ()
    y = x.new_empty((*each, *x.shape[:-1], width))
    if not y.numel():
        return y
    bits = 8 * max(x.element_size(), weight.element_size())
    sizes = {"rows": height, "width": width, "depth": depth, "bits": bits}
    alike = height if tasks is None else triton.cdiv(height, count)
    config = dict(choose(kernel, CONFIGS[_class(alike, bits)], x.device, **sizes))
    row_tiles = triton.cdiv(height, config["BLOCK_M"])
    order = starts = None
    if tasks is not None:
        # Each task may end in a part of a tile; how many do, only the device knows.
        row_tiles = min(height, row_tiles + count)
        order = tasks.argsort(stable=True)
        numbers = torch.arange(count + 1, device=tasks.device, dtype=tasks.dtype)
        starts = torch.searchsorted(tasks[order], numbers, out_int32=True)
    tiles = triton.cdiv(width, config["BLOCK_N"]) * row_tiles * (count if each else 1)
    split = config.pop("SPLIT") or _splits(tiles, height, depth, config["BLOCK_K"])
    out = y if split == 1 else y.new_empty((split, y.numel()), dtype=torch.float32)
    steps = triton.cdiv(triton.cdiv(depth, config["BLOCK_K"]), split)
    (n, align_n), (k, align_k), (a, align_a) = map(aligned, (width, depth, rows.stride(0)))
    with on_device(x):
        _masked_linear_product_kernel[(tiles, split)](
            rows,
            weight.contiguous(),
            logits.contiguous(),
            threshold,
            *(None if b is None else b.contiguous() for b in bias),
            order,
            starts,
            out,
            height,
            n,
            k,
            count,
            row_tiles,
            steps,
            a,
            ACROSS=across,
            ALIGN_N=align_n,
            ALIGN_K=align_k,
            ALIGN_A=align_a,
            PRECISION=float32_products(x.dtype),
            BLOCK_T=None if order is None else triton.next_power_of_2(count),
            **config,
        )
        if split > 1:
            size = y.numel()
            grid = (triton.cdiv(size, _SUM_BLOCK),)
            _masked_linear_sum_kernel[grid](out, y, size, split, BLOCK=_SUM_BLOCK, num_warps=4)
    return y


def masked_linear_backward_input(
    grad: Tensor, weight: Tensor, weight_logits: Tensor, weight_threshold: Tensor | None = None
) -> Tensor:
    """Return the gradient of x: dy (W mask).

    Args:
        grad: dy (..., N).
        weight, weight_logits: (N, K).
        weight_threshold: 0-d, or None to keep every entry.

    Returns:
        (..., K), of the dtype of dy.
    """
    return _multiply("masked_linear_input", grad, weight, weight_logits, weight_threshold)


def masked_linear_mixed(
    x: Tensor,
    tasks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_logits: Tensor,
    bias_logits: Tensor | None = None,
    weight_threshold: Tensor | None = None,
    bias_threshold: Tensor | None = None,
) -> Tensor:
    """Return :func:`masked_linear_forward` of each row under the mask of its own task.

    Rows are grouped by task on the device, without a copy to the host, and gathered tile by tile.
    Forward only. The result for a row with a task outside [0, T) is undefined.

    Args:
        x: (M, K).
        tasks: (M,), integers.
        weight: (N, K).
        bias: (N,) or None.
        weight_logits: (T, N, K).
        bias_logits: (T, N), or None to use the bias unmasked.
        weight_threshold, bias_threshold: (T,), or None to keep every entry.

    Returns:
        (M, N), of the dtype of x.
    """
    masked_bias = (bias, bias_logits, bias_threshold)
    return _multiply(
        "masked_linear", x, weight, weight_logits, weight_threshold, masked_bias, tasks
    )


def masked_linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_logits: Tensor,
    bias_logits: Tensor | None = None,
    weight_threshold: Tensor | None = None,
    bias_threshold: Tensor | None = None,
) -> Tensor:
    """Return ``x (W mask)^T + b mask_b``, for one mask, or for T masks of the same weights.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,) or None.
        weight_logits: (N, K), or (T, N, K), which is forward only.
        bias_logits: (N,) or (T, N), or None to use the bias unmasked.
        weight_threshold, bias_threshold: 0-d or (T,), or None to keep every entry.

    Returns:
        (..., N), or (T, ..., N), of the dtype of x.
    """
    masked_bias = (bias, bias_logits, bias_threshold)
    return _multiply("masked_linear", x, weight, weight_logits, weight_threshold, masked_bias)
