"""Gradients of the weights, biases and mask logits of a masked convolution; see ``masked_conv2d``.

With G = dy^T im2col(x), summed in float32 over the positions of all images, dW = G mask and
dz = G W dmask/dz. N OH OW is long and G small: the sum is formed in S parts, and a second kernel
adds these and writes both gradients. Bytes: |W| (8 S + 2 w + 2 z) + the tiles of dy once for every
BLOCK_M taps and channels of x, and those of x once for every BLOCK_N channels of y, with the sizes
of an element in lower case. For a bias G is the sum of dy over positions, in parts likewise. Bytes:
N O OH OW y. All sums have a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import cast, mask_slope, on_device, semi_binary
from hypermask_fast.kernels.layers.conv2d_geometry import (
    Size2,
    fit,
    float32_products,
    geometry,
    index_type,
    named_sizes,
    pixel,
    positions,
    start,
    tile,
)
from hypermask_fast.kernels.layers.matmul import dot, load_threshold
from hypermask_fast.kernels.layouts import in_channels_last
from hypermask_fast.kernels.tuning import Config, choose

CONFIGS: tuple[Config, ...] = (
    tile(64, 64, 32, 8, 3),
    tile(64, 32, 32, 4, 3),
    tile(64, 32, 64, 8, 3),
)
"""The default first; tiles shrink to the size of a small layer."""

_PROGRAMS = 512
"""What a sum over positions is split for: about four programs for each of 132 multiprocessors."""
_BIAS_CHANNELS, _BIAS_POSITIONS = 16, 256


@triton.jit(do_not_specialize=["images", "length"])
def _masked_conv2d_weight_kernel(
    g_ptr,
    x_ptr,
    parts_ptr,
    images,
    length,
    y_size,
    x_size,
    g_strides,
    x_strides,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    G_CHANNELS_LAST: tl.constexpr,
    X_CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """parts[s, n, m] = sum over ``length`` positions of dy[position, n] x[position at tap, c].

    A tile (BLOCK_M taps and channels of x, BLOCK_N channels of y) of one group, in part s. m is
    (tap, c) in channels_last, else (c, tap). Sizes are (channels of a group, height, width).
    """
    y_channels, y_height, y_width = y_size
    channels, height, width = x_size
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    terms = channels * TAPS
    columns = tl.cdiv(y_channels, BLOCK_N)
    pid = tl.program_id(0)
    part = tl.program_id(1).to(tl.int64)
    group = tl.program_id(2).to(tl.int64)
    m = pid // columns * BLOCK_M + tl.arange(0, BLOCK_M)
    n = pid % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    if X_CHANNELS_LAST:
        c, tap = m % channels, m // channels
    else:
        c, tap = m // TAPS, m % TAPS
    live_m, live_n = m < terms, n < y_channels
    rise, shift = tap // KERNEL[1] * DILATION[0], tap % KERNEL[1] * DILATION[1]
    # Where a vector gets its axis of length one: tiles of x are (K, M) or (M, K), of dy (K, N) or
    # (N, K).
    AT_M: tl.constexpr = 0 if X_CHANNELS_LAST else 1
    AT_N: tl.constexpr = 0 if G_CHANNELS_LAST else 1
    x_ptr += group * channels * x_strides[1]
    g_ptr += group * y_channels * g_strides[1]
    x_m = pixel(rise, shift, x_strides, INDEX) + c.to(INDEX) * x_strides[1]
    x_m = tl.expand_dims(x_m, AT_M)
    g_n = tl.expand_dims(n.to(INDEX) * g_strides[1], AT_N)
    dtype: tl.constexpr = x_ptr.dtype.element_ty

    first_image, first_place = start(part * length, y_height, y_width)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, length, BLOCK_K):
        place = first_place + begin + tl.arange(0, BLOCK_K)
        image, oy, ox = positions(first_image, place, y_height, y_width)
        live_k = image < images
        live = tl.expand_dims(live_k, 1 - AT_N) & tl.expand_dims(live_n, AT_N)
        g_k = pixel(oy, ox, g_strides, INDEX) + image * g_strides[0]
        g = tl.load(g_ptr + (tl.expand_dims(g_k, 1 - AT_N) + g_n), live, 0)
        row0, column0 = oy * STRIDE[0] - PADDING[0], ox * STRIDE[1] - PADDING[1]
        row = tl.expand_dims(row0, 1 - AT_M) + tl.expand_dims(rise, AT_M)
        column = tl.expand_dims(column0, 1 - AT_M) + tl.expand_dims(shift, AT_M)
        live = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        live &= tl.expand_dims(live_k, 1 - AT_M) & tl.expand_dims(live_m, AT_M)
        x_k = pixel(row0, column0, x_strides, INDEX) + image * x_strides[0]
        x = tl.load(x_ptr + (tl.expand_dims(x_k, 1 - AT_M) + x_m), live, 0)
        if X_CHANNELS_LAST:
            x = tl.trans(x)
        if not G_CHANNELS_LAST:
            g = tl.trans(g)
        acc = dot(x, g, acc, dtype, PRECISION)

    rows = (part * tl.num_programs(2) + group) * y_channels + n
    at = rows[:, None] * terms + m
    tl.store(parts_ptr + at, tl.trans(acc), live_n[:, None] & live_m)


@triton.jit(do_not_specialize=["images", "length"])
def _masked_conv2d_bias_kernel(
    g_ptr,
    parts_ptr,
    images,
    length,
    channels,
    height,
    width,
    g_strides,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """parts[s, n] = sum over ``length`` positions of dy[position, n]; BLOCK_N channels, part s."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(1).to(tl.int64)
    live_n = n < channels
    AT_N: tl.constexpr = 0 if CHANNELS_LAST else 1
    g_n = tl.expand_dims(n.to(tl.int64) * g_strides[1], AT_N)
    first_image, first_place = start(part * length, height, width)
    if CHANNELS_LAST:
        acc = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    else:
        acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for begin in range(0, length, BLOCK_K):
        place = first_place + begin + tl.arange(0, BLOCK_K)
        image, oy, ox = positions(first_image, place, height, width)
        live = tl.expand_dims(image < images, 1 - AT_N) & tl.expand_dims(live_n, AT_N)
        g_k = pixel(oy, ox, g_strides, tl.int64) + image * g_strides[0]
        g = tl.load(g_ptr + (tl.expand_dims(g_k, 1 - AT_N) + g_n), live, 0)
        acc += g.to(tl.float32)
    tl.store(parts_ptr + part * channels + n, tl.sum(acc, AT_N), live_n)


