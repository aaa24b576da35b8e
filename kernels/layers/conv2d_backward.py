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
from torch import Tensor

from hypermask_fast.kernels.device import fit, on_device
from hypermask_fast.kernels.layers.conv2d_backward_kernel import (
    masked_conv2d_bias_kernel,
    masked_conv2d_gradients_kernel,
    masked_conv2d_weight_kernel,
)
from hypermask_fast.kernels.layers.conv2d_geometry import (
    Size2,
    float32_products,
    geometry,
    index_type,
    named_sizes,
    tile,
)
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
        masked_conv2d_gradients_kernel[(triton.cdiv(weight.numel(), block),)](
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
            masked_conv2d_bias_kernel[(columns, count)](
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
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weights and of their mask logits.

    Args:
        grad: dy (N, O, OH, OW), any strides, of the dtype of x.
        x, weight, weight_logits, weight_threshold, stride, padding, dilation, groups:
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
            masked_conv2d_weight_kernel[(tiles, count, groups)](
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
                PRECISION=float32_products(x.dtype),
                **config,
            )
    weight_grad, logits_grad = _gradients(parts, weight, weight_logits, weight_threshold, last)
    assert logits_grad is not None
    return weight_grad, logits_grad
