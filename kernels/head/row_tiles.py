"""Tiles of whole rows of a head, which programs that stay take in turn."""

from __future__ import annotations

import triton
from torch import Tensor

from hypermask_fast.kernels.device import fit, multiprocessors
from hypermask_fast.kernels.tuning import Config, choose

MOST = 15
WIDEST = 256
"""Earlier embeddings and columns that such a pass takes."""


def tiles(rows: int, columns: int, warps: int, programs: int) -> Config:
    """Return a configuration.

    Args:
        rows: Of A, in a tile.
        columns: Of A at a time; so many times them as it takes make a tile's row.
        warps: Of a program.
        programs: For each multiprocessor.
    """
    sizes = {"BLOCK_N": rows, "BLOCK_H": columns, "PROGRAMS": programs}
    return {**sizes, "num_warps": warps}


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
    programs = config.pop("PROGRAMS") * (processors or multiprocessors(weight.device))
    columns = fit(config["BLOCK_H"], width)
    config |= {"WIDTH": width, "BLOCK_H": columns, "CHUNKS": triton.cdiv(width, columns)}
    return (min(programs, triton.cdiv(rows, config["BLOCK_N"])),), config
