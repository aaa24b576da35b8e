"""The kernel of ``masked_conv2d``: an implicit product of gathered pixels with masked weights."""

from __future__ import annotations

import triton
import triton.language as tl

from hypermask_fast.kernels.device import cast, semi_binary
from hypermask_fast.kernels.layers.conv2d_geometry import pixel, positions, start
from hypermask_fast.kernels.layers.matmul import dot, load_threshold


@triton.jit(do_not_specialize=["images"])
def masked_conv2d_product_kernel(
    a_ptr,
    w_ptr,
    z_ptr,
    q_ptr,
    b_ptr,
    zb_ptr,
    qb_ptr,
    out_ptr,
    images,
    a_size,
    out_size,
    a_strides,
    w_strides,
    z_strides,
    out_strides,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    BACKWARD: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FEW: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[m, n] = sum over taps and channels c of a[m at the tap, c] W[n, c, tap] mask + b mask_b.

    A tile (BLOCK_M positions, BLOCK_N channels) of one group. Sizes are (channels of a group,
    height, width), strides of W and z (group, n, c, row, column). BACKWARD: from y to x.
    """
    channels, height, width = a_size
    out_channels, out_height, out_width = out_size
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    columns = tl.cdiv(out_channels, BLOCK_N)
    pid = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    image, place = start((pid // columns).to(tl.int64) * BLOCK_M, out_height, out_width)
    image, oy, ox = positions(image, place + tl.arange(0, BLOCK_M), out_height, out_width)
    n = pid % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    live_n = n < out_channels
    live_m = image < images

    # A tap is at row0 + rise: going back over a stride is exact where the remainders agree.
    if BACKWARD:
        row0, column0 = (oy + PADDING[0]) // STRIDE[0], (ox + PADDING[1]) // STRIDE[1]
    else:
        row0, column0 = oy * STRIDE[0] - PADDING[0], ox * STRIDE[1] - PADDING[1]
    a_m = pixel(row0, column0, a_strides, INDEX) + image * a_strides[0]
    a_ptr += group * channels * a_strides[1]
    w_ptr += group * w_strides[0]
    z_ptr += group * z_strides[0]
    w_n = n.to(INDEX) * w_strides[1]
    z_n = n.to(INDEX) * z_strides[1]
    # Where a vector gets its axis of length one: tiles of a are (M, K) or (K, M), of W (K, N) or
    # (N, K).
    AT_M: tl.constexpr = 1 if CHANNELS_LAST else 0
    AT_N: tl.constexpr = 0 if BACKWARD else 1
    q = load_threshold(q_ptr, 0)
    dtype: tl.constexpr = a_ptr.dtype.element_ty

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    steps = tl.cdiv(channels * TAPS, BLOCK_K) if FEW else tl.cdiv(channels, BLOCK_K) * TAPS
    for step in range(steps):
        k = tl.arange(0, BLOCK_K)
        if FEW:
            k += step * BLOCK_K
            c, tap = k // TAPS, k % TAPS
        else:
            c, tap = step // TAPS * BLOCK_K + k, step % TAPS + 0 * k
        live_k = c < channels
        c = c.to(INDEX)
        ky, kx = tap // KERNEL[1], tap % KERNEL[1]
        if BACKWARD:
            rise, shift = -(ky * DILATION[0] // STRIDE[0]), -(kx * DILATION[1] // STRIDE[1])
        else:
            rise, shift = ky * DILATION[0], kx * DILATION[1]
        row = tl.expand_dims(row0, AT_M) + tl.expand_dims(rise, 1 - AT_M)
        column = tl.expand_dims(column0, AT_M) + tl.expand_dims(shift, 1 - AT_M)
        live = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        live &= tl.expand_dims(live_m, AT_M) & tl.expand_dims(live_k, 1 - AT_M)
        if BACKWARD and STRIDE[0] > 1:
            left = tl.expand_dims((oy + PADDING[0]) % STRIDE[0], AT_M)
            live &= left == tl.expand_dims(ky * DILATION[0] % STRIDE[0], 1 - AT_M)
        if BACKWARD and STRIDE[1] > 1:
            left = tl.expand_dims((ox + PADDING[1]) % STRIDE[1], AT_M)
            live &= left == tl.expand_dims(kx * DILATION[1] % STRIDE[1], 1 - AT_M)
        a_k = pixel(rise, shift, a_strides, INDEX) + c * a_strides[1]
        a = tl.load(a_ptr + (tl.expand_dims(a_m, AT_M) + tl.expand_dims(a_k, 1 - AT_M)), live, 0)

        w_k = c * w_strides[2] + ky * w_strides[3] + kx * w_strides[4]
        z_k = c * z_strides[2] + ky * z_strides[3] + kx * z_strides[4]
        live = tl.expand_dims(live_n, AT_N) & tl.expand_dims(live_k, 1 - AT_N)
        w = tl.load(w_ptr + (tl.expand_dims(w_n, AT_N) + tl.expand_dims(w_k, 1 - AT_N)), live, 0)
        z = tl.load(z_ptr + (tl.expand_dims(z_n, AT_N) + tl.expand_dims(z_k, 1 - AT_N)), live, 0)
        w = w.to(tl.float32) * semi_binary(z, q, q_ptr is not None)
        if not CHANNELS_LAST:
            a = tl.trans(a)
        if not BACKWARD:
            w = tl.trans(w)
        acc = dot(a, w, acc, dtype, PRECISION)

    channel = group * out_channels + n
    if b_ptr is not None:
        b = tl.load(b_ptr + channel, live_n, 0).to(tl.float32)
        if zb_ptr is not None:
            zb = tl.load(zb_ptr + channel, live_n, 0)
            b *= semi_binary(zb, load_threshold(qb_ptr, 0), qb_ptr is not None)
        acc += b[None, :]
    out_m = tl.expand_dims(pixel(oy, ox, out_strides, INDEX) + image * out_strides[0], AT_M)
    live = tl.expand_dims(live_m, AT_M) & tl.expand_dims(live_n, 1 - AT_M)
    if not CHANNELS_LAST:
        acc = tl.trans(acc)
    out_ptr += out_m + tl.expand_dims(channel * out_strides[1], 1 - AT_M)
    tl.store(out_ptr, cast(acc, out_ptr.dtype.element_ty), live)
