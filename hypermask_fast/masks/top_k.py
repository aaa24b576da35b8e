"""Weights under binary masks that scores make: the largest of each tensor, or those at least 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hypermask_fast import reference
from hypermask_fast.backends.choice import note, requested, uses_kernels
from hypermask_fast.native import library
from hypermask_fast.native.calls import call, pointers
from hypermask_fast.native.masks import MASK_BLOCK, layout
from hypermask_fast.native.top_k import TOP_K_BINS, TopKPass


def dropped_count(entries: int, share: float) -> int:
    """Return how many of a tensor's entries a mask that keeps a share of them drops.

    ``int((1 - share) * entries)`` in float64, as published.
    """
    return int((1.0 - share) * entries)


def top_k_weights(
    weights: Sequence[Tensor], scores: Tensor, dropped: Sequence[int]
) -> list[Tensor]:
    """Return ``W * M`` of each tensor, M being 1 where |score| is not among the lowest ones.

    Equal magnitudes are dropped from the lowest index up. The gradient of a score is that of its
    mask times sign(score), whether it is kept or not. Without a sort: by one
    native pass on a CPU, by Triton kernels on CUDA.

    Args:
        weights: Of the tensors.
        scores: (N,), those of all tensors, one after the other.
        dropped: For each tensor how many entries are dropped.
    """
    return _weights(weights, scores, tuple(dropped))


def threshold_weights(weights: Sequence[Tensor], scores: Tensor) -> list[Tensor]:
    """Return ``W * M`` of each tensor, M being 1 where the score is at least 0.

    The gradient of a score is that of its mask.

    Args:
        weights, scores: As for :func:`top_k_weights`.
    """
    return _weights(weights, scores, None)


@torch.no_grad()
def top_k_mask(scores: Tensor, sizes: Sequence[int], dropped: Sequence[int]) -> Tensor:
    """Return the masks of :func:`top_k_weights`, bool (N,).

    Args:
        scores: (N,).
        sizes: Number of entries of each tensor.
        dropped: For each tensor how many entries are dropped.
    """
    if scores.is_meta:
        return _planned(scores, torch.bool)
    if _runs_natively(scores):
        kept = torch.empty_like(scores, dtype=torch.uint8)
        none: list[Tensor | None] = [None] * len(sizes)
        _select(scores.contiguous(), none, none, tuple(sizes), tuple(dropped), kept)
        return kept.bool()
    if requested() == "reference":
        return reference.top_k_mask(scores, sizes, dropped)
    if _runs_on_kernels(scores):
        from hypermask_fast.kernels.masks import top_k

        mask = top_k.forward(None, scores, sizes, dropped)[1]
        assert mask is not None
        return mask
    parts = scores.split([*sizes])
    return torch.cat([_largest(s, d) for s, d in zip(parts, dropped, strict=True)])


def _runs_natively(scores: Tensor, weights: Sequence[Tensor] = ()) -> bool:
    return (
        scores.device.type == "cpu"
        and scores.dtype in (torch.float32, torch.float64)
        and all(w.dtype == scores.dtype and w.is_contiguous() for w in weights)
        and not torch.compiler.is_compiling()
        and requested() == "auto"
        and library.load() is not None
    )


def _runs_on_kernels(scores: Tensor, weights: Sequence[Tensor] = ()) -> bool:
    """Return whether the kernels can do it, and the backend chooses them.

    Raises:
        ConfigError: Backend "triton" was forced and cannot run.
    """
    is_known = all(w.dtype in (torch.float32, torch.float16, torch.bfloat16) for w in weights)
    return is_known and uses_kernels("top_k", scores, entries=len(scores), tensors=len(weights))


def _scratch(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the native selection holds while it runs, on the meta device."""
    blocks = -(-len(scores) // MASK_BLOCK)
    return torch.empty_like(scores), scores.new_empty(blocks, TOP_K_BINS, dtype=torch.int32)


def _planned(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a result of the native pass, having allocated what it does."""
    kept = torch.empty_like(scores, dtype=torch.uint8)
    scratch = _scratch(scores)
    del scratch
    return torch.empty_like(kept, dtype=dtype)


def _largest(scores: Tensor, dropped: int) -> Tensor:
    """Return the mask of one tensor by PyTorch's selection, on any device; nothing is read back."""
    if dropped in (0, len(scores)):
        return torch.full_like(scores, dropped == 0, dtype=torch.bool)
    sizes = scores.abs()
    threshold = sizes.kthvalue(dropped + 1).values
    above = (sizes > threshold) | (sizes.isnan() & ~threshold.isnan())
    at = (sizes == threshold) | (sizes.isnan() & threshold.isnan())
    # Of those at the threshold the last ones are kept.
    room = len(scores) - dropped - above.sum()
    after = at.flip(0).cumsum(0).flip(0)
    return above | (at & (after <= room))


def _select(
    scores: Tensor,
    weights: Sequence[Tensor | None],
    products: Sequence[Tensor | None],
    sizes: tuple[int, ...],
    dropped: tuple[int, ...],
    kept: Tensor | None,
) -> None:
    blocks = layout(sizes)
    count = len(blocks.block_tensor)
    call(
        "top_k_forward_{}",
        scores.dtype,
        TopKPass(tensors=len(sizes), blocks=count, by_magnitude=True),
        **blocks._asdict(),
        dropped=np.array(dropped, np.int64),
        scores=scores,
        weights=pointers(weights),
        products=pointers(products),
        kept=kept,
        candidates=torch.empty_like(scores),
        candidate_count=np.empty(count, np.int64),
        histogram=np.empty((count, TOP_K_BINS), np.uint32),
        bounds=np.empty((len(sizes), 2), np.int64),
        thresholds=np.empty(len(sizes)),
        first_kept=np.empty(len(sizes), np.int64),
    )


def _keep_positive(
    scores: Tensor,
    weights: Sequence[Tensor],
    products: Sequence[Tensor],
    sizes: tuple[int, ...],
) -> None:
    blocks = layout(sizes)
    call(
        "top_k_forward_{}",
        scores.dtype,
        TopKPass(tensors=len(sizes), blocks=len(blocks.block_tensor)),
        **blocks._asdict(),
        scores=scores,
        weights=pointers(weights),
        products=pointers(products),
    )


def _weights(
    weights: Sequence[Tensor], scores: Tensor, dropped: tuple[int, ...] | None
) -> list[Tensor]:
    return list(_MaskedByScores.apply(scores, dropped, *weights))


class _MaskedByScores(torch.autograd.Function):
    """``W * M``; the straight-through gradient goes to the scores alone."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, dropped: tuple[int, ...] | None, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        scores, sizes = scores.contiguous(), tuple(w.numel() for w in weights)
        ctx.by_magnitude = dropped is not None
        ctx.save_for_backward(scores, *weights)
        ctx.set_materialize_grads(False)
        if scores.is_meta:
            products = tuple(torch.empty_like(w) for w in weights)
            scratch = None if dropped is None else _scratch(scores)
            del scratch
            return products
        if _runs_natively(scores, weights):
            note("top_k_weights: native pass")
            products = tuple(torch.empty_like(w) for w in weights)
            if dropped is None:
                _keep_positive(scores, weights, products, sizes)
            else:
                _select(scores, weights, products, sizes, dropped, None)
            return products
        ctx.on_kernels = _runs_on_kernels(scores, weights)
        if ctx.on_kernels:
            from hypermask_fast.kernels.masks import top_k

            return tuple(top_k.forward(weights, scores, sizes, dropped)[0])
        kept = scores >= 0 if dropped is None else top_k_mask(scores, sizes, dropped)
        parts = zip(kept.split(sizes), weights, strict=True)
        return tuple(torch.where(part.view(w.shape), w, 0) for part, w in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        scores, *weights = ctx.saved_tensors
        none = (None,) * (1 + len(weights))
        given = [None if grad is None else grad.contiguous() for grad in grads]
        if scores.is_meta:
            return torch.empty_like(scores), *none
        if _runs_natively(scores, weights):
            out = torch.empty_like(scores)
            blocks = layout(tuple(w.numel() for w in weights))
            call(
                "top_k_backward_{}",
                scores.dtype,
                TopKPass(
                    tensors=len(weights),
                    blocks=len(blocks.block_tensor),
                    by_magnitude=ctx.by_magnitude,
                ),
                **blocks._asdict(),
                scores=scores,
                weights=pointers(weights),
                product_grads=pointers(given),
                score_grad=out,
            )
            return out, *none
        if ctx.on_kernels:
            from hypermask_fast.kernels.masks import top_k

            return top_k.backward(weights, scores, given, ctx.by_magnitude), *none
        parts = [
            w.new_zeros(w.numel()) if grad is None else (grad * w).flatten()
            for grad, w in zip(given, weights, strict=True)
        ]
        of_masks = torch.cat(parts)
        return of_masks * scores.sign() if ctx.by_magnitude else of_masks, *none
