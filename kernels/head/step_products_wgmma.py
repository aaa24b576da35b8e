"""``step_products`` on GPUs whose matrix cores read both operands from shared memory.

hidden stays there as thirds, and so does a tile of A, which both products read: one as it is, one
transposed. The next tile is on its way to the L2 cache meanwhile. Bytes: 4 N H + 8 t N + 12 N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from hypermask_fast.kernels.device import cast, prefetch, prefetch_run
from hypermask_fast.kernels.head.product_tiles import store_sums, tile_factors
from hypermask_fast.kernels.head.thirds import load_thirds, product, split, thirds, transposed
from hypermask_fast.kernels.tuning import Config


def _config(embeddings: int, rows: int, columns: int, warps: int, programs: int) -> Config:
    sizes = {"BLOCK_K": embeddings, "BLOCK_N": rows, "BLOCK_H": columns, "PROGRAMS": programs}
    return {**sizes, "num_warps": warps}


CONFIGS: tuple[Config, ...] = (
    _config(64, 64, 64, 4, 2),
    _config(64, 32, 64, 4, 2),
    _config(64, 64, 128, 4, 2),
)
"""As in ``step_products``."""


@triton.jit(do_not_specialize=["count"])
def _step_rows_wgmma_kernel(
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
    out_columns,
    targets_stride,
    out_stride,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    LAST: tl.constexpr,
    PADDED: tl.constexpr,
    UNIT: tl.constexpr,
    SKIPPED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Tiles (BLOCK_K, BLOCK_N) of dz; or only of z, where SKIPPED is 1: the first slot is of none.

    Hidden (3, slots, PADDED) is split. A tile of A and its sums are in CHUNKS of BLOCK_H columns,
    of which the last has LAST. The next tile is on its way to the L2 cache meanwhile.
    """
    row = tl.arange(0, BLOCK_N)
    slot = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    program = tl.program_id(1).to(tl.int64)
    used = (slot >= SKIPPED) & (slot < count)
    rows *= UNIT
    targets_stride *= UNIT
    squares = 0.0
    hidden, sums = (), ()
    for chunk in tl.static_range(CHUNKS):
        part = tl.arange(0, BLOCK_H if chunk + 1 < CHUNKS else LAST)
        h_ptr = hidden_ptr + chunk * BLOCK_H + slot[:, None] * PADDED + part[None, :]
        hidden += (load_thirds(h_ptr, tl.num_programs(0) * BLOCK_K * PADDED),)
        sums += (tl.zeros((BLOCK_K, BLOCK_H if chunk + 1 < CHUNKS else LAST), tl.float32),)
    # Addresses, masks and numbers are formed anew in each turn: they would fill registers.
    for start in tl.range(
        program * BLOCK_N, rows, tl.num_programs(1) * BLOCK_N, num_stages=1, disable_licm=True
    ):
        valid = row < (rows - start).to(tl.int32)
        tile = ()
        for chunk in tl.static_range(CHUNKS):
            part = chunk * BLOCK_H + tl.arange(0, BLOCK_H if chunk + 1 < CHUNKS else LAST)
            a = tl.load(
                weight_ptr + start * WIDTH + (row[:, None] * WIDTH + part[None, :]),
                mask=valid[:, None] & (part < WIDTH)[None, :],
                other=0.0,
            )
            tile += (thirds(a),)
        z = product(hidden[0], transposed(tile[0]))  # type: ignore[misc]
        for chunk in tl.static_range(1, CHUNKS):
            z += product(hidden[chunk], transposed(tile[chunk]))
        z += tl.load(bias_ptr + start + row, mask=valid, other=0.0)[None, :]
        if SKIPPED == 0:
            z, more = tile_factors(
                *(z, row, slot, valid, used, start),
                *(current_ptr, targets_ptr, coefficient_ptr, scalars_ptr, targets_stride),
            )
            squares += more
        at = slot[:, None].to(tl.int64) * out_stride + row[None, :]
        # Up to whole vectors, where rows are padded.
        whole = used[:, None] & (row < (out_columns - start).to(tl.int32))[None, :]
        tl.store(
            out_ptr + (start - SKIPPED * out_stride) + at,
            cast(z, out_ptr.dtype.element_ty),
            mask=whole,
        )
        after = start + tl.num_programs(1) * BLOCK_N
        left = tl.minimum(rows - after, BLOCK_N).to(tl.int32)
        prefetch_run(weight_ptr + after * WIDTH, left * WIDTH, BLOCK_N * WIDTH)
        prefetch_run(bias_ptr + after, left, BLOCK_N)
        if SKIPPED == 0:
            prefetch_run(current_ptr + after, left, BLOCK_N)
            EACH: tl.constexpr = 256 // targets_ptr.dtype.element_ty.primitive_bitwidth
            run = EACH * tl.arange(0, BLOCK_N // EACH)
            at = slot[:, None].to(tl.int64) * targets_stride + run[None, :]
            known = (used & (slot >= 1))[:, None] & (run < left)[None, :]
            prefetch(targets_ptr + (after - targets_stride) + at, known)
            before = sums
            sums = ()
            factors = thirds(z)
            for chunk in tl.static_range(CHUNKS):
                sums += (before[chunk] + product(factors, tile[chunk]),)
    if SKIPPED == 0:
        store_sums(
            *(parts_ptr, squares_ptr, sums, squares, slot, used, count),
            *(WIDTH, CHUNKS, LAST, BLOCK_H),
        )


def launch_wgmma(
    grid: tuple[int, int],
    config: dict[str, int],
    tensors: Sequence[Any],
    count: int,
    *,
    skipped: int,
) -> None:
    """Fill dz, the sums and the squares, or with ``skipped`` = 1 the logits.

    Args:
        grid, config: Of ``plan``.
        tensors: A, b, dz_0, hidden, targets, the coefficient, the scalars, dz or the logits, sums
            and squares; None those that a launch does without.
        count: Embeddings, with the current one.
        skipped: 1 where ``hidden`` lacks the current one.
    """
    weight, _, _, hidden, targets, _, _, out, _, _ = tensors
    padded = (config["CHUNKS"] - 1) * config["BLOCK_H"] + config["LAST"]
    parts = split(hidden, grid[0] * config["BLOCK_K"], padded, first=skipped)
    rows, out_columns = len(weight), len(weight) if skipped else out.shape[1]
    stride = 0 if targets is None else targets.stride(0)
    # The compiler learns of their alignment what it loads targets by.
    unit = math.gcd(16, rows, stride)
    _step_rows_wgmma_kernel[grid](
        *(*tensors[:3], parts, *tensors[4:]),
        *(rows // unit, count, out_columns, stride // unit, out.stride(0)),
        UNIT=unit,
        PADDED=padded,
        SKIPPED=skipped,
        enable_fp_fusion=False,
        **config,
    )
