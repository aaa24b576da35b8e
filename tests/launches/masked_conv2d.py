"""Launches of the masked convolution: layers of ZenkeNet and of ResNets, batch 32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hypermask_fast.kernels import masked_conv2d_backward as backward
from hypermask_fast.kernels._conv2d import geometry
from hypermask_fast.kernels._tuning import Config
from hypermask_fast.kernels.masked_conv2d import (
    CONFIGS,
    masked_conv2d_backward_input,
    masked_conv2d_forward,
)


class Layer(NamedTuple):
    """A convolution of square images with square kernels."""

    source: int
    out: int
    side: int
    kernel: int = 3
    stride: int = 1
    padding: int | str = 1
    groups: int = 1


LAYERS = {
    "zenke_3_32": Layer(3, 32, 32),
    "zenke_32_32": Layer(32, 32, 32, padding=0),
    "zenke_32_64": Layer(32, 64, 15),
    "zenke_64_64": Layer(64, 64, 15, padding=0),
    "resnet_16": Layer(16, 16, 32),
    "resnet_32_64": Layer(32, 64, 16, stride=2),
    "resnet_128": Layer(128, 128, 8, padding="same"),
    "shortcut_64_128": Layer(64, 128, 16, kernel=1, stride=2, padding=0),
    "depthwise_64": Layer(64, 64, 16, groups=64),
}
PASSES = {"forward": CONFIGS, "input": CONFIGS, "weight": backward.CONFIGS, "bias": ({},)}


def launch(
    kind: str, layer: Layer, dtype: torch.dtype, last: bool, precision: str = "tf32"
) -> object:
    """Launch one of ``PASSES``, in channels_last or NCHW."""

    def image(*shape: int) -> Tensor:
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="cuda", memory_format=layout)

    source, out, side, kernel, *rest, groups = layer
    rest = [*rest, 1]
    x = image(32, source, side, side)
    w = image(out, source // groups, kernel, kernel)
    z, zb = (torch.empty(s, device="cuda") for s in (w.shape, out))
    q, qb = (torch.empty((), device="cuda") for _ in range(2))
    b = torch.empty(out, dtype=dtype, device="cuda")
    if kind == "forward":
        return masked_conv2d_forward(x, w, b, z, zb, q, qb, *rest, groups, precision)
    shape = geometry(x.shape, w.shape, *rest)
    dy = image(32, out, shape.height, shape.width)
    if kind == "input":
        return masked_conv2d_backward_input(dy, w, z, q, x.shape, *rest, groups, last, precision)
    if kind == "weight":
        return backward.masked_conv2d_backward_weight(dy, x, w, z, q, *rest, groups, precision)
    return backward.masked_conv2d_backward_bias(dy, b, zb, qb)


_CASES = {
    "zenke_3_32_fp32": ("zenke_3_32", torch.float32, False),
    "zenke_3_32_bf16_last": ("zenke_3_32", torch.bfloat16, True),
    "zenke_64_64_bf16": ("zenke_64_64", torch.bfloat16, False),
    "resnet_16_fp32": ("resnet_16", torch.float32, False),
    "resnet_32_64_fp32": ("resnet_32_64", torch.float32, False),
    "resnet_128_fp32_last": ("resnet_128", torch.float32, True),
    "resnet_128_tf32x3": ("resnet_128", torch.float32, False, "tf32x3"),
}
_NAMES = {"forward": "masked_conv2d"}
LAUNCHES: dict[str, tuple[Callable[[], object], str, Sequence[Config]]] = {
    f"{kind}_{name}": (
        lambda kind=kind, layer=layer, rest=rest: launch(kind, LAYERS[layer], *rest),
        _NAMES.get(kind, f"masked_conv2d_{kind}"),
        configs,
    )
    for kind, configs in PASSES.items()
    for name, (layer, *rest) in _CASES.items()
    if kind != "bias" or layer == "resnet_128"
}
