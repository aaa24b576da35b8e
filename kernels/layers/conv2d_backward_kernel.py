"""The kernels of the gradients of a masked convolution: sums over positions, and what follows."""

from __future__ import annotations

import triton
import triton.language as tl

from hypermask_fast.kernels.device import cast, mask_slope, semi_binary
from hypermask_fast.kernels.layers.conv2d_geometry import pixel, positions, start
from hypermask_fast.kernels.layers.matmul import dot, load_threshold


@triton.jit(do_not_specialize=["images", "length"])
def masked_conv2d_weight_kernel(
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
def masked_conv2d_bias_kernel(
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
def masked_conv2d_gradients_kernel(
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
