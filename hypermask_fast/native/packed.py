"""The arguments of a native pass over masks of one bit an entry."""

from __future__ import annotations

import ctypes

PACKED_BLOCK = 8192
"""Entries of a block, a multiple of 8."""


class PackedPass(ctypes.Structure):
    """The arguments of a pass; mirrors ``Work`` in packed.cpp, where an absent pointer is null."""

    held: object

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("blocks", "entries", "block_entries", "rows")),
        *((name, ctypes.c_void_p) for name in ("bits", "factors", "values", "sum", "products")),
        *((name, ctypes.c_int64 * 1) for name in ("next", "done")),
    )
