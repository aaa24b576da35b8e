"""Kernel cases of masked layers: fused, as masked weights and a library's product, and eager."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.case import KernelCase, Output, Problem
from benchmarks.launches.launch import floats
from hypermask_fast import reference

_ROWS = (128, 1, 32, 4096, 8, 1024)
_WIDTHS = (4096, 1024, 256, 2048, 8192)
_BATCH = 32
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Channels in and out, side of the image, kernel, stride, padding.
_LAYERS: dict[str, tuple[int, int, int, int, int, int]] = {
    "resnet-3-16": (3, 16, 32, 3, 1, 1),
    "resnet-16-32": (16, 32, 32, 3, 1, 1),
    "resnet-32": (32, 32, 32, 3, 1, 1),
    "resnet-32-64": (32, 64, 32, 3, 2, 1),
    "resnet-64": (64, 64, 16, 3, 1, 1),
    "resnet-64-128": (64, 128, 16, 3, 2, 1),
    "resnet-128": (128, 128, 8, 3, 1, 1),
    "zenke-3-32": (3, 32, 32, 3, 1, 1),
    "zenke-32-32": (32, 32, 32, 3, 1, 0),
    "zenke-32-64": (32, 64, 15, 3, 1, 1),
    "zenke-64-64": (64, 64, 15, 3, 1, 0),
}


def _eager(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    inputs: Sequence[Tensor],
    grad: Tensor | None,
) -> Output:
    """Return a layer's result, and with ``grad`` the gradients of its inputs."""
    if grad is None:
        with torch.no_grad():
            return (function(*inputs),)
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, grad))


def _exact(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    inputs: Sequence[Tensor],
    grad: Tensor | None,
) -> Output:
    doubled = None if grad is None else grad.double()
    return _eager(function, [t.double() for t in inputs], doubled)


def _linear_reference(x: Tensor, weight: Tensor, logits: Tensor) -> Tensor:
    return reference.masked_linear(x, weight, None, logits)


def _compiled(*inputs: Tensor) -> Tensor:
    # A second call finds what the first compiled.
    return torch.compile(_linear_reference, dynamic=False)(*inputs)


def _linear(rows: int, width: int, dtype: torch.dtype, backward: bool) -> Problem:
    x, weight = floats(rows, width, dtype=dtype), floats(width, width, dtype=dtype)
    weight, logits = weight / width**0.5, floats(width, width)
    grad = floats(rows, width, dtype=dtype) if backward else None
    inputs = (x, weight, logits)

    def kernel() -> Output:
        from hypermask_fast.kernels.layers import linear as forward
        from hypermask_fast.kernels.layers import linear_backward as gradients

        y = forward.masked_linear_forward(x, weight, None, logits)
        if grad is None:
            return (y,)
        of_x = forward.masked_linear_backward_input(grad, weight, logits)
        return (y, of_x, *gradients.masked_linear_backward_weight(grad, x, weight, logits))

    def product() -> Output:
        from hypermask_fast.kernels.masks import weights as mask_weights

        (masked,), *_ = mask_weights.forward([weight], logits.flatten(), None, (True,))
        assert masked is not None
        y = F.linear(x, masked)
        if grad is None:
            return (y,)
        given = ([weight], logits.flatten(), None, [grad.t() @ x])
        of_logits, (of_weight,) = mask_weights.backward(*given)
        return (y, grad @ masked, of_weight, of_logits.view_as(logits))

    runs: dict[str, Callable[[], Output]] = {
        "kernel": kernel,
        "product": product,
        "eager": partial(_eager, _linear_reference, inputs, grad),
        "compile": partial(_eager, _compiled, inputs, grad),
    }
    return Problem(runs, partial(_exact, _linear_reference, inputs, grad))


