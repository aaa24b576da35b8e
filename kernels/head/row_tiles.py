"""Tiles of whole rows of a head, which programs that stay take in turn."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from hypermask_fast.kernels.device import INTERPRET, cached, fit, multiprocessors, prefetch
from hypermask_fast.kernels.head.update import adam_from, load_moments
from hypermask_fast.kernels.tuning import Config, choose

MOST = 15
WIDEST = 256
"""Earlier embeddings and columns that such a pass takes."""


_REGISTERS = 65536
_MOST_REGISTERS = 255
"""Of a multiprocessor, and of a thread."""
_CHUNKS = 4
"""As many fit the registers that ``PROGRAMS`` leave a thread."""


@triton.jit
def _prefetch_run(ptr, first, end, SIZE: tl.constexpr):
    """SIZE elements from ``first`` on, none from ``end`` on; an address for each 32 bytes."""
    EACH: tl.constexpr = 256 // ptr.dtype.element_ty.primitive_bitwidth
    at = EACH * tl.arange(0, triton.next_power_of_2(triton.cdiv(SIZE, EACH)))
    prefetch(ptr + first + at, at < tl.minimum(SIZE, end - first))


@triton.jit
def prefetch_weight(weight_ptr, bias_ptr, start, rows, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr):
    """Prefetch a tile of A and b, or of their moments."""
    if not INTERPRET:
        end = rows.to(tl.int64) * WIDTH
        _prefetch_run(weight_ptr, start * WIDTH, end, BLOCK_N * WIDTH)
        _prefetch_run(bias_ptr, start, rows, BLOCK_N)


@triton.jit
def prefetch_factors(
    dz_ptr, targets_ptr, start, rows, earlier, targets_stride, BLOCK_N: tl.constexpr
):
    """Prefetch a tile of dz_0, and of up to 16 targets."""
    if not INTERPRET:
        _prefetch_run(dz_ptr, start, rows, BLOCK_N)
        EACH: tl.constexpr = 256 // targets_ptr.dtype.element_ty.primitive_bitwidth
        at = EACH * tl.arange(0, triton.cdiv(BLOCK_N, EACH))
        line = tl.arange(0, 16)
        mask = (line < earlier)[:, None] & (at < rows - start)[None, :]
        lines = targets_ptr + start + line.to(tl.int64)[:, None] * targets_stride
        prefetch(lines + at[None, :], mask)


@triton.jit
def _inside(valid, WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, chunk: tl.constexpr):
    """Which elements of a chunk of columns are A's."""
    return valid[:, None] & (tl.arange(0, BLOCK_H) < WIDTH - chunk * BLOCK_H)[None, :]


@triton.jit
def first_moments(
    exp_avg_ptr, exp_avg_sq_ptr, offsets, valid, WIDTH: tl.constexpr, CHUNKS: tl.constexpr
):
    """The moments of a tile's first chunks, for :func:`adam_tile`."""
    BLOCK_H: tl.constexpr = offsets.shape[1]
    moments = ()
    for chunk in tl.static_range(CHUNKS):
        mask = _inside(valid, WIDTH, BLOCK_H, chunk)
        at = offsets + chunk * BLOCK_H
        moments += (load_moments(exp_avg_ptr, exp_avg_sq_ptr, at, mask),)
    return moments


@triton.jit
def adam_tile(
    weight_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    offsets,
    valid,
    grad,
    moments,
    scalars,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Adam on a tile, chunk after chunk; moments are loaded as far ahead as the first are."""
    BLOCK_H: tl.constexpr = offsets.shape[1]
    AHEAD: tl.constexpr = len(moments)
    for chunk in tl.static_range(CHUNKS):
        if chunk + AHEAD < CHUNKS:
            mask = _inside(valid, WIDTH, BLOCK_H, chunk + AHEAD)
            at = offsets + (chunk + AHEAD) * BLOCK_H
            moments += (load_moments(exp_avg_ptr, exp_avg_sq_ptr, at, mask),)
        mask = _inside(valid, WIDTH, BLOCK_H, chunk)
        at = offsets + chunk * BLOCK_H
        adam_from(
            *(weight_ptr, exp_avg_ptr, exp_avg_sq_ptr, at, cached(weight_ptr + at, mask)),
            *(moments[chunk], grad[chunk], mask, scalars),
        )


def tiles(rows: int, columns: int, warps: int, programs: int, ahead: int) -> Config:
    """Return a configuration.

    Args:
        rows: Of A, in a tile.
        columns: Of A at a time; so many times them as it takes make a tile's row.
        warps: Of a program.
        programs: For each multiprocessor, half as many of wide rows; their registers fit it.
        ahead: Chunks of columns whose moments are loaded before they are used.
    """
    sizes = {"BLOCK_N": rows, "BLOCK_H": columns, "PROGRAMS": programs, "AHEAD": ahead}
    return {**sizes, "num_warps": warps}


def limits(programs: int, warps: int) -> dict[str, int]:
    """Return what has the compiler leave registers for so many programs on a multiprocessor."""
    if INTERPRET.value or driver.active.get_current_target().backend != "cuda":
        return {}
    registers = _REGISTERS // (programs * warps * 32)
    return {"maxnreg": min(_MOST_REGISTERS, registers // 8 * 8)}


def plan(
    operation: str,
    configs: tuple[Config, ...],
    weight: Tensor,
    earlier: int,
    processors: int | None,
) -> tuple[tuple[int], dict[str, int]]:
    """Return the grid and the kernel's constants of a pass over A (N, H).

    Args:
        operation: That was tuned.
        configs: Of :func:`tiles`, the default first.
        weight: A.
        earlier: Embeddings.
        processors: Multiprocessors to fill. Default: those of the device.
    """
    rows, width = weight.shape
    config = dict(choose(operation, configs, weight.device, rows=rows, width=width, count=earlier))
    columns = fit(config["BLOCK_H"], width)
    config |= {"WIDTH": width, "BLOCK_H": columns, "CHUNKS": triton.cdiv(width, columns)}
    config["AHEAD"] = min(config["AHEAD"], config["CHUNKS"])
    programs = config.pop("PROGRAMS")
    if config["CHUNKS"] > _CHUNKS:
        programs = max(1, programs // 2)
    config |= limits(programs, config["num_warps"])
    programs *= processors or multiprocessors(weight.device)
    return (min(programs, triton.cdiv(rows, config["BLOCK_N"])),), config
