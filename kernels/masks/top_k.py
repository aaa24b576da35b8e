"""Weights under binary masks that scores make, their gradients, and masks packed to bits.

    forward    product = theta where |s| is not among its tensor's lowest, or where s >= 0; else 0
    backward   ds = g theta (sign(s)),   straight through the mask; sign with magnitudes only

with g the gradient of a product. Of the entries equal to the lowest magnitude that is kept those of
the lowest indices are dropped, so where there are some, a pass counts the equal ones of each block
before. s is (N,), the entries of all T tensors one after another, theta and products T tensors.

Bytes an entry, w of them a weight: the selection's passes, forward 4 + 2 w (4 more where equal
entries are told apart), backward 8 + 2 w; packing 1 + 1/8.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import on_device, only_if, sign
from hypermask_fast.kernels.masks.blocks import this_block
from hypermask_fast.kernels.masks.groups import address, groups_of
from hypermask_fast.kernels.masks.select import magnitude_bits, order_statistics
from hypermask_fast.kernels.tuning import choose

CONFIGS = (
    {"BLOCK": 2048, "num_warps": 8},
    {"BLOCK": 1024, "num_warps": 4},
    {"BLOCK": 1024, "num_warps": 8},
    {"BLOCK": 4096, "num_warps": 8},
)
PACK_CONFIGS = ({"BLOCK": 512, "num_warps": 4}, {"BLOCK": 1024, "num_warps": 8})

_NOTHING = tl.constexpr(0x7FFFFFFF)
"""Above the bits of every magnitude."""


@triton.jit
def _lowest_kept(found_ptr, dropped_ptr, tensor_start_ptr, tensor):
    """The bits of a tensor's lowest magnitude that is kept, and how many equal ones are dropped."""
    entries = tl.load(tensor_start_ptr + tensor + 1) - tl.load(tensor_start_ptr + tensor)
    drops_all = tl.load(dropped_ptr + tensor) >= entries
    bits = tl.load(found_ptr + 2 * tensor)
    return tl.where(drops_all, _NOTHING, bits), tl.load(found_ptr + 2 * tensor + 1)


@triton.jit
def _top_k_equal_kernel(
    scores_ptr,
    found_ptr,
    dropped_ptr,
    equal_ptr,
    tensor_ptr,
    start_ptr,
    tensor_start_ptr,
    BLOCK: tl.constexpr,
):
    """Count the entries of a block (BLOCK,) that are equal to the lowest kept; 0 where all stay."""
    tensor, start, count = this_block(tensor_ptr, start_ptr, tensor_start_ptr, BLOCK)
    lowest, skipped = _lowest_kept(found_ptr, dropped_ptr, tensor_start_ptr, tensor)
    equal = 0
    if skipped > 0:
        offsets = tl.arange(0, BLOCK)
        valid = offsets < count
        scores = tl.load(scores_ptr + start + offsets, mask=valid, other=0.0)
        equal = tl.sum((valid & (magnitude_bits(scores) == lowest)).to(tl.int32), 0)
    tl.store(equal_ptr + tl.program_id(0), equal)


@triton.jit
def _sum_before(last_ptr, count, CHUNK: tl.constexpr):
    """The sum of as many integers as stand before a place."""
    total = 0
    for first in range(0, count, CHUNK):
        back = first + tl.arange(0, CHUNK) + 1
        total += tl.sum(tl.load(last_ptr - back, mask=back <= count, other=0), 0)
    return total


