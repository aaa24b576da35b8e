"""Convolutions whose weights are masked in registers: y = conv2d(x, W mask) + b mask_b.

mask = |tanh z| where it is not below the threshold q. W and z are (O, C / groups, KH, KW), x is
(N, C, H, W), y (N, O, OH, OW), each with any strides. No kernel writes W mask, the mask, or patches
of x to memory.

Forward, and backward to x, are one implicit matrix product: rows are the positions of all images,
columns the channels of the result, and the sum runs over the taps and channels of the source. A
tile of W and z is read, and its tanh formed, ``ceil(positions / BLOCK_M)`` times (but for the first
from L2), a pixel of the source up to KH KW times (mostly from L1) for every BLOCK_N channels. Bytes
from memory at least: N C H W x + N O OH OW y + |W| (w + z), with the sizes of an element in lower
case. Backward over a stride multiplies zeros where a tap falls between two positions of y.

Tiles are loaded along what is contiguous: positions in NCHW, channels in channels_last. A sum over
few channels runs over channels and taps in one, so that a first layer of 3 channels fills its
tiles. Depthwise layers are right, but multiply mostly padding.

Dtypes: x, y and dy have one of float32, float16, bfloat16; W has the same, or float32 where x is
narrower (autocast: W mask is then rounded to the dtype of x). z has float32, or another of these.
Backward to W, z, b and z_b: ``masked_conv2d_backward``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
import triton
from torch import Tensor

from hypermask_fast.kernels.device import fit, on_device
from hypermask_fast.kernels.layers.conv2d_geometry import (
    Geometry,
    Size2,
    Strides,
    float32_products,
    geometry,
    index_type,
    named_sizes,
    tile,
)
from hypermask_fast.kernels.layers.conv2d_kernel import masked_conv2d_product_kernel
from hypermask_fast.kernels.layouts import format_of, in_channels_last
from hypermask_fast.kernels.tuning import Config, beats_alternative, choose

Route = Literal["fused", "materialised"]


CONFIGS: tuple[Config, ...] = (
    tile(64, 64, 32, 4, 3),
    tile(64, 32, 32, 4, 3),
    tile(128, 32, 32, 8, 3),
    tile(128, 64, 32, 8, 2),
)
"""The default first; tiles shrink to the size of a small layer."""

_FEW_CHANNELS = 16


def _multiply(
    kernel: str,
    a: Tensor,
    out: Tensor,
    weight: Tensor,
    logits: Tensor,
    threshold: Tensor | None,
    bias: tuple[Tensor | None, Tensor | None, Tensor | None],
    shape: Geometry,
    groups: int,
) -> Tensor:
    """Launch the product that writes ``out``; ``bias`` is b, z_b and its threshold."""
    if not out.numel():
        return out
    backward = kernel == "masked_conv2d_input"
    images, out_channels, *out_area = out.shape
    out_channels //= groups
    channels = a.shape[1] // groups
    taps = weight.shape[2] * weight.shape[3]
    last = in_channels_last(a)
    rows = images * math.prod(out_area)
    bits = 8 * a.element_size()
    sizes = named_sizes(rows, channels, out_channels, taps, groups, bits, last)
    config = dict(choose(kernel, CONFIGS, a.device, **sizes))
    few = channels < _FEW_CHANNELS
    config["BLOCK_N"] = fit(config["BLOCK_N"], out_channels)
    config["BLOCK_K"] = fit(config["BLOCK_K"], channels * taps if few else channels)
    tiles = triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(out_channels, config["BLOCK_N"])

    def grouped(w: Tensor) -> Strides:
        o, c, *tap = w.stride()
        return (o * (w.shape[0] // groups), *((c, o) if backward else (o, c)), *tap)

    with on_device(a):
        masked_conv2d_product_kernel[(tiles, groups)](
            a,
            weight,
            logits,
            threshold,
            *(None if b is None else b.contiguous() for b in bias),
            out,
            images,
            (channels, *a.shape[2:]),
            (out_channels, *out_area),
            a.stride(),
            grouped(weight),
            grouped(logits),
            out.stride(),
            **shape.constants,
            BACKWARD=backward,
            CHANNELS_LAST=last,
            FEW=few,
            INDEX=index_type(shape, (a, out), (weight, logits)),
            PRECISION=float32_products(a.dtype),
            **config,
        )
    return out


@cache
def _route(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    y_area: tuple[int, int],
    groups: int,
    bits: int,
    channels_last: bool,
    device: torch.device,
    backward: bool,
) -> Route:
    images, _, *x_area = x_shape
    out, source, *kernel = weight_shape
    rest = (math.prod(kernel), groups, bits, channels_last)
    y = named_sizes(images * math.prod(y_area), source, out // groups, *rest)
    x = named_sizes(images * math.prod(x_area), out // groups, source, *rest)
    passes = {"masked_conv2d": y}
    if backward:
        passes |= {"masked_conv2d_input": x, "masked_conv2d_weight": y}
    return "fused" if beats_alternative(passes, device) else "materialised"


def masked_conv2d_route(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Size2,
    padding: Size2 | str,
    dilation: Size2,
    groups: int,
    dtype: torch.dtype,
    device: torch.device,
    channels_last: bool = False,
    backward: bool = True,
) -> Route:
    """Return which way is faster: these kernels, or W mask from ``mask_weights`` and cuDNN.

    By the nearest sizes in the table, summed over the passes; "materialised" where one of them was
    not measured on this device.

    Args:
        x_shape, weight_shape, stride, padding, dilation, groups: As in
            :func:`masked_conv2d_forward`.
        dtype: Of x.
        device: Where it runs, with its index.
        channels_last: The memory format of x. Default False.
        backward: Whether gradients follow. Default True.
    """
    shape = geometry(x_shape, weight_shape, stride, padding, dilation)
    area = (shape.height, shape.width)
    shapes = (tuple(x_shape), tuple(weight_shape), area)
    return _route(*shapes, groups, 8 * dtype.itemsize, channels_last, device, backward)


def masked_conv2d_backward_input(
    grad: Tensor,
    weight: Tensor,
    weight_logits: Tensor,
    weight_threshold: Tensor | None,
    x_shape: Sequence[int],
    stride: Size2 = 1,
    padding: Size2 | str = 0,
    dilation: Size2 = 1,
    groups: int = 1,
    channels_last: bool = False,
) -> Tensor:
    """Return the gradient of x, of shape ``x_shape`` and of the dtype of dy.

    Args:
        grad: dy (N, O, OH, OW), any strides.
        x_shape: (N, C, H, W).
        channels_last: The memory format of the result. Default False.
        weight, weight_logits, weight_threshold, stride, padding, dilation, groups: As
            in :func:`masked_conv2d_forward`.
    """
    shape = geometry(x_shape, weight.shape, stride, padding, dilation)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dx = torch.empty(tuple(x_shape), dtype=grad.dtype, device=grad.device, memory_format=layout)
    masked_weight = (weight, weight_logits, weight_threshold)
    unbiased = (None, None, None)
    return _multiply("masked_conv2d_input", grad, dx, *masked_weight, unbiased, shape, groups)


def masked_conv2d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_logits: Tensor,
    bias_logits: Tensor | None = None,
    weight_threshold: Tensor | None = None,
    bias_threshold: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 | str = 0,
    dilation: Size2 = 1,
    groups: int = 1,
) -> Tensor:
    """Return the convolution of x with ``W mask``, plus ``b mask_b``.

    Args:
        x: (N, C, H, W), any strides.
        weight, weight_logits: (O, C / groups, KH, KW), any strides.
        bias: (O,) or None.
        bias_logits: (O,), or None to use the bias unmasked.
        weight_threshold, bias_threshold: 0-d, or None to keep every entry.
        stride, padding, dilation, groups: As in ``torch.nn.functional.conv2d``.

    Returns:
        (N, O, OH, OW), of the dtype of x, in channels_last where x is.
    """
    shape = geometry(x.shape, weight.shape, stride, padding, dilation)
    size = (x.shape[0], weight.shape[0], shape.height, shape.width)
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=format_of(x))
    masked_weight = (weight, weight_logits, weight_threshold)
    masked_bias = (bias, bias_logits, bias_threshold)
    return _multiply("masked_conv2d", x, y, *masked_weight, masked_bias, shape, groups)
