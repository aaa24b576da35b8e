"""Masked weights of all tensors of a network, their L1 drift, and the gradients of both.

    m = |tanh z| where it is not below its tensor's threshold, else 0
    forward    product = theta m,     drift = sum |theta - theta'| (m)
    backward   dtheta = g m + d sign(theta - theta') (m)
               dz = (g theta + (d |theta - theta'|)) m'(z),  m'(z) = sign(z) (1 - m^2), 0 where m is

with theta' the previous weights, g the gradient of the product and d that of the drift; what stands
in brackets is there where the drift is masked. z, masks and theta' are (N,), the entries of all T
tensors one after another, theta and its products T tensors. One launch a direction and dtype of
weights, of at most 64 tensors: they come as tuples of pointers, of which a program takes its own.

Bytes an entry, w of them a weight: forward 8 + 2 w, backward 8 + 3 w, with drift 4 more in each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import cast, mask_slope, on_device, only_if, semi_binary, sign
from hypermask_fast.kernels.finite import all_finite, remember
from hypermask_fast.kernels.masks.blocks import this_block
from hypermask_fast.kernels.masks.groups import address, groups_of
from hypermask_fast.kernels.tuning import choose

CONFIGS = (
    {"BLOCK": 1024, "num_warps": 8},
    {"BLOCK": 1024, "num_warps": 4},
    {"BLOCK": 512, "num_warps": 4},
)


@triton.jit
def _at(ptr, first, WIDE: tl.constexpr):
    """The address of a block's first entry; what is WIDE begins at a multiple of 16 bytes."""
    ptr += first
    return tl.multiple_of(ptr, 16) if WIDE else ptr


@triton.jit
def _is_wide(start, count, addresses, BLOCK: tl.constexpr):
    """Whether a block is whole, and begins at a multiple of 16 bytes wherever it is touched.

    Args:
        start, count: Of the block.
        addresses: The bits of all tensors' addresses, or-ed.
    """
    return (count == BLOCK) & (start % 8 == 0) & (addresses % 16 == 0)


@triton.jit
def _bits(ptr):
    return 0 if ptr is None else ptr.to(tl.int64)


