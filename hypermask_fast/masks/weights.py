"""Masked weights of all tensors of a network at once, and their L1 drift.

On a CPU one native pass forms masks, percentiles, products and drift, and one pass their gradients;
on CUDA a few kernels do. Elsewhere the operations of :mod:`hypermask_fast.reference` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hypermask_fast import reference
from hypermask_fast.backends.choice import note, requested, uses_kernels
from hypermask_fast.functional import mask_threshold
from hypermask_fast.native import library
from hypermask_fast.native.calls import call, pointers
from hypermask_fast.native.masks import MASK_BINS, MaskPass, layout


class MaskedTensors(NamedTuple):
    """What :func:`mask_weights` returns.

    Attributes:
        products: ``theta_i * mask_i`` of every tensor; theta_i itself where it is not masked.
        masks: ``mask_i`` of every tensor; of those that are not masked ``|tanh z|``.
        drift: 0-d, the L1 drift; 0 without previous weights.
    """

    products: list[Tensor]
    masks: list[Tensor]
    drift: Tensor


def _run(kind: str, logits: Tensor, sizes: tuple[int, ...], **fields: Any) -> None:
    blocks = layout(sizes)
    work = MaskPass(tensors=len(sizes), blocks=len(blocks.block_tensor))
    call(f"mask_{kind}_{{}}", logits.dtype, work, logits=logits, **blocks._asdict(), **fields)


class _NativeMaskWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        previous: Tensor | None,
        places: npt.NDArray[np.float64],
        masked: tuple[bool, ...],
        masked_drift: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        logits = logits.contiguous()
        sizes = tuple(w.numel() for w in weights)
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
        ctx.masked, ctx.masked_drift = masked, masked_drift
        ctx.mark_non_differentiable(masks)
        ctx.set_materialize_grads(False)
        total = logits.new_full((), drift.sum())
        return masks, total, *(p for p in products if p is not None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        logits, masks, previous, *weights = ctx.saved_tensors
        of_logits = torch.empty_like(logits)
        of_weights = [torch.empty_like(w) for w in weights]
        rest = iter(None if grad is None else grad.contiguous() for grad in grads[2:])
        of_products = [next(rest) if masked else None for masked in ctx.masked]
        of_drift = 0.0 if grads[1] is None else float(grads[1])
        _run(
            "backward",
            logits,
            tuple(w.numel() for w in weights),
            masked_drift=ctx.masked_drift,
            drift_grad=of_drift,
            previous=previous,
            masks=masks,
            weights=pointers(weights),
            product_grads=pointers(of_products),
            weight_grads=pointers(of_weights),
            logit_grad=of_logits,
        )
        return of_logits, None, None, None, None, *of_weights


class _KernelMaskWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        previous: Tensor | None,
        sparsity: Tensor | None,
        masked: tuple[bool, ...],
        masked_drift: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        from hypermask_fast.kernels import ops

        thresholds = None
        if sparsity is not None and any(masked):
            sizes = [w.numel() for w in weights]
            thresholds, _ = ops.mask_thresholds(logits, sizes, sparsity, masked)
        products, masks, drift = ops.mask_weights(
            weights, logits, thresholds, masked, previous, masked_drift
        )
        ctx.save_for_backward(logits, thresholds, previous, *weights)
        ctx.masked, ctx.masked_drift = masked, masked_drift
        ctx.mark_non_differentiable(masks)
        ctx.set_materialize_grads(False)
        return masks, drift, *products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        from hypermask_fast.kernels import ops

        logits, thresholds, previous, *weights = ctx.saved_tensors
        rest = iter(grads[2:])
        of_products = [next(rest) if is_masked else None for is_masked in ctx.masked]
        of_logits, of_weights = ops.mask_weights_backward(
            weights, logits, thresholds, of_products, previous, ctx.masked_drift, grads[1]
        )
        return of_logits, None, None, None, None, *of_weights


def _runs_native(logits: Tensor, weights: Sequence[Tensor], sparsity: float | Tensor) -> bool:
    return (
        logits.device.type == "cpu"
        and logits.dtype in (torch.float32, torch.float64)
        and all(w.dtype == logits.dtype and w.is_contiguous() for w in weights)
        and not isinstance(sparsity, Tensor)
        and not torch.compiler.is_compiling()
        and requested() == "auto"
        and library.load() is not None
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


def _on_device(sparsity: float | Tensor, device: torch.device) -> Tensor | None:
    if isinstance(sparsity, Tensor):
        return sparsity.to(device, torch.float64)
    # Filled on the device: a copy from the host would break the capture of a CUDA graph.
    return torch.full((), sparsity, dtype=torch.float64, device=device) if sparsity else None


def _in_pytorch(
    weights: Sequence[Tensor],
    shaped: Sequence[Tensor],
    sparsity: float | Tensor,
    masked: Sequence[bool],
    previous: Tensor | None,
    masked_drift: bool,
) -> MaskedTensors:
    thresholds = [
        mask_threshold(z, sparsity) if is_masked else None
        for z, is_masked in zip(shaped, masked, strict=True)
    ]
    products, masks = reference.mask_weights(weights, shaped, thresholds)
    products = [p if m else w for p, w, m in zip(products, weights, masked, strict=True)]
    drift = shaped[0].new_zeros(())
    if previous is not None:
        parts = previous.split([w.numel() for w in weights])
        old = [part.view_as(w) for part, w in zip(parts, weights, strict=True)]
        drift = reference.l1_drift(weights, old, masks if masked_drift else None)
    return MaskedTensors(products, masks, drift)


def mask_weights(
    weights: Sequence[Tensor],
    logits: Tensor,
    sparsity: float | Tensor,
    masked: Sequence[bool],
    previous: Tensor | None = None,
    masked_drift: bool = True,
) -> MaskedTensors:
    """Return the masked weights of a network and their L1 drift.

    Args:
        weights: The target tensors, in the order of the logits.
        logits: z (N,), those of all tensors.
        sparsity: Percent of each mask that is 0, a number or a 0-d tensor.
        masked: For each tensor whether its mask has a threshold and multiplies it.
        previous: The weights (N,) to measure the drift from, or None.
        masked_drift: Multiply the drift by the masks, as in :func:`reference.l1_drift`.

    Raises:
        ValueError: The sparsity is a number outside [0, 100].
    """
    if not isinstance(sparsity, Tensor) and not 0 <= sparsity <= 100:
        raise ValueError(f"sparsity is {sparsity}; give a percentage in [0, 100]")
    sizes = [w.numel() for w in weights]
    function: type[torch.autograd.Function]
    position: Any
    if uses_kernels("mask_weights", logits, entries=logits.numel(), tensors=len(sizes)):
        function = _KernelMaskWeights
        position = _on_device(sparsity, logits.device)
    elif _runs_native(logits, weights, sparsity):
        note("mask_weights: native pass")
        function = _NativeMaskWeights
        position = _places(sizes, sparsity, masked)
    else:
        shaped = [z.view(w.shape) for z, w in zip(logits.split(sizes), weights, strict=True)]
        return _in_pytorch(weights, shaped, sparsity, masked, previous, masked_drift)
    flat, drift, *rest = function.apply(
        logits, previous, position, tuple(masked), masked_drift, *weights
    )
    remaining = iter(rest)
    products = [next(remaining) if m else w for w, m in zip(weights, masked, strict=True)]
    masks = [mask.view(w.shape) for mask, w in zip(flat.split(sizes), weights, strict=True)]
    return MaskedTensors(products, masks, drift)
