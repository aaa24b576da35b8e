"""The operators ``torch.ops.hypermask_fast.*``: schemas, shapes, and what runs them on each device.

CUDA tensors go to the Triton kernels, which are imported at the first launch; CPU tensors to plain
PyTorch. None is differentiable: the autograd functions of :mod:`hypermask_fast` call them in both
directions, which ``torch.compile`` traces without a break.

The passes that change a hypernetwork's head in place (``factored_adam``, ``step_rows``) are no
operators: they run in the backward pass and in the optimizer, which nothing traces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hypermask_fast.kernels import plain
from hypermask_fast.kernels.layouts import format_of, in_channels_last

_LIBRARY = torch.library.Library("hypermask_fast", "DEF")

_MASK = "Tensor weight_logits, Tensor? weight_threshold"
_LAYER = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor weight_logits, Tensor? bias_logits, "
    "Tensor? weight_threshold, Tensor? bias_threshold"
)
_BIAS = "Tensor grad, Tensor bias, Tensor? bias_logits, Tensor? bias_threshold"
_GEOMETRY = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, int groups"


def _operator(
    schema: str,
    plain: Callable[..., Any],
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
) -> Any:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, plain, "CPU")
    _LIBRARY.impl(name, kernel, "CUDA")
    torch.library.register_fake(f"hypermask_fast::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.hypermask_fast, name).default


def _no_logits(grads: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    """An operator's results are tensors: one without entries stands for none."""
    of_bias, of_logits = grads
    return of_bias, of_bias.new_empty(0) if of_logits is None else of_logits


def _linear_kernel(*args: Any) -> Tensor:
    from hypermask_fast.kernels.layers.linear import masked_linear_forward

    return masked_linear_forward(*args)


def _linear_input_kernel(*args: Any) -> Tensor:
    from hypermask_fast.kernels.layers.linear import masked_linear_backward_input

    return masked_linear_backward_input(*args)


def _linear_weight_kernel(*args: Any) -> tuple[Tensor, Tensor]:
    from hypermask_fast.kernels.layers.linear_backward import masked_linear_backward_weight

    return masked_linear_backward_weight(*args)


def _linear_bias_kernel(*args: Any) -> tuple[Tensor, Tensor]:
    from hypermask_fast.kernels.layers.linear_backward import masked_linear_backward_bias

    return _no_logits(masked_linear_backward_bias(*args))


def _conv2d_kernel(*args: Any) -> Tensor:
    from hypermask_fast.kernels.layers.conv2d import masked_conv2d_forward

    return masked_conv2d_forward(*args)


