"""The first of two passes of a training step over a head with many earlier embeddings.

Of z_j = A h_j + b and r_j = z_j - target_j of the t earlier ones and dz_j = coefficient r_j, this
pass stores [dz_0, dz] (t + 1, N) and sums [dz_0, dz] A and r_j^2; ``factored_adam`` is the other. A
(N, H), H up to 128, dz_0 (N,), targets (t, N) float32 or bfloat16, all else float32.

A program keeps the sums of 64 embeddings in registers and takes tiles of rows in turn; those of
other embeddings run beside it on the same rows, and find A in the cache. All are products of
float32's accuracy; torch adds the programs' sums in float64, in order. Bytes: 4 N H + 8 t N + 12 N.

Where matrix cores read from shared memory ``step_products_wgmma`` has the kernel, else it is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import WGMMA_LEAST, cast, has_wgmma, on_device
from hypermask_fast.kernels.head.arithmetic import exact_dot
from hypermask_fast.kernels.head.finish import finish
from hypermask_fast.kernels.head.product_tiles import plan, store_sums, tile_factors
from hypermask_fast.kernels.head.step_products_wgmma import CONFIGS as WGMMA_CONFIGS
from hypermask_fast.kernels.head.step_products_wgmma import launch_wgmma
from hypermask_fast.kernels.tuning import Config


def _config(embeddings: int, rows: int, warps: int, stages: int, programs: int) -> Config:
    sizes = {"BLOCK_K": embeddings, "BLOCK_N": rows, "BLOCK_H": 32, "PROGRAMS": programs}
    return {**sizes, "num_warps": warps, "num_stages": stages}


CONFIGS: tuple[Config, ...] = (
    _config(64, 32, 4, 4, 2),
    _config(64, 32, 4, 2, 2),
    _config(64, 16, 4, 4, 2),
    _config(128, 32, 8, 2, 1),
)
"""``BLOCK_K`` embeddings at most, ``PROGRAMS`` for each multiprocessor; ``BLOCK_H`` columns of A at
a time make a tile's row."""

WIDEST = 128
"""Columns whose sums fit in registers."""

_VECTOR = 32
"""Rows of dz begin at multiples, so that they are stored and loaded in wide pieces."""


