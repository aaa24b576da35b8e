"""Linear layers whose weights are masked in registers: y = x (W mask)^T + b mask_b.

mask = |tanh z| where it is not below the threshold q, for W and z (N, K), x (M, K), y (M, N). No
kernel writes W mask or the mask to memory; each makes it from z while a tile of W is loaded.

* Forward, and backward to x (dx = dy (W mask)), are one kernel: the product of rows with masked
  weights, read along or across. The weights are its first operand, so that 16 rows fill a tensor
  core's instruction. A tile of W and z is read, and its tanh formed, ``ceil(M / BLOCK_M)`` times
  (but for the first from L2: programs that share it run side by side), a tile of x
  ``ceil(N / BLOCK_N)`` times. Bytes: N K (w + z) ceil(M / BLOCK_M) + M K x ceil(N / BLOCK_N) +
  M N y, with the sizes of an element in lower case. For M <= BLOCK_M, W and z are read once. Beyond
  a few tiles of rows tanh takes longer than 16-bit products: there W mask from ``mask_weights`` and
  a plain product may be faster.
* Where few tiles would leave most of a GPU idle, the sum is split, and a small kernel adds the
  parts: see :func:`_splits`. Bytes: 8 M N for each part.
* Backward to W and z, and to b and z_b, are in ``masked_linear_backward``.

All sums have a fixed order. Dtypes: x, y and dy have one of float32, float16, bfloat16; W has the
same, or float32 where x is narrower (autocast: W mask is then rounded to the dtype of x). z has
float32, or another of these. Each gradient has the dtype of its tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import triton
from torch import Tensor

from hypermask_fast.kernels.device import on_device
from hypermask_fast.kernels.layers.linear_kernel import (
    masked_linear_product_kernel,
    masked_linear_sum_kernel,
)
from hypermask_fast.kernels.layers.matmul import aligned, float32_products, product_sizes, rows_of
from hypermask_fast.kernels.tuning import Config, beats_alternative, choose


def _configs(*rows: tuple[int, int, int, int, int]) -> tuple[Config, ...]:
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages")
    return tuple({**dict(zip(names, row, strict=True)), "GROUP": 8, "SPLIT": 0} for row in rows)


CONFIGS: dict[str, tuple[Config, ...]] = {
    "rows16_32bit": _configs(
        (16, 64, 32, 4, 4), (16, 64, 64, 4, 2), (16, 128, 32, 8, 3), (32, 64, 32, 4, 3)
    ),
    "rows16_16bit": _configs(
        (16, 64, 64, 4, 4), (16, 64, 64, 4, 3), (16, 128, 32, 4, 4), (16, 128, 64, 8, 3)
    ),
    "rows128_32bit": _configs(
        (128, 64, 32, 8, 2), (128, 64, 32, 8, 3), (64, 64, 32, 8, 3), (32, 64, 32, 4, 3)
    ),
    "rows128_16bit": _configs(
        (128, 64, 32, 4, 3), (128, 64, 64, 8, 3), (64, 64, 64, 4, 3), (64, 64, 32, 4, 4)
    ),
    "rows_32bit": _configs((128, 64, 32, 8, 3), (128, 64, 32, 8, 2), (64, 128, 32, 8, 3)),
    "rows_16bit": _configs(
        (256, 64, 32, 8, 3), (128, 128, 32, 8, 3), (128, 128, 64, 8, 2), (256, 128, 32, 8, 3)
    ),
}
"""The default first, by rows (up to 16, up to 128, more) and bits of an element of x or of W, the
larger. ``SPLIT`` is the number of parts of the sum, or 0 for :func:`_splits`.
"""
_SUM_BLOCK = 1024


def _class(rows: int, bits: int) -> str:
    return f"rows{16 if rows <= 16 else 128 if rows <= 128 else ''}_{bits}bit"


def _splits(tiles: int, rows: int, depth: int, step: int) -> int:
    """Return into how many parts the sum of a product is split.

    As many as give 256 programs, at most 16; a part has at least four steps, and is at least as
    long as there are rows, so that the parts of y take no more memory than the weights.
    """
    return max(1, min(16, 256 // tiles, depth // max(4 * step, rows)))


def _multiply(
    kernel: str,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    threshold: Tensor | None,
    bias: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    tasks: Tensor | None = None,
) -> Tensor:
    """Launch the product; ``bias`` is b, z_b and its threshold."""
    across = kernel == "masked_linear_input"
    rows = rows_of(x)
    height, depth = rows.shape
    width = weight.shape[1 if across else 0]
    count = logits.shape[0] if logits.dim() == 3 else 1
    each = (count,) if logits.dim() == 3 and tasks is None else ()
    y = x.new_empty((*each, *x.shape[:-1], width))
    if not y.numel():
        return y
    bits = 8 * max(x.element_size(), weight.element_size())
    sizes = product_sizes(height, width, depth, bits)
    alike = height if tasks is None else triton.cdiv(height, count)
    config = dict(choose(kernel, CONFIGS[_class(alike, bits)], x.device, **sizes))
    row_tiles = triton.cdiv(height, config["BLOCK_M"])
    order = starts = None
    if tasks is not None:
        # Each task may end in a part of a tile; how many do, only the device knows.
        row_tiles = min(height, row_tiles + count)
        ranked, order = tasks.sort(stable=True)
        numbers = torch.arange(count + 1, device=tasks.device, dtype=tasks.dtype)
        starts = torch.searchsorted(ranked, numbers, out_int32=True)
    tiles = triton.cdiv(width, config["BLOCK_N"]) * row_tiles * (count if each else 1)
    split = config.pop("SPLIT") or _splits(tiles, height, depth, config["BLOCK_K"])
    out = y if split == 1 else y.new_empty((split, y.numel()), dtype=torch.float32)
    steps = triton.cdiv(triton.cdiv(depth, config["BLOCK_K"]), split)
    (n, align_n), (k, align_k), (a, align_a) = map(aligned, (width, depth, rows.stride(0)))
    # Those of a layer lie apart where they are slices of all logits of each task.
    masks = logits if logits.dim() == 3 else logits.unsqueeze(0)
    masks = masks if masks.select(0, 0).is_contiguous() else masks.contiguous()
    with on_device(x):
        masked_linear_product_kernel[(tiles, split)](
            rows,
            weight.contiguous(),
            masks,
            *(None if t is None else t.contiguous() for t in (threshold, *bias)),
            order,
            starts,
            out,
            height,
            n,
            k,
            count,
            row_tiles,
            steps,
            a,
            masks.stride(0),
            ACROSS=across,
            ALIGN_N=align_n,
            ALIGN_K=align_k,
            ALIGN_A=align_a,
            PRECISION=float32_products(x.dtype),
            BLOCK_T=None if order is None else triton.next_power_of_2(count),
            **config,
        )
        if split > 1:
            size = y.numel()
            grid = (triton.cdiv(size, _SUM_BLOCK),)
            masked_linear_sum_kernel[grid](out, y, size, split, BLOCK=_SUM_BLOCK, num_warps=4)
    return y


def masked_linear_route(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    backward: bool = True,
) -> Literal["fused", "materialised"]:
    """Return which way is faster: these kernels, or W mask from ``mask_weights`` and cuBLAS.

    By the nearest sizes in the table, summed over the passes; "materialised" where one of them was
    not measured on this device.

    Args:
        x_shape, weight_shape: (..., K) and (N, K).
        dtype: Of x.
        device: Where it runs.
        backward: Whether gradients follow. Default True.
    """
    rows, (width, depth), bits = math.prod(x_shape[:-1]), weight_shape, 8 * dtype.itemsize
    along = product_sizes(rows, width, depth, bits)
    passes = {"masked_linear": along}
    if backward:
        across = product_sizes(rows, depth, width, bits)
        passes |= {"masked_linear_input": across, "masked_linear_weight": along}
    return "fused" if beats_alternative(passes, device) else "materialised"


def masked_linear_backward_input(
    grad: Tensor, weight: Tensor, weight_logits: Tensor, weight_threshold: Tensor | None = None
) -> Tensor:
    """Return the gradient of x: dy (W mask).

    Args:
        grad: dy (..., N).
        weight, weight_logits: (N, K).
        weight_threshold: 0-d, or None to keep every entry.

    Returns:
        (..., K), of the dtype of dy.
    """
    return _multiply("masked_linear_input", grad, weight, weight_logits, weight_threshold)


def masked_linear_mixed(
    x: Tensor,
    tasks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_logits: Tensor,
    bias_logits: Tensor | None = None,
    weight_threshold: Tensor | None = None,
    bias_threshold: Tensor | None = None,
) -> Tensor:
    """Return :func:`masked_linear_forward` of each row under the mask of its own task.

    Rows are grouped by task on the device, without a copy to the host, and gathered tile by tile.
    Forward only. The result for a row with a task outside [0, T) is undefined.

    Args:
        x: (M, K).
        tasks: (M,), integers.
        weight: (N, K).
        bias: (N,) or None.
        weight_logits: (T, N, K).
        bias_logits: (T, N), or None to use the bias unmasked.
        weight_threshold, bias_threshold: (T,), or None to keep every entry.

    Returns:
        (M, N), of the dtype of x.
    """
    masked_bias = (bias, bias_logits, bias_threshold)
    return _multiply(
        "masked_linear", x, weight, weight_logits, weight_threshold, masked_bias, tasks
    )


def masked_linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_logits: Tensor,
    bias_logits: Tensor | None = None,
    weight_threshold: Tensor | None = None,
    bias_threshold: Tensor | None = None,
) -> Tensor:
    """Return ``x (W mask)^T + b mask_b``, for one mask, or for T masks of the same weights.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,) or None.
        weight_logits: (N, K), or (T, N, K), which is forward only.
        bias_logits: (N,) or (T, N), or None to use the bias unmasked.
        weight_threshold, bias_threshold: 0-d or (T,), or None to keep every entry.

    Returns:
        (..., N), or (T, ..., N), of the dtype of x.
    """
    masked_bias = (bias, bias_logits, bias_threshold)
    return _multiply("masked_linear", x, weight, weight_logits, weight_threshold, masked_bias)
