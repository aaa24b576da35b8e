"""Masked weights by the operations of :mod:`hypermask_fast.reference`, on any device."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.masks.thresholds import mask_threshold
from hypermask_fast.masks.types import MaskedTensors, MaskRequest
from hypermask_fast.modes import gradients_by_operators


def mask_weights(request: MaskRequest) -> MaskedTensors:
    """Return what :func:`hypermask_fast.masks.weights.mask_weights` does."""
    weights, sizes = request.weights, request.sizes
    logits = [z.view_as(w) for z, w in zip(request.logits.split(sizes), weights, strict=True)]
    thresholds = [
        mask_threshold(z, request.sparsity) if is_masked else None
        for z, is_masked in zip(logits, request.masked, strict=True)
    ]
    products, masks = reference.mask_weights(weights, logits, thresholds)
    products = [p if m else w for p, w, m in zip(products, weights, request.masked, strict=True)]
    drift = logits[0].new_zeros(())
    if request.previous is not None:
        parts = request.previous.split(sizes)
        old = [part.view_as(w) for part, w in zip(parts, weights, strict=True)]
        drift = reference.l1_drift(weights, old, masks if request.masked_drift else None)
    return MaskedTensors(products, masks, drift)


def gradients(request: MaskRequest, grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return the gradients of logits and weights by differentiable operations.

    Args:
        request: What was asked for.
        grads: Of the drift, then of each product that is masked.
    """

    def outputs(logits: Tensor, *weights: Tensor) -> Sequence[Tensor]:
        found = mask_weights(request._replace(logits=logits, weights=weights))
        products = zip(found.products, request.masked, strict=True)
        return found.drift, *(product for product, is_masked in products if is_masked)

    return gradients_by_operators(outputs, (request.logits, *request.weights), grads)
