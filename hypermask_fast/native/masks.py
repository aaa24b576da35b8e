"""The arguments of a native pass over the masks of a network, and how entries form blocks."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MASK_BINS, MASK_PHASES = 2048, 5
"""Bins of a histogram and phases of a pass in masks.cpp."""

MASK_BLOCK = 16384
"""Entries of a block, at most."""

_POINTERS = (
    *("tensor_start", "tensor_block", "block_tensor", "block_start", "place"),
    *("logits", "previous", "masks", "weights", "products", "candidates", "candidate_count"),
    *("histogram", "bounds", "thresholds", "drift", "product_grads", "weight_grads", "logit_grad"),
)


class MaskPass(ctypes.Structure):
    """The arguments of a pass; mirrors ``Work`` in masks.cpp, where an absent pointer is null."""

    held: object

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tensors", "blocks", "masked_drift")),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("drift_grad", ctypes.c_double),
        *((name, ctypes.c_int64 * MASK_PHASES) for name in ("next", "done")),
    )


class Layout(NamedTuple):
    """How the entries of a network's tensors are cut into blocks of one tensor each."""

    tensor_start: npt.NDArray[np.int64]
    tensor_block: npt.NDArray[np.int64]
    block_tensor: npt.NDArray[np.int64]
    block_start: npt.NDArray[np.int64]


@lru_cache(maxsize=64)
def layout(sizes: tuple[int, ...]) -> Layout:
    """Return the blocks of tensors of these sizes."""
    starts = np.concatenate(([0], np.cumsum(sizes)))
    pieces = [np.arange(a, b, MASK_BLOCK) for a, b in pairwise(starts)]
    counts = [len(piece) for piece in pieces]
    return Layout(
        starts,
        np.concatenate(([0], np.cumsum(counts))),
        np.repeat(np.arange(len(sizes)), counts),
        np.concatenate((*pieces, starts[-1:])),
    )
