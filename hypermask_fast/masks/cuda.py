"""Masked weights by the kernels, and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hypermask_fast.backends.choice import uses_kernels
from hypermask_fast.masks import plain
from hypermask_fast.masks.thresholds import sparsity_on
from hypermask_fast.masks.types import MaskedTensors, MaskRequest
from hypermask_fast.modes import needs_operators


def runs(request: MaskRequest) -> bool:
    """Return whether the kernels can do it, and the backend chooses them.

    Raises:
        ConfigError: Backend "triton" was forced and cannot run.
    """
    logits, tensors = request.logits, len(request.weights)
    return uses_kernels("mask_weights", logits, entries=logits.numel(), tensors=tensors)


def mask_weights(request: MaskRequest) -> MaskedTensors:
    """Return what :func:`hypermask_fast.masks.weights.mask_weights` does, where it :func:`runs`."""
    return request.shaped(
        *_MaskWeights.apply(
            request.logits,
            request.previous,
            request.sparsity,
            tuple(request.masked),
            request.masked_drift,
            *request.weights,
        )
    )


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
        from hypermask_fast.kernels import ops

        keeps_all = not isinstance(sparsity, Tensor) and not sparsity
        thresholds = None
        if not keeps_all and any(masked):
            sizes = [w.numel() for w in weights]
            percent = sparsity_on(sparsity, logits.device)
            thresholds, _ = ops.mask_thresholds(logits, sizes, percent, masked)
        products, masks, drift = ops.mask_weights(
            weights, logits, thresholds, masked, previous, masked_drift
        )
        ctx.save_for_backward(logits, thresholds, previous, *weights)
        ctx.settings = sparsity, masked, masked_drift
        ctx.mark_non_differentiable(masks)
        ctx.set_materialize_grads(False)
        return masks, drift, *products

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        from hypermask_fast.kernels import ops

        logits, thresholds, previous, *weights = ctx.saved_tensors
        sparsity, masked, masked_drift = ctx.settings
        if needs_operators(*grads):
            request = MaskRequest(weights, logits, sparsity, masked, previous, masked_drift)
            of_logits, *of_weights = plain.gradients(request, grads[1:])
            return of_logits, None, None, None, None, *of_weights
        rest = iter(grads[2:])
        of_products = [next(rest) if is_masked else None for is_masked in masked]
        of_logits, of_weights = ops.mask_weights_backward(
            weights, logits, thresholds, of_products, previous, masked_drift, grads[1]
        )
        return of_logits, None, None, None, None, *of_weights