@triton.jit
def _loaded(
    weight_ptr,
    z_ptr,
    thresholds_ptr,
    tensor,
    start,
    within,
    offsets,
    valid,
    HAS_THRESHOLDS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A block's logits, masks and weights."""
    threshold = tl.load(thresholds_ptr + tensor) if HAS_THRESHOLDS else 0.0
    z = tl.load(_at(z_ptr, start, WIDE) + offsets, mask=valid, other=0.0)
    weight = tl.load(_at(weight_ptr, within, WIDE) + offsets, mask=valid, other=0.0)
    return z, semi_binary(z, threshold, HAS_THRESHOLDS), weight.to(tl.float32)


@triton.jit
def _forward_block(
    weight_ptr,
    z_ptr,
    thresholds_ptr,
    previous_ptr,
    product,
    masks_ptr,
    drift_ptr,
    tensor,
    start,
    within,
    count,
    HAS_THRESHOLDS: tl.constexpr,
    HAS_DRIFT: tl.constexpr,
    MASKED_DRIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Masks, products and the drift's part of one block (BLOCK,)."""
    offsets = tl.arange(0, BLOCK)
    valid = offsets < count
    _, mask, weight = _loaded(
        *(weight_ptr, z_ptr, thresholds_ptr, tensor, start, within, offsets, valid),
        *(HAS_THRESHOLDS, WIDE),
    )
    tl.store(_at(masks_ptr, start, WIDE) + offsets, mask, mask=valid)
    product_ptr = _at(product.to(weight_ptr.dtype), within, WIDE)
    kept = cast(weight * mask, weight_ptr.dtype.element_ty)
    tl.store(product_ptr + offsets, kept, mask=only_if(valid, product != 0))

    if HAS_DRIFT:
        previous_ptr = _at(previous_ptr, start, WIDE)
        previous = tl.load(previous_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
        away = tl.abs(weight - previous)
        if MASKED_DRIFT:
            away *= mask
        tl.store(drift_ptr + tl.program_id(0), tl.sum(away, 0))


@triton.jit
def _mask_weights_forward_kernel(
    weights,
    like_ptr,
    z_ptr,
    thresholds_ptr,
    previous_ptr,
    products,
    masks_ptr,
    drift_ptr,
    tensor_ptr,
    start_ptr,
    tensor_start_ptr,
    HAS_THRESHOLDS: tl.constexpr,
    HAS_DRIFT: tl.constexpr,
    MASKED_DRIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block (BLOCK,), by loads of 16 bytes where it lies for them."""
    tensor, start, count = this_block(tensor_ptr, start_ptr, tensor_start_ptr, BLOCK)
    within = start - tl.load(tensor_start_ptr + tensor)
    weight_ptr = address(weights, tensor).to(like_ptr.dtype)
    product = address(products, tensor)
    touched = _bits(weight_ptr) | product | _bits(z_ptr) | _bits(masks_ptr) | _bits(previous_ptr)
    common = (weight_ptr, z_ptr, thresholds_ptr, previous_ptr, product, masks_ptr, drift_ptr)
    if _is_wide(start, count, touched, BLOCK):
        _forward_block(
            *common,
            *(tensor, start, within, BLOCK),
            *(HAS_THRESHOLDS, HAS_DRIFT, MASKED_DRIFT, BLOCK, True),
        )
    else:
        _forward_block(
            *common,
            *(tensor, start, within, count),
            *(HAS_THRESHOLDS, HAS_DRIFT, MASKED_DRIFT, BLOCK, False),
        )


@triton.jit
def _backward_block(
    weight_ptr,
    z_ptr,
    thresholds_ptr,
    previous_ptr,
    grad,
    drift_grad_ptr,
    weight_grad,
    logit_grad_ptr,
    finite_ptr,
    tensor,
    start,
    within,
    count,
    HAS_THRESHOLDS: tl.constexpr,
    HAS_DRIFT: tl.constexpr,
    MASKED_DRIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The gradients of one block's weights and logits (BLOCK,); the mask is formed again."""
    offsets = tl.arange(0, BLOCK)
    valid = offsets < count
    z, mask, weight = _loaded(
        *(weight_ptr, z_ptr, thresholds_ptr, tensor, start, within, offsets, valid),
        *(HAS_THRESHOLDS, WIDE),
    )
    grad_ptr = _at(grad.to(weight_ptr.dtype), within, WIDE)
    given = only_if(valid, grad != 0)
    upstream = tl.load(grad_ptr + offsets, mask=given, other=0.0).to(tl.float32)
    of_weight = upstream * mask
    of_mask = upstream * weight

    if HAS_DRIFT:
        drift_grad = tl.load(drift_grad_ptr)
        previous_ptr = _at(previous_ptr, start, WIDE)
        previous = tl.load(previous_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
        away = weight - previous
        along = drift_grad * sign(away)
        if MASKED_DRIFT:
            of_weight += along * mask
            of_mask += drift_grad * tl.abs(away)
        else:
            of_weight += along

    weight_grad_ptr = _at(weight_grad.to(weight_ptr.dtype), within, WIDE)
    tl.store(weight_grad_ptr + offsets, cast(of_weight, weight_ptr.dtype.element_ty), mask=valid)
    logit_grad = of_mask * mask_slope(z, mask)
    tl.store(_at(logit_grad_ptr, start, WIDE) + offsets, logit_grad, mask=valid)
    tl.store(finite_ptr + tl.program_id(0), all_finite(logit_grad, valid))


@triton.jit
def _mask_weights_backward_kernel(
    weights,
    like_ptr,
    z_ptr,
    thresholds_ptr,
    previous_ptr,
    grads,
    drift_grad_ptr,
    weight_grads,
    logit_grad_ptr,
    finite_ptr,
    tensor_ptr,
    start_ptr,
    tensor_start_ptr,
    HAS_THRESHOLDS: tl.constexpr,
    HAS_DRIFT: tl.constexpr,
    MASKED_DRIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block (BLOCK,), by loads of 16 bytes where it lies for them."""
    tensor, start, count = this_block(tensor_ptr, start_ptr, tensor_start_ptr, BLOCK)
    within = start - tl.load(tensor_start_ptr + tensor)
    weight_ptr = address(weights, tensor).to(like_ptr.dtype)
    grad, weight_grad = address(grads, tensor), address(weight_grads, tensor)
    touched = _bits(weight_ptr) | grad | weight_grad | _bits(z_ptr)
    touched |= _bits(logit_grad_ptr) | _bits(previous_ptr)
    common = (weight_ptr, z_ptr, thresholds_ptr, previous_ptr, grad, drift_grad_ptr)
    if _is_wide(start, count, touched, BLOCK):
        _backward_block(
            *common,
            *(weight_grad, logit_grad_ptr, finite_ptr, tensor, start, within, BLOCK),
            *(HAS_THRESHOLDS, HAS_DRIFT, MASKED_DRIFT, BLOCK, True),
        )
    else:
        _backward_block(
            *common,
            *(weight_grad, logit_grad_ptr, finite_ptr, tensor, start, within, count),
            *(HAS_THRESHOLDS, HAS_DRIFT, MASKED_DRIFT, BLOCK, False),
        )


def forward(
    weights: Sequence[Tensor],
    z: Tensor,
    thresholds: Tensor | None,
    masked: Sequence[bool],
    previous: Tensor | None = None,
    masked_drift: bool = True,
) -> tuple[list[Tensor | None], Tensor, Tensor]:
    """Return the masked weights of a network, its masks and its L1 drift.

    Args:
        weights: The T target tensors, float32, float16 or bfloat16, of N entries together.
        z: (N,) float32, the mask logits, in the order of the tensors' entries.
        thresholds: (T,) float32 of :func:`select.thresholds`, minus infinity for a tensor that is
            not masked; None where nothing is removed.
        masked: For each tensor whether there is a product.
        previous: (N,), the weights to measure the drift from, or None.
        masked_drift: Multiply the drift by the masks.

    Returns:
        The products, contiguous, None where a tensor is not masked; the masks (N,) float32, of the
        tensors that are not masked |tanh z|; the drift, 0-d float32, 0 without ``previous``.
    """
    weights, z = [w.contiguous() for w in weights], z.contiguous()
    config = choose("mask_weights_forward", CONFIGS, z.device, entries=z.numel())
    groups = groups_of(weights, config)
    products = [
        torch.empty_like(w) if is_masked else None
        for w, is_masked in zip(weights, masked, strict=True)
    ]
    masks = torch.empty_like(z)
    counts = [group.table.grid[0] if previous is not None else 0 for group in groups]
    drifts = torch.empty(sum(counts), dtype=torch.float32, device=z.device)
    if previous is not None:
        previous = previous.contiguous()
    with on_device(z):
        for group, partial_drifts in zip(groups, drifts.split(counts), strict=True):
            _mask_weights_forward_kernel[group.table.grid](
                *(group.only(weights), weights[group.first], z, thresholds, previous),
                *(group.only(products), masks, partial_drifts, *group.table[:3]),
                HAS_THRESHOLDS=thresholds is not None,
                HAS_DRIFT=previous is not None,
                MASKED_DRIFT=masked_drift,
                **config,
            )
    return products, masks, drifts.sum()


def backward(
    weights: Sequence[Tensor],
    z: Tensor,
    thresholds: Tensor | None,
    grads: Sequence[Tensor | None],
    previous: Tensor | None = None,
    masked_drift: bool = True,
    drift_grad: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of the logits and of the weights.

    Args:
        weights, z, thresholds, previous, masked_drift: As of :func:`forward`.
        grads: The gradient of each product, of its shape and dtype and any strides; None for 0.
        drift_grad: 0-d float32, the gradient of the drift; None for 0.

    Returns:
        dz (N,) float32, of which :mod:`hypermask_fast.kernels.finite` knows whether it is finite,
        and a tensor like each of the weights, contiguous.
    """
    weights, z = [w.contiguous() for w in weights], z.contiguous()
    grads = [None if grad is None else grad.contiguous() for grad in grads]
    config = choose("mask_weights_backward", CONFIGS, z.device, entries=z.numel())
    weight_grads = [torch.empty_like(w) for w in weights]
    logit_grad = torch.empty_like(z)
    has_drift = previous is not None and drift_grad is not None
    if previous is not None:
        previous = previous.contiguous()
    groups = groups_of(weights, config)
    counts = [group.table.grid[0] for group in groups]
    flags = torch.empty(sum(counts), dtype=torch.int32, device=z.device)
    with on_device(z):
        for group, finite in zip(groups, flags.split(counts), strict=True):
            _mask_weights_backward_kernel[group.table.grid](
                *(group.only(weights), weights[group.first], z, thresholds, previous),
                *(group.only(grads), drift_grad, group.only(weight_grads), logit_grad, finite),
                *group.table[:3],
                HAS_THRESHOLDS=thresholds is not None,
                HAS_DRIFT=has_drift,
                MASKED_DRIFT=masked_drift,
                **config,
            )
    remember(logit_grad, flags)
    return logit_grad, weight_grads
