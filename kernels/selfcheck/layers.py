"""Cases of the masked layers' kernels, in each precision that products have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hypermask_fast.kernels.selfcheck.case import Case, Draw, Right
from hypermask_fast.kernels.selfcheck.masks import mask_of, slope_of
from hypermask_fast.kernels.selfcheck.rounded import Rounded, exact, multilinear

_FLOAT, _BRAIN = torch.float32, torch.bfloat16
_TF32 = 2.0**-10
"""The epsilon of what a tensor core reads of a float32 number."""
_LEVEL = 0.3
_ROWS, _WIDTH, _DEPTH = 19, 35, 41
_CONV: dict[str, Any] = {"stride": (2, 1), "padding": (1, 1), "dilation": (1, 2), "groups": 1}
_X, _W = (2, 5, 9, 11), (7, 5, 3, 3)

Precision = tuple[str, torch.dtype]
"""What float32 products are made of, and the dtype of x."""
PRECISIONS: tuple[Precision, ...] = (("tf32x3", _FLOAT), ("tf32", _FLOAT), ("tf32", _BRAIN))


def _as_factor(numbers: Rounded, precision: Precision) -> Rounded:
    """Return what a product reads."""
    products, dtype = precision
    if dtype != _FLOAT:
        return numbers.stored(dtype)
    coarse = _TF32 if products == "tf32" else 0.0
    return Rounded(numbers.value, numbers.error + coarse * numbers.size)


class _Layer:
    """Tensors of a layer, its mask, and the gradient of its result."""

    def __init__(self, draw: Draw, x: Sequence[int], weight: Sequence[int], dtype: torch.dtype):
        self.x = draw.normal(*x, dtype=dtype)
        self.weight, self.bias = draw.normal(*weight), draw.normal(weight[0])
        self.logits = draw.logits(*weight, threshold=_LEVEL)
        self.bias_logits = draw.logits(weight[0], threshold=_LEVEL)
        self.threshold = draw.number(_LEVEL)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        both = (self.threshold, self.threshold)
        return (self.weight, self.bias, self.logits, self.bias_logits, *both)

    @property
    def of_weight(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.logits, self.threshold

    def masked(self) -> Rounded:
        return exact(self.weight).times(mask_of(self.logits, self.threshold))

    def masked_bias(self) -> Rounded:
        return exact(self.bias).times(mask_of(self.bias_logits, self.threshold))


def _gradients(
    product: Rounded, weight: Tensor, logits: Tensor, threshold: Tensor
) -> dict[str, Right]:
    """Return what the gradients of W and z have to be, given that of ``W * mask``."""
    mask = mask_of(logits, threshold)
    of_mask = product.times(exact(weight))
    return {"dW": product.times(mask), "dz": of_mask.times(slope_of(logits, mask))}


def _launched(precision: Precision, kernel: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from hypermask_fast.kernels.layers.matmul import products_as

    with products_as(precision[0]):
        return kernel(*args, **kwargs)


def linear(draw: Draw, precision: Precision, rows: int = _ROWS, depth: int = _DEPTH) -> Case:
    from hypermask_fast.kernels.layers.linear import masked_linear_forward as kernel

    layer = _Layer(draw, (rows, depth), (_WIDTH, depth), precision[1])

    def right() -> dict[str, Right]:
        factors = (_as_factor(f, precision) for f in (exact(layer.x), layer.masked()))
        y = multilinear(F.linear, *factors, terms=depth).plus(layer.masked_bias())
        return {"y": y.stored(precision[1])}

    return Case(lambda: [_launched(precision, kernel, layer.x, *layer.parts)], right)


def linear_mixed(draw: Draw, precision: Precision) -> Case:
    """Rows of three tasks, of which one has none."""
    from hypermask_fast.kernels.layers.linear import masked_linear_mixed as kernel

    first = _Layer(draw, (_ROWS, _DEPTH), (_WIDTH, _DEPTH), precision[1])
    logits = draw.logits(3, _WIDTH, _DEPTH, threshold=_LEVEL)
    levels = draw.number(_LEVEL).repeat(3)
    ids = draw.put(torch.arange(_ROWS) % 2 * 2)

    def launch() -> list[Tensor]:
        tensors = (first.x, ids, first.weight, None, logits, None, levels, None)
        return [_launched(precision, kernel, *tensors)]

    def right() -> dict[str, Right]:
        x = _as_factor(exact(first.x), precision)
        masked = exact(first.weight).times(mask_of(logits, first.threshold))
        of_row = _as_factor(Rounded(*(part[ids.cpu()] for part in masked)), precision)
        product = partial(torch.einsum, "md,mnd->mn")
        return {"y": multilinear(product, x, of_row, terms=_DEPTH).stored(precision[1])}

    return Case(launch, right)


def linear_input(draw: Draw, precision: Precision) -> Case:
    from hypermask_fast.kernels.layers.linear import masked_linear_backward_input as kernel

    layer = _Layer(draw, (_ROWS, _DEPTH), (_WIDTH, _DEPTH), precision[1])
    grad = draw.normal(_ROWS, _WIDTH, dtype=precision[1])

    def right() -> dict[str, Right]:
        factors = (_as_factor(f, precision) for f in (exact(grad), layer.masked()))
        return {"dx": multilinear(torch.matmul, *factors, terms=_WIDTH).stored(precision[1])}

    return Case(lambda: [_launched(precision, kernel, grad, *layer.of_weight)], right)


def linear_weight(draw: Draw, precision: Precision) -> Case:
    from hypermask_fast.kernels.layers.linear_backward import masked_linear_backward_weight

    layer = _Layer(draw, (_ROWS, _DEPTH), (_WIDTH, _DEPTH), precision[1])
    grad = draw.normal(_ROWS, _WIDTH, dtype=precision[1])

    def launch() -> Sequence[Tensor]:
        tensors = (grad, layer.x, *layer.of_weight)
        return _launched(precision, masked_linear_backward_weight, *tensors)

    def right() -> dict[str, Right]:
        factors = (_as_factor(exact(f), precision) for f in (grad, layer.x))
        product = multilinear(lambda g, x: g.t() @ x, *factors, terms=_ROWS)
        return _gradients(product, *layer.of_weight)

    return Case(launch, right)


def _bias(
    kernel: Callable[..., tuple[Tensor, Tensor | None]],
    draw: Draw,
    shape: Sequence[int],
    axes: Sequence[int],
) -> Case:
    grad, bias = draw.normal(*shape), draw.normal(shape[1])
    logits = draw.logits(shape[1], threshold=_LEVEL)
    threshold = draw.number(_LEVEL)

    def launch() -> list[Tensor]:
        of_bias, of_logits = kernel(grad, bias, logits, threshold)
        assert of_logits is not None
        return [of_bias, of_logits]

    return Case(launch, lambda: _gradients(exact(grad).sum(*axes), bias, logits, threshold))


def linear_bias(draw: Draw, rows: int) -> Case:
    from hypermask_fast.kernels.layers.linear_backward import masked_linear_backward_bias

    return _bias(masked_linear_backward_bias, draw, (rows, _WIDTH), (0,))


def conv2d_bias(draw: Draw) -> Case:
    from hypermask_fast.kernels.layers.conv2d_backward import masked_conv2d_backward_bias

    return _bias(masked_conv2d_backward_bias, draw, (2, 7, 5, 9), (0, 2, 3))


def _conv(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, *_CONV.values())


def _conv_grad(draw: Draw, dtype: torch.dtype) -> Tensor:
    shape = _conv(torch.empty(_X, device="meta"), torch.empty(_W, device="meta")).shape
    return draw.normal(*shape, dtype=dtype)


def conv2d(draw: Draw, precision: Precision, last: bool = False) -> Case:
    from hypermask_fast.kernels.layers.conv2d import masked_conv2d_forward as kernel

    layer = _Layer(draw, _X, _W, precision[1])
    if last:
        layer.x = layer.x.to(memory_format=torch.channels_last)

    def right() -> dict[str, Right]:
        factors = (_as_factor(f, precision) for f in (exact(layer.x), layer.masked()))
        bias = Rounded(*(part[:, None, None] for part in layer.masked_bias()))
        y = multilinear(_conv, *factors, terms=_W[1] * _W[2] * _W[3]).plus(bias)
        return {"y": y.stored(precision[1])}

    return Case(lambda: [_launched(precision, kernel, layer.x, *layer.parts, **_CONV)], right)


def conv2d_input(draw: Draw, precision: Precision) -> Case:
    from hypermask_fast.kernels.layers.conv2d import masked_conv2d_backward_input as kernel

    layer, grad = _Layer(draw, _X, _W, precision[1]), _conv_grad(draw, precision[1])

    def right() -> dict[str, Right]:
        factors = (_as_factor(f, precision) for f in (layer.masked(), exact(grad)))
        product = multilinear(
            lambda w, g: torch.nn.grad.conv2d_input(_X, w, g, *_CONV.values()),
            *factors,
            terms=_W[0] * _W[2] * _W[3],
        )
        return {"dx": product.stored(precision[1])}

    return Case(lambda: [_launched(precision, kernel, grad, *layer.of_weight, _X, **_CONV)], right)


def conv2d_weight(draw: Draw, precision: Precision) -> Case:
    from hypermask_fast.kernels.layers.conv2d_backward import masked_conv2d_backward_weight

    layer, grad = _Layer(draw, _X, _W, precision[1]), _conv_grad(draw, precision[1])

    def launch() -> Sequence[Tensor]:
        tensors = (grad, layer.x, *layer.of_weight)
        return _launched(precision, masked_conv2d_backward_weight, *tensors, **_CONV)

    def right() -> dict[str, Right]:
        factors = (_as_factor(exact(f), precision) for f in (layer.x, grad))
        product = multilinear(
            lambda x, g: torch.nn.grad.conv2d_weight(x, _W, g, *_CONV.values()),
            *factors,
            terms=grad.numel() // grad.shape[1],
        )
        return _gradients(product, *layer.of_weight)

    return Case(launch, right)


def _each(
    case: Callable[..., Case], precisions: Sequence[Precision]
) -> list[Callable[[Draw], Case]]:
    return [partial(case, precision=precision) for precision in precisions]


_EXACT, _FAST, _HALF = PRECISIONS

CASES: dict[str, list[Callable[[Draw], Case]]] = {
    "masked_linear": [
        *_each(linear, PRECISIONS),
        # So few rows and long sums that these are split.
        partial(linear, precision=_EXACT, rows=3, depth=1031),
    ],
    "masked_linear_mixed": _each(linear_mixed, [_EXACT]),
    "masked_linear_input": _each(linear_input, [_EXACT, _HALF]),
    "masked_linear_weight": _each(linear_weight, [_EXACT, _HALF]),
    # Of many rows in two passes.
    "masked_linear_bias": [partial(linear_bias, rows=rows) for rows in (19, 600)],
    "masked_conv2d": [
        *_each(conv2d, [_EXACT, _HALF]),
        partial(conv2d, precision=_FAST, last=True),
    ],
    "masked_conv2d_input": _each(conv2d_input, [_EXACT, _HALF]),
    "masked_conv2d_weight": _each(conv2d_weight, [_EXACT, _HALF]),
    "masked_conv2d_bias": [conv2d_bias],
}
"""Cases by the kernel that they are of."""
