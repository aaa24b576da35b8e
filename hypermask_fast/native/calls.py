"""Calls of native passes: their arguments as addresses and numbers, run on all threads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypermask_fast.native import library, threads
from hypermask_fast.native.head import HeadPass
from hypermask_fast.native.masks import MaskPass
from hypermask_fast.native.packed import PackedPass
from hypermask_fast.native.top_k import TopKPass

Pass = HeadPass | MaskPass | TopKPass | PackedPass


def pointers(tensors: Sequence[Tensor | None]) -> Any:
    """Return an array of addresses, null for None."""
    values = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    return (ctypes.c_void_p * len(tensors))(*values)


def _field(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, np.ndarray):
        return value.ctypes.data
    return ctypes.addressof(value) if isinstance(value, ctypes.Array) else value


def call(name: str, dtype: torch.dtype, work: Pass, **fields: Any) -> None:
    """Run a pass of the library, which :func:`hypermask_fast.native.library.load` must have loaded.

    Args:
        name: Of the pass, with ``{}`` where its dtype stands.
        dtype: torch.float32 or torch.float64.
        work: Its arguments; the sizes are set.
        **fields: The other arguments: tensors and arrays, contiguous; numbers; None for null.
    """
    # The pass holds them, for a thread that outlives an interrupted caller.
    work.held = fields
    for key, value in fields.items():
        setattr(work, key, _field(value))
    function = getattr(library.load(), name.format(str(dtype).removeprefix("torch.")))
    threads.run(function, work)
