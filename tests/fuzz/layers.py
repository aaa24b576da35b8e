"""Cases of the masked layers' kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hypermask_fast.kernels import plain
from hypermask_fast.kernels.layers import conv2d as masked_conv2d
from hypermask_fast.kernels.layers import conv2d_backward as masked_conv2d_backward
from hypermask_fast.kernels.layers import linear as masked_linear
from hypermask_fast.kernels.layers import linear_backward as masked_linear_backward
from tests.fuzz.case import (
    DEVICE,
    DTYPES,
    GRADIENTS,
    LAYOUTS,
    Case,
    any_config,
    check,
    named,
    of_bias,
    of_logits,
    of_task,
)
from tests.support.kernel_checks import poisoned

LINEAR = [c for configs in masked_linear.CONFIGS.values() for c in configs]
LINEAR += [{"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "GROUP": 2, "SPLIT": 0}] * len(LINEAR)
LINEAR_WEIGHT = [c for configs in masked_linear_backward.CONFIGS.values() for c in configs]
CONV = [*masked_conv2d.CONFIGS, *[{"BLOCK_M": 256, "BLOCK_N": 64, "BLOCK_K": 128}] * 10]


def weight_only(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: a for k, a in arguments.items() if k.startswith("weight")}


def linear_layer(case: Case, tasks: int = 0) -> tuple[Tensor, dict[str, Any]]:
    x_dtype, w_dtype, z_dtype = case.one("dtypes", DTYPES)
    rows, width, depth = (case.size(name, 131, empty=0.02) for name in ("rows", "width", "depth"))
    x = case.normals("x", *(2,) * case.often("batches", 0.2), rows, depth, dtype=x_dtype)
    weight = case.normals("W", width, depth, dtype=w_dtype)
    z, q = of_logits(case, "z", (width, depth), z_dtype, tasks)
    return x, named(weight, z, q, of_bias(case, width, w_dtype, z_dtype, tasks))


def fuzz_linear_forward(case: Case) -> None:
    tasks = case.one("tasks", (0, 0, 1, 3))
    x, arguments = linear_layer(case, tasks)
    with any_config(case, {"masked_linear": LINEAR}):
        y = masked_linear.masked_linear_forward(x, **arguments)
    for task in range(tasks):
        check(plain.masked_linear, y[task], x=x, **of_task(arguments, task))
    if not tasks:
        check(plain.masked_linear, y, x=x, **arguments)


def fuzz_linear_mixed(case: Case) -> None:
    tasks = case.one("tasks", (1, 2, 3, 5, 12))
    x, arguments = linear_layer(case, tasks)
    x = x.flatten(0, -2)
    ids = (case.normal(len(x)).abs() * 2).long().clamp_max(tasks - 1)
    ids = ids.to(DEVICE, case.one("ids", (torch.int32, torch.int64)))
    with any_config(case, {"masked_linear": LINEAR}):
        y = masked_linear.masked_linear_mixed(x, ids, **arguments)
    for task in range(tasks):
        check(plain.masked_linear, y[ids == task], x=x[ids == task], **of_task(arguments, task))


def some_gradient(case: Case, x: Tensor, arguments: dict[str, Any]) -> Tensor:
    shape = (*x.shape[:-1], len(arguments["weight"]))
    return case.normals("dy", *shape, dtype=x.dtype, layouts=GRADIENTS)


def fuzz_linear_input(case: Case) -> None:
    x, arguments = linear_layer(case)
    grad, arguments = some_gradient(case, x, arguments), weight_only(arguments)
    with any_config(case, {"masked_linear_input": LINEAR}):
        found = masked_linear.masked_linear_backward_input(grad, **arguments)
    check(plain.masked_linear_input, found, grad=grad, **arguments)


def fuzz_linear_weight(case: Case) -> None:
    x, arguments = linear_layer(case)
    grad, arguments = some_gradient(case, x, arguments), weight_only(arguments)
    with any_config(case, {"masked_linear_weight": LINEAR_WEIGHT}):
        found = masked_linear_backward.masked_linear_backward_weight(grad, x, **arguments)
    check(plain.masked_linear_weight, found, grad=grad, x=x, **arguments)


def bias_case(case: Case, kernel: Any, plain: Any, *shape: int) -> None:
    x_dtype, w_dtype, z_dtype = case.one("dtypes", DTYPES)
    layouts = (*GRADIENTS, "channels last") if len(shape) == 4 else GRADIENTS
    grad = case.normals("dy", *shape, dtype=x_dtype, layouts=layouts)
    bias, z, q = of_bias(case, shape[1], w_dtype, z_dtype)
    bias = case.normals("b", shape[1], dtype=w_dtype) if bias is None else bias
    arguments = {"bias": bias, "bias_logits": z, "bias_threshold": q}
    with poisoned():
        found = kernel(grad, **arguments)
    check(plain, found, grad=grad, **arguments)


def fuzz_linear_bias(case: Case) -> None:
    rows = case.size("rows", 300, empty=0.03) * case.one("times", (1, 1, 3))
    kernel = masked_linear_backward.masked_linear_backward_bias
    bias_case(case, kernel, plain.masked_linear_bias, rows, case.size("width", 131, empty=0.03))


def fuzz_conv2d_bias(case: Case) -> None:
    shape = [case.size(name, 17, empty=0.03) for name in ("images", "channels", "height", "width")]
    kernel = masked_conv2d_backward.masked_conv2d_backward_bias
    bias_case(case, kernel, plain.masked_conv2d_bias, *shape)


def conv2d_layer(case: Case) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
    """Return x, the tensors and the geometry of a layer whose result has entries."""
    x_dtype, w_dtype, z_dtype = case.one("dtypes", DTYPES)
    images = case.one("images", (0, 1, 1, 2, 2, 3, 3))
    groups = case.one("groups", (1, 1, 1, 2, 3))
    channels, outputs = (case.one(name, (1, 2, 3, 7, 15, 17, 33)) for name in ("in", "out"))
    kernel = [case.one(name, (1, 1, 2, 3, 3, 5)) for name in ("kernel y", "kernel x")]
    stride = [case.one(name, (1, 1, 2, 3)) for name in ("stride y", "stride x")]
    padding = [case.one(name, (0, 1, 1, 2, 4)) for name in ("padding y", "padding x")]
    dilation = [case.one(name, (1, 1, 2, 3)) for name in ("dilation y", "dilation x")]
    area = [
        max(1, d * (k - 1) + 1 - 2 * p) + case.one(name, (0, 0, 1, 2, 3, 4, 6))
        for name, k, p, d in zip(("more y", "more x"), kernel, padding, dilation, strict=True)
    ]
    layouts = (*LAYOUTS, "channels last", "channels last")
    shape, taps = (images, groups * channels, *area), (groups * outputs, channels, *kernel)
    x = case.normals("x", *shape, dtype=x_dtype, layouts=layouts)
    weight = case.normals("W", *taps, dtype=w_dtype, layouts=layouts)
    z, q = of_logits(case, "z", taps, z_dtype)
    bias = of_bias(case, groups * outputs, w_dtype, z_dtype)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return x, named(weight, z, q, bias), geometry


def conv2d_gradient(
    case: Case, x: Tensor, arguments: dict[str, Any], geometry: dict[str, Any]
) -> Tensor:
    sizes = zip(
        *(x.shape[2:], arguments["weight"].shape[2:]),
        *(geometry[name] for name in ("stride", "padding", "dilation")),
        strict=True,
    )
    area = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    layouts = (*GRADIENTS, "channels last", "channels last")
    shape = (len(x), len(arguments["weight"]), *area)
    return case.normals("dy", *shape, dtype=x.dtype, layouts=layouts)


def fuzz_conv2d_forward(case: Case) -> None:
    x, arguments, geometry = conv2d_layer(case)
    with any_config(case, {"masked_conv2d": CONV}):
        y = masked_conv2d.masked_conv2d_forward(x, **arguments, **geometry)
    check(plain.masked_conv2d, y, x=x, **arguments, **geometry)


def fuzz_conv2d_input(case: Case) -> None:
    x, arguments, geometry = conv2d_layer(case)
    grad, arguments = conv2d_gradient(case, x, arguments, geometry), weight_only(arguments)
    last = case.often("dx is channels last")
    with any_config(case, {"masked_conv2d_input": CONV}):
        found = masked_conv2d.masked_conv2d_backward_input(
            grad, **arguments, x_shape=x.shape, **geometry, channels_last=last
        )
    check(plain.masked_conv2d_input, found, grad=grad, x=x, **arguments, **geometry)


def fuzz_conv2d_weight(case: Case) -> None:
    x, arguments, geometry = conv2d_layer(case)
    grad, arguments = conv2d_gradient(case, x, arguments, geometry), weight_only(arguments)
    with any_config(case, {"masked_conv2d_weight": CONV}):
        found = masked_conv2d_backward.masked_conv2d_backward_weight(
            grad, x, **arguments, **geometry
        )
    check(plain.masked_conv2d_weight, found, grad=grad, x=x, **arguments, **geometry)


KERNELS = {
    "masked_linear": fuzz_linear_forward,
    "masked_linear_mixed": fuzz_linear_mixed,
    "masked_linear_input": fuzz_linear_input,
    "masked_linear_weight": fuzz_linear_weight,
    "masked_linear_bias": fuzz_linear_bias,
    "masked_conv2d": fuzz_conv2d_forward,
    "masked_conv2d_input": fuzz_conv2d_input,
    "masked_conv2d_weight": fuzz_conv2d_weight,
    "masked_conv2d_bias": fuzz_conv2d_bias,
}