def _conv2d(
    sizes: tuple[int, int, int, int, int, int], batch: int, dtype: torch.dtype, backward: bool
) -> Problem:
    source, out, side, kernel, stride, padding = sizes
    size = (side + 2 * padding - kernel) // stride + 1
    x, weight = (
        floats(batch, source, side, side, dtype=dtype),
        floats(out, source, kernel, kernel, dtype=dtype) / (source * kernel**2) ** 0.5,
    )
    logits = floats(*weight.shape)
    grad = floats(batch, out, size, size, dtype=dtype) if backward else None
    geometry = (stride, padding)

    def layer(x: Tensor, weight: Tensor, logits: Tensor) -> Tensor:
        none = (None,) * 3
        return reference.masked_conv2d(x, weight, None, logits, *none, *geometry)

    def fused(x: Tensor, grad: Tensor | None, last: bool) -> Output:
        from hypermask_fast.kernels.layers import conv2d as forward
        from hypermask_fast.kernels.layers import conv2d_backward as gradients

        masked = (weight, logits, None)
        y = forward.masked_conv2d_forward(x, weight, None, logits, None, None, None, *geometry)
        if grad is None:
            return (y,)
        of_x = forward.masked_conv2d_backward_input(
            grad, *masked, x.shape, *geometry, channels_last=last
        )
        return (y, of_x, *gradients.masked_conv2d_backward_weight(grad, x, *masked, *geometry))

    def product(x: Tensor, grad: Tensor | None) -> Output:
        from hypermask_fast.kernels.masks import weights as mask_weights

        (masked,), *_ = mask_weights.forward([weight], logits.flatten(), None, (True,))
        assert masked is not None
        y = F.conv2d(x, masked, None, *geometry)
        if grad is None:
            return (y,)
        twice = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
        of_x, of_product, _ = torch.ops.aten.convolution_backward(
            grad, x, masked, None, *twice, [True, True, False]
        )
        given = ([weight], logits.flatten(), None, [of_product])
        of_logits, (of_weight,) = mask_weights.backward(*given)
        return (y, of_x, of_weight, of_logits.view_as(logits))

    def last(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.contiguous(memory_format=torch.channels_last)

    x_last, grad_last = last(x), last(grad)
    runs = {
        "kernel": partial(fused, x, grad, False),
        "kernel-last": partial(fused, x_last, grad_last, True),
        "product": partial(product, x, grad),
        "product-last": partial(product, x_last, grad_last),
        "eager": partial(_eager, layer, (x, weight, logits), grad),
    }
    return Problem(runs, partial(_exact, layer, (x, weight, logits), grad))


def _linear_bytes(rows: int, width: int, size: int, backward: bool) -> int:
    """Count x, y, W and z once, and in the backward pass their gradients beside them."""
    forward = 2 * rows * width * size + width**2 * (size + 4)
    return forward + backward * (3 * rows * width * size + 2 * width**2 * (size + 4))


def _conv2d_bytes(
    sizes: tuple[int, int, int, int, int, int], batch: int, size: int, backward: bool
) -> int:
    source, out, side, kernel, stride, padding = sizes
    after = (side + 2 * padding - kernel) // stride + 1
    x, y, w = batch * source * side**2, batch * out * after**2, out * source * kernel**2
    forward = (x + y) * size + w * (size + 4)
    return forward + backward * ((2 * x + y) * size + 2 * w * (size + 4))


def cases(size: str) -> list[KernelCase]:
    """Return the cases of masked layers."""
    full = size == "full"
    rows, widths, batch = (_ROWS, _WIDTHS, _BATCH) if full else ((3,), (20,), 2)
    layers = _LAYERS if full else {"tiny": (3, 5, 6, 3, 1, 1)}
    found = []
    for width in widths:
        for m in rows:
            for dtype_name, dtype in _DTYPES.items():
                for mode, backward in (("fwd", False), ("both", True)):
                    found.append(
                        KernelCase(
                            f"linear-{mode}-b{m}-w{width}-{dtype_name}",
                            partial(_linear, m, width, dtype, backward),
                            _linear_bytes(m, width, dtype.itemsize, backward),
                            ("kernel", "product", "eager", "compile"),
                            on_cuda=("compile",),
                        )
                    )
    for name, sizes in layers.items():
        for dtype_name, dtype in _DTYPES.items():
            for mode, backward in (("fwd", False), ("both", True)):
                found.append(
                    KernelCase(
                        f"conv-{mode}-{name}-{dtype_name}",
                        partial(_conv2d, sizes, batch, dtype, backward),
                        _conv2d_bytes(sizes, batch, dtype.itemsize, backward),
                        ("kernel", "kernel-last", "product", "product-last", "eager"),
                    )
                )
    return found
