"""Masked layers on the kernels: the mask is formed where a product reads the weights.

The operators are called outside of autograd, forward and backward, so that ``torch.compile`` traces
them without a graph break.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.kernels import ops
from hypermask_fast.masks.types import Mask
from hypermask_fast.modes import gradients_by_operators, needs_operators
from hypermask_fast.reference import Geometry, Size2


def _pair(value: Size2) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def inputs_like_products(x: Tensor) -> Tensor:
    """Return x in the dtype that autocast gives a product."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(kind))


def _gradients(
    ctx: Any,
    operators: tuple[Any, Any, Any],
    inputs: tuple[Tensor, ...],
    grad: Tensor,
    geometry: tuple[Any, ...],
) -> tuple[Tensor | None, ...]:
    """Return those gradients of x, W, b and their logits that are needed, in the layers' order.

    Args:
        ctx: Of a layer's forward, which saved its tensors.
        operators: What gives the gradients of x, of W and its logits, of b and its logits.
        inputs: What the first of them takes before the masked weights.
        grad: The gradient of the layer's output.
        geometry: Of a convolution; empty for a linear layer.
    """
    x, weight, bias, weight_logits, bias_logits, threshold, bias_threshold = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_logits, needs_bias_logits = ctx.needs_input_grad[:5]
    of_input, of_weights, of_biases = operators
    mask = (weight, weight_logits, threshold)
    of_x = of_weight = of_logits = of_bias = of_bias_logits = None
    if needs_x:
        of_x = of_input(*inputs, *mask, *geometry)
    if needs_weight or needs_logits:
        of_weight, of_logits = of_weights(grad, x, *mask, *geometry)
    if bias is not None and (needs_bias or needs_bias_logits):
        of_bias, of_bias_logits = of_biases(grad, bias, bias_logits, bias_threshold)
        of_bias_logits = None if bias_logits is None else of_bias_logits
    return of_x, of_weight, of_bias, of_logits, of_bias_logits


def _by_operators(
    operation: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    grads: Sequence[Tensor],
    geometry: tuple[Any, ...],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of an operation of the reference, which can be differentiated again."""

    def outputs(*tensors: Tensor | None) -> tuple[Tensor]:
        return (operation(*tensors, *geometry),)

    return *gradients_by_operators(outputs, tensors, grads), *(None,) * len(geometry)


class _MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Tensor:
        ctx.save_for_backward(*tensors)
        return ops.masked_linear(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if needs_operators(*grads):
            return _by_operators(reference.masked_linear, ctx.saved_tensors, grads, ())
        operators = (ops.masked_linear_input, ops.masked_linear_weight, ops.masked_linear_bias)
        return *_gradients(ctx, operators, grads[:1], grads[0], ()), None, None


class _MaskedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.save_for_backward(*arguments[:-4])
        ctx.geometry = arguments[-4:]
        return ops.masked_conv2d(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if needs_operators(*grads):
            return _by_operators(reference.masked_conv2d, ctx.saved_tensors, grads, ctx.geometry)
        operators = (ops.masked_conv2d_input, ops.masked_conv2d_weight, ops.masked_conv2d_bias)
        inputs = (grads[0], ctx.saved_tensors[0])
        return *_gradients(ctx, operators, inputs, grads[0], ctx.geometry), *(None,) * 6


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Mask) -> Tensor:
    """Return what :func:`hypermask_fast.layers.functional.masked_linear` does; same arguments."""
    return _MaskedLinear.apply(inputs_like_products(x), weight, bias, *mask)


def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Mask, geometry: Geometry
) -> Tensor:
    """Return what :func:`hypermask_fast.layers.functional.masked_conv2d` does; same arguments."""
    x = inputs_like_products(x)
    stride, padding, dilation, groups = geometry
    dilation = _pair(dilation)
    if isinstance(padding, str):
        around = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if padding == "valid":
            around = [0, 0]
        elif any(total % 2 for total in around):
            # As PyTorch: the odd one comes last.
            height, width = around
            sides = (width // 2, width - width // 2, height // 2, height - height // 2)
            x, around = torch.nn.functional.pad(x, sides), [0, 0]
        padding = (around[0] // 2, around[1] // 2)
    batched = x if x.dim() == 4 else x[None]
    sizes = (_pair(stride), _pair(padding), dilation)
    y = _MaskedConv2d.apply(batched, weight, bias, *mask, *sizes, groups)
    return y if x.dim() == 4 else y[0]