@triton.jit(do_not_specialize=["count"])
def _step_rows_products_kernel(
    weight_ptr,
    bias_ptr,
    current_ptr,
    hidden_ptr,
    targets_ptr,
    coefficient_ptr,
    scalars_ptr,
    out_ptr,
    parts_ptr,
    squares_ptr,
    rows,
    count,
    targets_stride,
    out_stride,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    LAST: tl.constexpr,
    SKIPPED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Tiles (BLOCK_K, BLOCK_N) of dz; or only of z, where SKIPPED is 1, for hidden (t, H).

    The tile of A and its sums are in CHUNKS of BLOCK_H columns, of which the last sum has LAST.
    """
    row = tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_H)
    slot = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    program = tl.program_id(1).to(tl.int64)
    used = (slot >= SKIPPED) & (slot < count)
    squares = 0.0
    sums = ()
    for chunk in tl.static_range(CHUNKS):
        sums += (tl.zeros((BLOCK_K, BLOCK_H if chunk + 1 < CHUNKS else LAST), tl.float32),)
    # Addresses, masks and numbers are formed anew in each turn: they would fill registers.
    for start in tl.range(
        program * BLOCK_N, rows, tl.num_programs(1) * BLOCK_N, num_stages=1, disable_licm=True
    ):
        tile_ptr = weight_ptr + start * WIDTH + (row[:, None] * WIDTH + column[None, :])
        valid = row < (rows - start).to(tl.int32)
        z = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
        for first in range(0, WIDTH, BLOCK_H):
            inside = column < WIDTH - first
            a = tl.load(tile_ptr + first, mask=valid[:, None] & inside[None, :], other=0.0)
            h_ptr = hidden_ptr + (slot - SKIPPED)[:, None] * WIDTH + column[None, :]
            h = tl.load(h_ptr + first, mask=used[:, None] & inside[None, :], other=0.0)
            z = exact_dot(h, tl.trans(a), z)
        z += tl.load(bias_ptr + start + row, mask=valid, other=0.0)[None, :]
        if SKIPPED == 0:
            z, more = tile_factors(
                *(z, row, slot, valid, used, start),
                *(current_ptr, targets_ptr, coefficient_ptr, scalars_ptr, targets_stride),
            )
            squares += more
        at = (slot - SKIPPED)[:, None].to(tl.int64) * out_stride + row[None, :]
        whole = used[:, None] & valid[None, :]
        tl.store(out_ptr + start + at, cast(z, out_ptr.dtype.element_ty), mask=whole)
        if SKIPPED == 0:
            before = sums
            sums = ()
            for chunk in tl.static_range(CHUNKS):
                part = chunk * BLOCK_H + tl.arange(0, BLOCK_H if chunk + 1 < CHUNKS else LAST)
                again = tl.load(
                    weight_ptr + start * WIDTH + (row[:, None] * WIDTH + part[None, :]),
                    mask=valid[:, None] & (part < WIDTH)[None, :],
                    other=0.0,
                    cache_modifier=".ca",
                )
                sums += (exact_dot(z, again, before[chunk]),)
    if SKIPPED == 0:
        store_sums(
            *(parts_ptr, squares_ptr, sums, squares, slot, used, count),
            *(WIDTH, CHUNKS, LAST, BLOCK_H),
        )


def _launch(
    grid: tuple[int, int],
    config: dict[str, int],
    tensors: Sequence[Any],
    count: int,
    *,
    skipped: int,
) -> None:
    weight, targets, out = tensors[0], tensors[4], tensors[7]
    _step_rows_products_kernel[grid](
        *(*tensors, len(weight), count, 0 if targets is None else targets.stride(0), out.stride(0)),
        SKIPPED=skipped,
        enable_fp_fusion=False,
        **config,
    )


def _plan(
    weight: Tensor, count: int, processors: int
) -> tuple[tuple[int, int], dict[str, int], Callable[..., None]]:
    if count > WGMMA_LEAST and has_wgmma(weight):
        return *plan("step_rows_wgmma", WGMMA_CONFIGS, weight, count, processors), launch_wgmma
    return *plan("step_rows_products", CONFIGS, weight, count, processors), _launch


def product_logits(
    weight: Tensor, bias: Tensor, hidden: Tensor, out: Tensor, processors: int
) -> Tensor:
    """Fill ``out`` with the logits that :func:`residual_sums` forms with ``hidden`` as its last.

    Args:
        weight: A (N, H), contiguous.
        bias: b (N,), contiguous.
        hidden: (t, H), of the earlier embeddings.
        out: (t, N), float32 or bfloat16.
        processors: As in :func:`residual_sums`.

    Returns:
        ``out``.
    """
    with on_device(weight):
        grid, config, launch = _plan(weight, len(hidden) + 1, processors)
        tensors = weight, bias, None, hidden.contiguous(), None, None, None, out, None, None
        launch(grid, config, tensors, len(hidden) + 1, skipped=1)
    return out


def residual_sums(
    weight: Tensor,
    bias: Tensor,
    dz_current: Tensor,
    hidden: Tensor,
    targets: Tensor,
    *,
    coefficient: Tensor,
    scalars: Tensor,
    processors: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients to all logits, that to ``hidden``, and the squares of the residuals.

    Args:
        weight: A (N, H), contiguous, H up to ``WIDEST``.
        bias: b (N,), contiguous.
        dz_current: (N,), contiguous; taken as 0 if the step is skipped.
        hidden: (t + 1, H), contiguous, the current embedding's first. t is at least 1.
        targets: (t, N), float32 or bfloat16, rows may be apart; of :func:`product_logits`.
        coefficient: One number, float32.
        scalars: Of :func:`~hypermask_fast.kernels.head.adam.adam_scalars`.
        processors: Multiprocessors to fill; more or fewer only change the order of sums.

    Returns:
        dz (t + 1, N) with columns beyond that hold nothing, dz A (t + 1, H), and the sum of all
        squared residuals, 0-d float64.
    """
    (rows, width), count = weight.shape, len(hidden)
    with on_device(weight):
        grid, config, launch = _plan(weight, count, processors)
        dz = weight.new_empty(count, _VECTOR * triton.cdiv(rows, _VECTOR))
        parts, squares = weight.new_empty(grid[1], count, width), weight.new_empty(grid)
        tensors = weight, bias, dz_current, hidden, targets, coefficient, scalars
        launch(grid, config, (*tensors, dz, parts, squares), count, skipped=0)
    return dz, *finish(parts, squares)
