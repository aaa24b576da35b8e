"""Calls of native passes: their arguments as addresses and numbers, run on all threads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypermask_fast.modes import is_plain
from hypermask_fast.native import library, threads
from hypermask_fast.native.head import HeadPass
from hypermask_fast.native.masks import MaskPass
from hypermask_fast.native.packed import PackedPass
from hypermask_fast.native.top_k import TopKPass

Pass = HeadPass | MaskPass | TopKPass | PackedPass


def is_readable(tensor: Tensor) -> bool:
    """Return whether a tensor is contiguous memory on the CPU that native code can use."""
    return tensor.is_cpu and is_plain(tensor) and tensor.is_contiguous() and not tensor.is_neg()


def _address(tensor: Tensor) -> int:
    """Return where the numbers of a tensor begin; 0 where it has none.

    Raises:
        RuntimeError: It has entries and no memory, such as a FakeTensor, or is elsewhere.
    """
    address = tensor.data_ptr() if is_readable(tensor) else 0
    if not address and tensor.numel():
        raise RuntimeError(
            f"a native pass was given a {type(tensor).__name__} of shape {tuple(tensor.shape)} on "
            f"{tensor.device}, which is not contiguous memory of the CPU; use "
            "backend('reference') for such tensors"
        )
    return address


def pointers(tensors: Sequence[Tensor | None]) -> Any:
    """Return an array of addresses, null for None."""
    values = (None if tensor is None else _address(tensor) for tensor in tensors)
    return (ctypes.c_void_p * len(tensors))(*values)


def _field(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _address(value)
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
