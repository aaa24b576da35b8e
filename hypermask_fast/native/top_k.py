"""The arguments of a native pass over the scores of a network."""

from __future__ import annotations

import ctypes

TOP_K_BINS, TOP_K_PHASES = 2048, 5
"""Bins of a histogram and phases of a pass in top_k.cpp."""

_POINTERS = (
    *("tensor_start", "tensor_block", "block_tensor", "block_start", "dropped", "scores"),
    *("weights", "products", "kept", "candidates", "candidate_count", "histogram", "bounds"),
    *("thresholds", "first_kept", "product_grads", "score_grad"),
)


class TopKPass(ctypes.Structure):
    """The arguments of a pass; mirrors ``Work`` in top_k.cpp, where an absent pointer is null."""

    held: object

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tensors", "blocks", "by_magnitude")),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64 * TOP_K_PHASES) for name in ("next", "done")),
    )
