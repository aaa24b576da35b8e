"""What kernels that multiply matrices share: products of a named precision, tiles, alignment."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.target_info import is_hip

from hypermask_fast.kernels.device import INTERPRET, cast

PRECISIONS = {"highest": "tf32x3", "high": "tf32", "medium": "bf16"}
"""What float32 products are made of, by the names of ``torch.set_float32_matmul_precision``.

Three tf32 products (nearly as exact as float32), one, or one of bfloat16. On AMD GPUs the first two
are float32 products ("ieee").
"""


@triton.jit
def _nearest_tf32(x):
    """Float32 rounded as cuBLAS and cuDNN do; a tensor core by itself cuts bits off."""
    return tl.inline_asm_elementwise(
        "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def dot(a, b, acc, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a b, rounded to ``dtype`` first (float32 as in ``PRECISIONS``)."""
    rounded: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    if INTERPRET:
        # It would multiply the bit patterns of bfloat16.
        a = cast(a.to(tl.float32), rounded).to(tl.float32)
        b = cast(b.to(tl.float32), rounded).to(tl.float32)
        return tl.dot(a, b, acc)
    elif rounded != tl.float32:
        return tl.dot(a.to(rounded), b.to(rounded), acc)
    elif is_hip():
        return tl.dot(a, b, acc, input_precision="ieee")
    elif PRECISION == "tf32":
        return tl.dot(_nearest_tf32(a), _nearest_tf32(b), acc, input_precision="tf32")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def swizzle(pid, rows, columns, GROUP: tl.constexpr):
    """Number the tiles of a grid (rows, columns) column by column, GROUP rows at a time."""
    first = pid // (GROUP * columns) * GROUP
    height = tl.minimum(rows - first, GROUP)
    within = pid % (GROUP * columns)
    return first + within % height, within // height


@triton.jit
def load_threshold(q_ptr, task):
    """The threshold of a task in float32; 0 where there is none."""
    if q_ptr is not None:
        return tl.load(q_ptr + task).to(tl.float32)
    else:
        return 0.0


class _Products(threading.local):
    name: str | None = None


_chosen = _Products()


@contextmanager
def products_as(name: str) -> Iterator[None]:
    """Make float32 products of this thread's launches in a ``with`` block, however torch is set.

    Args:
        name: One of the values of ``PRECISIONS``.
    """
    before, _chosen.name = _chosen.name, name
    try:
        yield
    finally:
        _chosen.name = before


def chosen_products(dtype: torch.dtype) -> str | None:
    """Return the ``PRECISION`` of :func:`dot` for tensors of this dtype; None as torch is set."""
    if dtype != torch.float32:
        return "tf32"  # Of no effect: a constant, so that nothing compiles twice.
    return _chosen.name


def float32_products(dtype: torch.dtype) -> str:
    """Return the ``PRECISION`` of :func:`dot` for tensors of this dtype, as torch is set to."""
    chosen = chosen_products(dtype)
    if chosen is not None:
        return chosen
    if torch.backends.cuda.matmul.fp32_precision != "tf32":
        return PRECISIONS["highest"]
    try:
        return PRECISIONS[torch.get_float32_matmul_precision()]
    except RuntimeError:
        # Torch refuses to name by the older setting what was set by the newer alone.
        return PRECISIONS["high"]


def aligned(size: int) -> tuple[int, int]:
    """Return a size as a multiple and a power of two up to 16, which a kernel has as a constant.

    Triton itself knows no more than whether an argument is a multiple of 16; rows of 1000 elements
    would be loaded one by one.
    """
    power = math.gcd(size, 16)
    return size // power, power


def product_sizes(rows: int, width: int, depth: int, bits: int) -> dict[str, int]:
    """Name what a configuration is chosen by: a result (rows, width), a sum over ``depth`` terms.

    ``masked_linear_weight`` has the sizes of its layer: rows of x, outputs and inputs.
    """
    return {"rows": rows, "width": width, "depth": depth, "bits": bits}


def rows_of(tensor: Tensor) -> Tensor:
    """Return (..., n) as (M, n): a copy unless elements are side by side and rows are near."""
    rows = tensor.flatten(0, -2) if tensor.dim() > 1 else tensor.unsqueeze(0)
    # The offset of a row within a tile has 32 bits, and a tile has at most 256 rows.
    near = rows.shape[0] == 1 or rows.stride(0) < 2**23
    return rows if near and (rows.stride(1) == 1 or rows.shape[1] == 1) else rows.contiguous()
