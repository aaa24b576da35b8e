"""What the kernels of convolutions share: geometry, positions counted over images, layouts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.layers.matmul import chosen_products
from hypermask_fast.kernels.tuning import Config

Size2 = int | Sequence[int]
Strides = tuple[int, ...]

PRECISIONS = {"ieee": "tf32x3", "tf32": "tf32"}
"""What float32 products are made of, by ``torch.backends.cudnn.conv.fp32_precision``.

Three tf32 products (nearly as exact as float32), or one, as cuDNN does unless told otherwise. On
AMD GPUs both are float32 products.
"""


class Geometry(NamedTuple):
    """The constants of kernels that gather, two numbers each, and the size of y."""

    constants: dict[str, tuple[int, int]]
    height: int
    width: int


@triton.jit
def start(first, height, width):
    """The image (int64) of a position counted over all images, and its place in that image."""
    area = height * width
    return first // area, (first % area).to(tl.int32)


@triton.jit
def positions(image, place, height, width):
    """The image (int64), row and column of places counted from the first of ``image``."""
    area = height * width
    return image + place // area, (place % area) // width, place % width


@triton.jit
def pixel(row, column, strides, INDEX: tl.constexpr):
    """The offset of a pixel in the first channel of its image."""
    return row.to(INDEX) * strides[2] + column.to(INDEX) * strides[3]


def pair(value: Size2) -> tuple[int, int]:
    """Return a size as (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


@cache
def _geometry(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
) -> Geometry:
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if padding == "same":
        # Where the sum is odd the end gets the rest, as in torch.
        before, both = (reach[0] // 2, reach[1] // 2), reach
    else:
        before = (0, 0) if isinstance(padding, str) else padding
        both = [2 * p for p in before]
    height, width = (
        (n + p - r - 1) // s + 1 for n, p, r, s in zip(size, both, reach, stride, strict=True)
    )
    constants = {"KERNEL": kernel, "STRIDE": stride, "PADDING": before, "DILATION": dilation}
    return Geometry(constants, height, width)


def geometry(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Size2,
    padding: Size2 | str,
    dilation: Size2,
) -> Geometry:
    """Return the geometry of a convolution; arguments as in ``torch.nn.functional.conv2d``."""
    padding = padding if isinstance(padding, str) else pair(padding)
    size, kernel = pair(x_shape[2:]), pair(weight_shape[2:])
    return _geometry(size, kernel, pair(stride), padding, pair(dilation))


def float32_products(dtype: torch.dtype) -> str:
    """Return what products of this dtype are made of: as cuDNN's would be."""
    chosen = chosen_products(dtype)
    if chosen is not None:
        return chosen
    # The one reading that is right whether allow_tf32 was set or its successor.
    return PRECISIONS.get(torch.backends.cudnn.conv.fp32_precision, "tf32x3")


def _reach(tensor: Tensor, first: int, beyond: tuple[int, int]) -> int:
    axes = zip(tensor.shape[first:], tensor.stride()[first:], strict=True)
    taps = beyond[0] * tensor.stride(2) + beyond[1] * tensor.stride(3)
    return sum((size - 1) * stride for size, stride in axes) + taps


def index_type(
    geometry: Geometry, images: Sequence[Tensor], weights: Sequence[Tensor] = ()
) -> tl.dtype:
    """Return what counts the offsets within an image of (N, C, H, W), and within weights."""
    (kh, kw), (dh, dw) = geometry.constants["KERNEL"], geometry.constants["DILATION"]
    beyond = (dh * (kh - 1), dw * (kw - 1))
    reach = [_reach(x, 1, beyond) for x in images] + [_reach(w, 0, (0, 0)) for w in weights]
    return tl.int64 if max(reach) >= 2**31 else tl.int32


def tile(m: int, n: int, k: int, warps: int, stages: int) -> Config:
    """Return a configuration by its sizes."""
    blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}
    return {**blocks, "num_warps": warps, "num_stages": stages}


def named_sizes(
    positions: int, source: int, out: int, taps: int, groups: int, bits: int, channels_last: bool
) -> dict[str, int]:
    """Name what a configuration is chosen by; channels are those of a group, layout 1 is NCHW."""
    sizes = {"positions": positions, "source": source, "out": out, "taps": taps}
    return {**sizes, "groups": groups, "bits": bits, "layout": 1 + channels_last}
