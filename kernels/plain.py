"""What the operators do on a CPU: the specification, and its gradients written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.kernels.layouts import format_of, with_strides_of


def _slope(logits: Tensor, mask: Tensor) -> Tensor:
    """d|tanh z| / dz: 0 where an entry was removed."""
    return torch.where(mask == 0, 0, logits.sgn() * (1 - mask * mask))


def _gradients(
    product: Tensor, weight: Tensor, logits: Tensor, threshold: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of W and z, given that of ``W * mask``."""
    mask = reference.semi_binary_mask(logits, threshold)
    of_logits = (product * weight).to(logits.dtype) * _slope(logits, mask)
    return (product * mask).to(weight.dtype), of_logits


def _masked(weight: Tensor, logits: Tensor, threshold: Tensor | None, dtype: torch.dtype) -> Tensor:
    ((product,), _) = reference.mask_weights([weight], [logits], [threshold])
    return product.to(dtype)


def _masked_bias(
    bias: Tensor | None, logits: Tensor | None, threshold: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    if bias is None or logits is None:
        return bias if bias is None else bias.to(dtype)
    return _masked(bias, logits, threshold, dtype)


def _bias_gradients(
    grad: Tensor, bias: Tensor, logits: Tensor | None, threshold: Tensor | None
) -> tuple[Tensor, Tensor]:
    if logits is None:
        return grad.to(bias.dtype), grad.new_empty(0)
    return _gradients(grad, bias, logits, threshold)


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, -2) if x.dim() > 1 else x[None]


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_logits: Tensor,
    bias_logits: Tensor | None,
    weight_threshold: Tensor | None,
    bias_threshold: Tensor | None,
) -> Tensor:
    masked = _masked(weight, weight_logits, weight_threshold, x.dtype)
    masked_bias = _masked_bias(bias, bias_logits, bias_threshold, x.dtype)
    return torch.nn.functional.linear(x, masked, masked_bias)


def masked_linear_input(
    grad: Tensor, weight: Tensor, weight_logits: Tensor, weight_threshold: Tensor | None
) -> Tensor:
    return grad @ _masked(weight, weight_logits, weight_threshold, grad.dtype)


def masked_linear_weight(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_logits: Tensor,
    weight_threshold: Tensor | None,
) -> tuple[Tensor, Tensor]:
    product = _rows(grad).t() @ _rows(x)
    of_weight, of_logits = _gradients(product, weight, weight_logits, weight_threshold)
    return of_weight.contiguous(), of_logits.contiguous()


def masked_linear_bias(
    grad: Tensor, bias: Tensor, bias_logits: Tensor | None, bias_threshold: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _bias_gradients(_rows(grad).sum(0), bias, bias_logits, bias_threshold)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_logits: Tensor,
    bias_logits: Tensor | None,
    weight_threshold: Tensor | None,
    bias_threshold: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    masked = _masked(weight, weight_logits, weight_threshold, x.dtype)
    masked_bias = _masked_bias(bias, bias_logits, bias_threshold, x.dtype)
    geometry = (tuple(stride), tuple(padding), tuple(dilation), groups)
    y = torch.nn.functional.conv2d(x, masked, masked_bias, *geometry)
    return y.contiguous(memory_format=format_of(x))


def masked_conv2d_input(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_logits: Tensor,
    weight_threshold: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    masked = _masked(weight, weight_logits, weight_threshold, grad.dtype)
    geometry = (tuple(stride), tuple(padding), tuple(dilation), groups)
    of_x = torch.nn.grad.conv2d_input(x.shape, masked, grad, *geometry)
    return of_x.contiguous(memory_format=format_of(x))


def masked_conv2d_weight(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_logits: Tensor,
    weight_threshold: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    geometry = (tuple(stride), tuple(padding), tuple(dilation), groups)
    product = torch.nn.grad.conv2d_weight(x, weight.shape, grad, *geometry)
    of_weight, of_logits = _gradients(product, weight, weight_logits, weight_threshold)
    return with_strides_of(of_weight, weight), with_strides_of(of_logits, weight_logits)


def masked_conv2d_bias(
    grad: Tensor, bias: Tensor, bias_logits: Tensor | None, bias_threshold: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _bias_gradients(grad.sum((0, 2, 3)), bias, bias_logits, bias_threshold)


def hidden_grad(weight: Tensor, dz: Tensor) -> Tensor:
    return dz @ weight


def mask_thresholds(
    logits: Tensor, sizes: Sequence[int], sparsity: Tensor, masked: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    parts = zip(logits.split(list(sizes)), masked, strict=True)
    lowest = logits.new_full((), -torch.inf)
    values = [reference.mask_threshold(z, sparsity) if m else lowest for z, m in parts]
    return torch.stack(values), logits.isnan().any()


def _shaped(flat: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split([w.numel() for w in weights])
    return [part.view(w.shape) for part, w in zip(parts, weights, strict=True)]


def mask_weights(
    weights: Sequence[Tensor],
    logits: Tensor,
    thresholds: Tensor | None,
    masked: Sequence[bool],
    previous: Tensor | None,
    masked_drift: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    limits = [None] * len(weights) if thresholds is None else list(thresholds)
    products, masks = reference.mask_weights(weights, _shaped(logits, weights), limits)
    drift = logits.new_zeros(())
    if previous is not None:
        old = _shaped(previous, weights)
        drift = reference.l1_drift(weights, old, masks if masked_drift else None)
    kept = [p.contiguous() for p, is_masked in zip(products, masked, strict=True) if is_masked]
    return kept, torch.cat([m.flatten() for m in masks]), drift.to(logits.dtype)


def mask_weights_backward(
    weights: Sequence[Tensor],
    logits: Tensor,
    thresholds: Tensor | None,
    grads: Sequence[Tensor | None],
    previous: Tensor | None,
    masked_drift: bool,
    drift_grad: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    limits = [None] * len(weights) if thresholds is None else list(thresholds)
    old = [None] * len(weights) if previous is None else _shaped(previous, weights)
    of_logits, of_weights = [], []
    for w, z, limit, grad, before in zip(
        weights, _shaped(logits, weights), limits, grads, old, strict=True
    ):
        grad = torch.zeros_like(w) if grad is None else grad
        of_weight, of_z = _gradients(grad, w, z, limit)
        if before is not None and drift_grad is not None:
            mask, away = reference.semi_binary_mask(z, limit), w - before
            along = drift_grad * away.sgn()
            of_weight = of_weight + (along * mask if masked_drift else along).to(w.dtype)
            if masked_drift:
                of_z = of_z + drift_grad * away.abs() * _slope(z, mask)
        of_weights.append(of_weight.contiguous())
        of_logits.append(of_z.flatten())
    return torch.cat(of_logits), of_weights