def _conv2d_input_kernel(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    threshold: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    from hypermask_fast.kernels.layers.conv2d import masked_conv2d_backward_input

    geometry = (stride, padding, dilation, groups, in_channels_last(x))
    return masked_conv2d_backward_input(grad, weight, logits, threshold, x.shape, *geometry)


def _conv2d_weight_kernel(*args: Any) -> tuple[Tensor, Tensor]:
    from hypermask_fast.kernels.layers.conv2d_backward import masked_conv2d_backward_weight

    return masked_conv2d_backward_weight(*args)


def _conv2d_bias_kernel(*args: Any) -> tuple[Tensor, Tensor]:
    from hypermask_fast.kernels.layers.conv2d_backward import masked_conv2d_backward_bias

    return _no_logits(masked_conv2d_backward_bias(*args))


def _hidden_grad_kernel(weight: Tensor, dz: Tensor) -> Tensor:
    from hypermask_fast.kernels.head.hidden_grad import hidden_grad

    return hidden_grad(weight, dz)


def _thresholds_kernel(
    logits: Tensor, sizes: Sequence[int], sparsity: Tensor, masked: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    from hypermask_fast.kernels.masks.select import thresholds

    found = thresholds(logits, sizes, sparsity, masked)
    if found is None:
        return logits.new_full((len(sizes),), -torch.inf), logits.isnan().any()
    return found.values, found.has_nan


def _mask_weights_kernel(
    weights: Sequence[Tensor], logits: Tensor, *args: Any
) -> tuple[list[Tensor], Tensor, Tensor]:
    from hypermask_fast.kernels.masks.weights import forward

    products, masks, drift = forward(weights, logits, *args)
    return [p for p in products if p is not None], masks, drift


def _mask_weights_backward_kernel(*args: Any) -> tuple[Tensor, list[Tensor]]:
    from hypermask_fast.kernels.masks.weights import backward

    return backward(*args)


def _like_bias(grad: Tensor, bias: Tensor, logits: Tensor | None, _: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(bias), bias.new_empty(0) if logits is None else torch.empty_like(logits)


def _new_like_weight(
    grad: Tensor, x: Tensor, weight: Tensor, logits: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), logits.new_empty(logits.shape)


def _with_strides_of_weight(
    grad: Tensor, x: Tensor, weight: Tensor, logits: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), torch.empty_like(logits)


def _conv2d_fake(x: Tensor, weight: Tensor, *args: Any) -> Tensor:
    stride, padding, dilation, _ = args[-4:]
    size = [
        (x.shape[i + 2] + 2 * padding[i] - dilation[i] * (weight.shape[i + 2] - 1) - 1) // stride[i]
        + 1
        for i in (0, 1)
    ]
    shape = (x.shape[0], weight.shape[0], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=format_of(x))


def _conv2d_input_fake(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty(x.shape, dtype=grad.dtype, device=x.device, memory_format=format_of(x))


masked_linear = _operator(
    f"masked_linear({_LAYER}) -> Tensor",
    plain.masked_linear,
    _linear_kernel,
    lambda x, weight, *_: x.new_empty(*x.shape[:-1], weight.shape[0]),
)
masked_linear_input = _operator(
    f"masked_linear_input(Tensor grad, Tensor weight, {_MASK}) -> Tensor",
    plain.masked_linear_input,
    _linear_input_kernel,
    lambda grad, weight, *_: grad.new_empty(*grad.shape[:-1], weight.shape[1]),
)
masked_linear_weight = _operator(
    f"masked_linear_weight(Tensor grad, Tensor x, Tensor weight, {_MASK}) -> (Tensor, Tensor)",
    plain.masked_linear_weight,
    _linear_weight_kernel,
    _new_like_weight,
)
masked_linear_bias = _operator(
    f"masked_linear_bias({_BIAS}) -> (Tensor, Tensor)",
    plain.masked_linear_bias,
    _linear_bias_kernel,
    _like_bias,
)
masked_conv2d = _operator(
    f"masked_conv2d({_LAYER}, {_GEOMETRY}) -> Tensor",
    plain.masked_conv2d,
    _conv2d_kernel,
    _conv2d_fake,
)
masked_conv2d_input = _operator(
    f"masked_conv2d_input(Tensor grad, Tensor x, Tensor weight, {_MASK}, {_GEOMETRY}) -> Tensor",
    plain.masked_conv2d_input,
    _conv2d_input_kernel,
    _conv2d_input_fake,
)
masked_conv2d_weight = _operator(
    f"masked_conv2d_weight(Tensor grad, Tensor x, Tensor weight, {_MASK}, {_GEOMETRY}) "
    "-> (Tensor, Tensor)",
    plain.masked_conv2d_weight,
    _conv2d_weight_kernel,
    _with_strides_of_weight,
)
masked_conv2d_bias = _operator(
    f"masked_conv2d_bias({_BIAS}) -> (Tensor, Tensor)",
    plain.masked_conv2d_bias,
    _conv2d_bias_kernel,
    _like_bias,
)
hidden_grad = _operator(
    "hidden_grad(Tensor weight, Tensor dz) -> Tensor",
    plain.hidden_grad,
    _hidden_grad_kernel,
    lambda weight, dz: dz.new_empty(dz.shape[0], weight.shape[1]),
)
mask_thresholds = _operator(
    "mask_thresholds(Tensor logits, int[] sizes, Tensor sparsity, bool[] masked) "
    "-> (Tensor, Tensor)",
    plain.mask_thresholds,
    _thresholds_kernel,
    lambda logits, sizes, sparsity, masked: (
        logits.new_empty(len(sizes)),
        logits.new_empty((), dtype=torch.bool),
    ),
)
mask_weights = _operator(
    "mask_weights(Tensor[] weights, Tensor logits, Tensor? thresholds, bool[] masked, "
    "Tensor? previous, bool masked_drift) -> (Tensor[], Tensor, Tensor)",
    plain.mask_weights,
    _mask_weights_kernel,
    lambda weights, logits, thresholds, masked, *_: (
        [w.new_empty(w.shape) for w, is_masked in zip(weights, masked, strict=True) if is_masked],
        logits.new_empty(logits.shape),
        logits.new_empty(()),
    ),
)
mask_weights_backward = _operator(
    "mask_weights_backward(Tensor[] weights, Tensor logits, Tensor? thresholds, Tensor?[] grads, "
    "Tensor? previous, bool masked_drift, Tensor? drift_grad) -> (Tensor, Tensor[])",
    plain.mask_weights_backward,
    _mask_weights_backward_kernel,
    lambda weights, logits, *_: (
        logits.new_empty(logits.shape),
        [w.new_empty(w.shape) for w in weights],
    ),
)
