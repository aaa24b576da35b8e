"""Masked weights in one native pass on a CPU, and their gradients in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hypermask_fast.backends.choice import requested
from hypermask_fast.masks import plain
from hypermask_fast.masks.types import MaskedTensors, MaskRequest
from hypermask_fast.modes import is_followed, needs_operators
from hypermask_fast.native import library
from hypermask_fast.native.calls import call, is_readable, pointers
from hypermask_fast.native.masks import MASK_BINS, MaskPass, layout


def runs(request: MaskRequest) -> bool:
    """Return whether the native pass can do it, and the backend allows it."""
    logits = request.logits
    return (
        not is_followed()
        and is_readable(logits.contiguous())
        and logits.dtype in (torch.float32, torch.float64)
        and all(w.dtype == logits.dtype and is_readable(w) for w in request.weights)
        and not isinstance(request.sparsity, Tensor)
        and requested() == "auto"
        and library.load() is not None
    )


def mask_weights(request: MaskRequest) -> MaskedTensors:
    """Return what :func:`hypermask_fast.masks.weights.mask_weights` does, where it :func:`runs`."""
    return request.shaped(
        *_MaskWeights.apply(
            request.logits.contiguous(),
            request.previous,
            request.sparsity,
            tuple(request.masked),
            request.masked_drift,
            *request.weights,
        )
    )


def _places(
    sizes: Sequence[int], sparsity: float | Tensor, masked: Sequence[bool]
) -> npt.NDArray[np.float64]:
    """Return the position of each percentile among the sorted entries; -1 where there is none."""
    places = [
        float(sparsity) * (size - 1) / 100 if is_masked and sparsity else -1.0
        for size, is_masked in zip(sizes, masked, strict=True)
    ]
    return np.array(places)


def _run(kind: str, logits: Tensor, sizes: tuple[int, ...], **fields: Any) -> None:
    blocks = layout(sizes)
    work = MaskPass(tensors=len(sizes), blocks=len(blocks.block_tensor))
    call(f"mask_{kind}_{{}}", logits.dtype, work, logits=logits, **blocks._asdict(), **fields)


class _MaskWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        previous: Tensor | None,
        sparsity: float | Tensor,
        masked: tuple[bool, ...],
        masked_drift: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        sizes = tuple(w.numel() for w in weights)
        places = _places(sizes, sparsity, masked)
        blocks = len(layout(sizes).block_tensor)
        masks = torch.empty_like(logits)
        products = [
            torch.empty_like(w) if is_masked else None
            for w, is_masked in zip(weights, masked, strict=True)
        ]
        drift = np.zeros(blocks)
        selects = bool((places >= 0).any())
        _run(
            *("forward", logits, sizes),
            masked_drift=masked_drift,
            place=places,
            previous=previous,
            masks=masks,
            weights=pointers(weights),
            products=pointers(products),
            candidates=torch.empty_like(logits) if selects else None,
            candidate_count=np.empty(blocks, np.int64),
            histogram=np.empty((blocks if selects else 0, MASK_BINS), np.uint32),
            bounds=np.empty((len(sizes), 3), np.int64),
            thresholds=np.empty(len(sizes)),
            drift=drift,
        )
        ctx.save_for_backward(logits, masks, previous, *weights)
        ctx.settings = sparsity, masked, masked_drift
        ctx.mark_non_differentiable(masks)
        ctx.set_materialize_grads(False)
        total = logits.new_full((), drift.sum())
        return masks, total, *(p for p in products if p is not None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        logits, masks, previous, *weights = ctx.saved_tensors
        sparsity, masked, masked_drift = ctx.settings
        if is_followed() or needs_operators(*grads):
            request = MaskRequest(weights, logits, sparsity, masked, previous, masked_drift)
            of_logits, *of_weights = plain.gradients(request, grads[1:])
            return of_logits, None, None, None, None, *of_weights
        of_logits = torch.empty_like(logits)
        of_weights = [torch.empty_like(w) for w in weights]
        rest = iter(None if grad is None else grad.contiguous() for grad in grads[2:])
        of_products = [next(rest) if is_masked else None for is_masked in masked]
        of_drift = 0.0 if grads[1] is None else float(grads[1])
        _run(
            "backward",
            logits,
            tuple(w.numel() for w in weights),
            masked_drift=masked_drift,
            drift_grad=of_drift,
            previous=previous,
            masks=masks,
            weights=pointers(weights),
            product_grads=pointers(of_products),
            weight_grads=pointers(of_weights),
            logit_grad=of_logits,
        )
        return of_logits, None, None, None, None, *of_weights