@triton.jit
def _top_k_forward_kernel(
    weights,
    like_ptr,
    scores_ptr,
    found_ptr,
    dropped_ptr,
    equal_ptr,
    products,
    kept_ptr,
    tensor_ptr,
    start_ptr,
    tensor_start_ptr,
    BY_MAGNITUDE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Products or masks of one block (BLOCK,)."""
    tensor, start, count = this_block(tensor_ptr, start_ptr, tensor_start_ptr, BLOCK)
    offsets = tl.arange(0, BLOCK)
    valid = offsets < count
    scores = tl.load(scores_ptr + start + offsets, mask=valid, other=0.0)
    if BY_MAGNITUDE:
        lowest, skipped = _lowest_kept(found_ptr, dropped_ptr, tensor_start_ptr, tensor)
        bits = magnitude_bits(scores)
        equal = valid & (bits == lowest)
        before = 0
        if skipped > 0:
            blocks_before = ((start - tl.load(tensor_start_ptr + tensor)) // BLOCK).to(tl.int32)
            before = _sum_before(equal_ptr + tl.program_id(0), blocks_before, BLOCK)
        place = before + tl.cumsum(equal.to(tl.int32), 0) - 1
        kept = (bits > lowest) | (equal & (place >= skipped))
    else:
        kept = scores >= 0
    if HAS_WEIGHTS:
        within = start - tl.load(tensor_start_ptr + tensor)
        weight_ptr = address(weights, tensor).to(like_ptr.dtype) + within
        weight = tl.load(weight_ptr + offsets, mask=valid, other=0.0)
        product_ptr = address(products, tensor).to(like_ptr.dtype) + within
        tl.store(product_ptr + offsets, tl.where(kept, weight, 0.0), mask=valid)
    else:
        tl.store(kept_ptr + start + offsets, kept.to(tl.int8), mask=valid)


@triton.jit
def _top_k_backward_kernel(
    weights,
    like_ptr,
    scores_ptr,
    grads,
    score_grad_ptr,
    tensor_ptr,
    start_ptr,
    tensor_start_ptr,
    BY_MAGNITUDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradients of one block's scores (BLOCK,)."""
    tensor, start, count = this_block(tensor_ptr, start_ptr, tensor_start_ptr, BLOCK)
    offsets = tl.arange(0, BLOCK)
    valid = offsets < count
    within = start - tl.load(tensor_start_ptr + tensor)
    weight_ptr = address(weights, tensor).to(like_ptr.dtype) + within
    weight = tl.load(weight_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
    grad = address(grads, tensor)
    grad_ptr = grad.to(like_ptr.dtype) + within
    given = only_if(valid, grad != 0)
    of_mask = tl.load(grad_ptr + offsets, mask=given, other=0.0).to(tl.float32) * weight
    if BY_MAGNITUDE:
        of_mask *= sign(tl.load(scores_ptr + start + offsets, mask=valid, other=0.0))
    tl.store(score_grad_ptr + start + offsets, of_mask, mask=valid)


@triton.jit(do_not_specialize=["entries"])
def _top_k_pack_kernel(mask_ptr, bits_ptr, entries, BLOCK: tl.constexpr):
    """BLOCK bytes, of eight entries of a mask each, the first one lowest."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    bytes = tl.arange(0, BLOCK)
    places = tl.arange(0, 8)
    offsets = 8 * bytes[:, None] + places[None, :]
    valid = offsets < tl.minimum(entries - 8 * first, 8 * BLOCK).to(tl.int32)
    mask = tl.load(mask_ptr + 8 * first + offsets, mask=valid, other=0).to(tl.int32)
    packed = tl.sum((mask != 0).to(tl.int32) << places[None, :], 1)
    tl.store(bits_ptr + first + bytes, packed.to(tl.uint8), mask=first + bytes < (entries + 7) // 8)


@cache
def _on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Return int32 numbers, uploaded once and kept: a captured CUDA graph points to them."""
    return torch.tensor(numbers, dtype=torch.int32, device=device)


def forward(
    weights: Sequence[Tensor] | None,
    scores: Tensor,
    sizes: Sequence[int],
    dropped: Sequence[int] | None,
) -> tuple[list[Tensor], Tensor | None]:
    """Return the masked weights of a network, or its masks.

    Nothing is read back to the host, so it can be captured in a CUDA graph.

    Args:
        weights: The T target tensors, float32, float16 or bfloat16; None for the masks.
        scores: (N,) float32, in the order of the tensors' entries.
        sizes: Numbers of entries of the tensors, each at least 1 and less than 2^31.
        dropped: For each tensor how many entries are dropped, 0 to its size; None keeps the scores
            that are at least 0.

    Returns:
        The products, contiguous, and None; or no product, and the masks (N,) bool.
    """
    scores, device = scores.contiguous(), scores.device
    config = choose("top_k_forward", CONFIGS, device, entries=scores.numel())
    parts = [] if weights is None else [w.contiguous() for w in weights]
    like = parts or scores.split([*sizes])
    products = [torch.empty_like(w) for w in parts]
    kept = torch.empty_like(scores, dtype=torch.int8) if weights is None else None
    found = places = None
    if dropped is not None:
        places = _on_device(tuple(dropped), device)
        last = [min(count, size - 1) for count, size in zip(dropped, sizes, strict=True)]
        found = order_statistics(scores, sizes, _on_device(tuple(last), device))
    with on_device(scores):
        for group in groups_of(like, config):
            equal = None
            if found is not None:
                equal = torch.empty(group.table.grid, dtype=torch.int32, device=device)
                _top_k_equal_kernel[group.table.grid](
                    scores, found, places, equal, *group.table[:3], **config
                )
            own, made = (group.only(parts), group.only(products)) if parts else ((0,), (0,))
            _top_k_forward_kernel[group.table.grid](
                *(own, like[group.first], scores, found, places, equal, made, kept),
                *group.table[:3],
                BY_MAGNITUDE=dropped is not None,
                HAS_WEIGHTS=weights is not None,
                **config,
            )
    return products, None if kept is None else kept.view(torch.bool)


def backward(
    weights: Sequence[Tensor],
    scores: Tensor,
    grads: Sequence[Tensor | None],
    by_magnitude: bool,
) -> Tensor:
    """Return the gradient of the scores, (N,) float32.

    Args:
        weights, scores: As of :func:`forward`.
        grads: The gradient of each product, of its shape and dtype and any strides; None for 0.
        by_magnitude: Whether masks are of magnitudes.
    """
    weights, scores = [w.contiguous() for w in weights], scores.contiguous()
    grads = [None if grad is None else grad.contiguous() for grad in grads]
    config = choose("top_k_backward", CONFIGS, scores.device, entries=scores.numel())
    score_grad = torch.empty_like(scores)
    with on_device(scores):
        for group in groups_of(weights, config):
            _top_k_backward_kernel[group.table.grid](
                *(group.only(weights), weights[group.first], scores, group.only(grads)),
                *(score_grad, *group.table[:3]),
                BY_MAGNITUDE=by_magnitude,
                **config,
            )
    return score_grad


def pack(mask: Tensor) -> Tensor:
    """Return a mask as bits, uint8 (ceil(n / 8),): bit l of byte b is entry 8 b + l.

    Args:
        mask: bool (n,).
    """
    mask = mask.contiguous().view(torch.uint8)
    entries = mask.numel()
    bits = torch.empty(-(-entries // 8), dtype=torch.uint8, device=mask.device)
    config = choose("top_k_pack", PACK_CONFIGS, mask.device, entries=entries)
    with on_device(mask):
        grid = (triton.cdiv(max(1, len(bits)), config["BLOCK"]),)
        _top_k_pack_kernel[grid](mask, bits, entries, **config)
    return bits
