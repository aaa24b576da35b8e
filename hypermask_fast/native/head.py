"""The arguments of a native pass over a head, and how its rows are cut into blocks."""

from __future__ import annotations

import ctypes

LANES = 8
"""Partial sums of the regularizer in a block."""

_TILE, _MIN_BLOCK_ROWS, _MAX_BLOCKS = 32, 1024, 128

_SIZES = (
    *("rows", "width", "count", "given", "bfloat16_targets", "looks_ahead"),
    *("block_rows", "blocks", "next"),
)
_POINTERS = (
    *("weight", "bias", "exp_avg", "exp_avg_sq", "bias_exp_avg", "bias_exp_avg_sq"),
    *("hidden", "dz", "targets", "logits", "bias_grad", "hidden_grad", "regularizer"),
    *("places", "limits"),
)
_NUMBERS = (
    *("coefficient", "scale", "decay", "l2", "lerp", "lerp_square", "eps", "step_size"),
    "ahead_eps",
)


class HeadPass(ctypes.Structure):
    """The arguments of a pass; mirrors ``Pass`` in head.cpp, where an absent pointer is null."""

    held: object

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_double) for name in _NUMBERS),
    )


def partition(rows: int) -> tuple[int, int]:
    """Return the rows of a block and the number of blocks; neither depends on the threads."""
    block_rows = max(_MIN_BLOCK_ROWS, -(-rows // (_MAX_BLOCKS * _TILE)) * _TILE)
    return block_rows, -(-rows // block_rows)