@triton.jit(do_not_specialize=["parts"])
def _masked_conv2d_gradients_kernel(
    parts_ptr,
    w_ptr,
    z_ptr,
    q_ptr,
    dw_ptr,
    dz_ptr,
    parts,
    entries,
    channels,
    w_strides,
    z_strides,
    dw_strides,
    dz_strides,
    KERNEL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dW = G mask and dz = G W dmask/dz of BLOCK entries, with G the sum of parts[s, n, m].

    Without logits dW = G. CHANNELS_LAST: the order of m.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = e < entries
    s = tl.arange(0, BLOCK_S)[:, None]
    acc = tl.zeros((BLOCK_S, BLOCK), tl.float32)
    for first in range(0, parts, BLOCK_S):
        at = (first + s).to(tl.int64) * entries + e
        acc += tl.load(parts_ptr + at, (first + s < parts) & live, 0)
    g = tl.sum(acc, 0)
    n, m = e // (channels * TAPS), e % (channels * TAPS)
    if CHANNELS_LAST:
        c, tap = m % channels, m // channels
    else:
        c, tap = m // TAPS, m % TAPS
    ky, kx = tap // KERNEL[1], tap % KERNEL[1]
    if z_ptr is not None:
        w_ptr += n * w_strides[0] + c * w_strides[1] + ky * w_strides[2] + kx * w_strides[3]
        z_ptr += n * z_strides[0] + c * z_strides[1] + ky * z_strides[2] + kx * z_strides[3]
        dz_ptr += n * dz_strides[0] + c * dz_strides[1] + ky * dz_strides[2] + kx * dz_strides[3]
        z = tl.load(z_ptr, live, 0)
        mask = semi_binary(z, load_threshold(q_ptr, 0), q_ptr is not None)
        dz = g * tl.load(w_ptr, live, 0).to(tl.float32) * mask_slope(z, mask)
        tl.store(dz_ptr, cast(dz, dz_ptr.dtype.element_ty), live)
        g *= mask
    dw_ptr += n * dw_strides[0] + c * dw_strides[1] + ky * dw_strides[2] + kx * dw_strides[3]
    tl.store(dw_ptr, cast(g, dw_ptr.dtype.element_ty), live)


def _split(rows: int, tiles: int, block: int) -> tuple[int, int]:
    """Return the length of a part of a sum over positions, and how many parts there are."""
    parts = max(1, min(_PROGRAMS // max(1, tiles), triton.cdiv(rows, 4 * block)))
    length = triton.cdiv(triton.cdiv(rows, parts), block) * block
    return length, triton.cdiv(rows, length) if rows else 0


def _gradients(
    parts: Tensor,
    weight: Tensor,
    logits: Tensor | None,
    threshold: Tensor | None,
    channels_last: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return dW and dz from the parts (S, |W|) of G."""
    weight_grad = torch.empty_like(weight)
    logits_grad = None if logits is None else torch.empty_like(logits)
    if not weight.numel():
        return weight_grad, logits_grad
    block_s = min(16, triton.next_power_of_2(max(1, parts.shape[0])))
    block = 1024 // block_s
    with on_device(weight):
        _masked_conv2d_gradients_kernel[(triton.cdiv(weight.numel(), block),)](
            parts,
            weight,
            logits,
            threshold,
            weight_grad,
            logits_grad,
            *parts.shape,
            weight.shape[1],
            *(
                (0, 0, 0, 0) if t is None else t.stride()
                for t in (weight, logits, weight_grad, logits_grad)
            ),
            KERNEL=tuple(weight.shape[2:]),
            CHANNELS_LAST=channels_last,
            BLOCK_S=block_s,
            BLOCK=block,
        )
    return weight_grad, logits_grad


def masked_conv2d_backward_bias(
    grad: Tensor,
    bias: Tensor,
    bias_logits: Tensor | None = None,
    bias_threshold: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of the bias and of its mask logits.

    Args:
        grad: dy (N, O, OH, OW), any strides.
        bias: (O,).
        bias_logits: (O,), or None where the bias is not masked.
        bias_threshold: 0-d, or None to keep every entry.

    Returns:
        (O,) each, of the dtypes of the bias and of its logits; None for logits that are None.
    """
    images, channels, *area = grad.shape
    columns = triton.cdiv(channels, _BIAS_CHANNELS)
    length, count = _split(images * area[0] * area[1], columns, _BIAS_POSITIONS)
    parts = torch.empty((count, channels), dtype=torch.float32, device=grad.device)
    if parts.numel():
        with on_device(grad):
            _masked_conv2d_bias_kernel[(columns, count)](
                grad,
                parts,
                images,
                length,
                channels,
                *area,
                grad.stride(),
                CHANNELS_LAST=in_channels_last(grad),
                BLOCK_N=_BIAS_CHANNELS,
                BLOCK_K=_BIAS_POSITIONS,
                num_warps=8,
            )
    # A bias is a weight with one entry for each channel.
    b = bias.reshape(-1, 1, 1, 1)
    zb = None if bias_logits is None else bias_logits.reshape(-1, 1, 1, 1)
    bias_grad, logits_grad = _gradients(parts, b, zb, bias_threshold, False)
    return bias_grad.flatten(), None if logits_grad is None else logits_grad.flatten()


def masked_conv2d_backward_weight(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_logits: Tensor,
    weight_threshold: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 | str = 0,
    dilation: Size2 = 1,
    groups: int = 1,
    precision: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weights and of their mask logits.

    Args:
        grad: dy (N, O, OH, OW), any strides, of the dtype of x.
        x, weight, weight_logits, weight_threshold, stride, padding, dilation, groups, precision:
            As in :func:`masked_conv2d.masked_conv2d_forward`.

    Returns:
        (O, C / groups, KH, KW) each, of the dtypes of the weights and of the logits, and with their
        strides where those are dense.
    """
    images, y_channels, *area = grad.shape
    y_channels //= groups
    channels, *kernel = weight.shape[1:]
    taps = kernel[0] * kernel[1]
    rows = images * area[0] * area[1]
    shape = geometry(x.shape, weight.shape, stride, padding, dilation)
    last = in_channels_last(x)
    bits = 8 * x.element_size()
    sizes = named_sizes(rows, channels, y_channels, taps, groups, bits, last)
    config = dict(choose("masked_conv2d_weight", CONFIGS, x.device, **sizes))
    config["BLOCK_M"] = fit(config["BLOCK_M"], channels * taps)
    config["BLOCK_N"] = fit(config["BLOCK_N"], y_channels)
    tiles = triton.cdiv(channels * taps, config["BLOCK_M"])
    tiles *= triton.cdiv(y_channels, config["BLOCK_N"])
    length, count = _split(rows, tiles * groups, config["BLOCK_K"])
    parts = torch.empty((count, weight.numel()), dtype=torch.float32, device=x.device)
    if parts.numel():
        with on_device(x):
            _masked_conv2d_weight_kernel[(tiles, count, groups)](
                grad,
                x,
                parts,
                images,
                length,
                (y_channels, *area),
                (channels, *x.shape[2:]),
                grad.stride(),
                x.stride(),
                **shape.constants,
                G_CHANNELS_LAST=in_channels_last(grad),
                X_CHANNELS_LAST=last,
                INDEX=index_type(shape, (x, grad)),
                PRECISION=float32_products(x.dtype, precision),
                **config,
            )
    weight_grad, logits_grad = _gradients(parts, weight, weight_logits, weight_threshold, last)
    assert logits_grad is not None
    return weight_grad, logits_grad
