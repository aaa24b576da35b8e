"""Launches of the masked convolution: layers of ZenkeNet and of ResNets, batch 32."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.launches.launch import Launch, Run, floats
from hypermask_fast.kernels.layers import conv2d_backward as backward
from hypermask_fast.kernels.layers.conv2d import (
    CONFIGS,
    masked_conv2d_backward_input,
    masked_conv2d_forward,
)
from hypermask_fast.kernels.layers.conv2d_geometry import Geometry, geometry
from hypermask_fast.kernels.masks import weights as mask_weights

BATCH = 32


class Layer(NamedTuple):
    """A convolution of square images with square kernels."""

    source: int
    out: int
    side: int
    kernel: int = 3
    stride: int = 1
    padding: int | str = 1
    groups: int = 1

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return BATCH, self.source, self.side, self.side

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.out, self.source // self.groups, self.kernel, self.kernel

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return BATCH, self.out, self.geometry.height, self.geometry.width

    @property
    def geometry(self) -> Geometry:
        return geometry(self.x_shape, self.weight_shape, self.stride, self.padding, 1)

    @property
    def options(self) -> tuple[int, int | str, int, int]:
        return self.stride, self.padding, 1, self.groups


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


def _fused(kind: str, layer: Layer, dtype: torch.dtype, last: bool) -> Run:
    x = floats(*layer.x_shape, dtype=dtype, last=last)
    w = floats(*layer.weight_shape, dtype=dtype, last=last)
    dy = floats(*layer.y_shape, dtype=dtype, last=last)
    b, z, zb = floats(layer.out, dtype=dtype), floats(*layer.weight_shape), floats(layer.out)
    q, qb = (floats(positive=True) for _ in range(2))
    options: tuple[Any, ...] = layer.options
    if kind == "forward":
        return partial(masked_conv2d_forward, x, w, b, z, zb, q, qb, *options)
    if kind == "input":
        options = (*options, last)
        return partial(masked_conv2d_backward_input, dy, w, z, q, x.shape, *options)
    if kind == "weight":
        return partial(backward.masked_conv2d_backward_weight, dy, x, w, z, q, *options)
    return partial(backward.masked_conv2d_backward_bias, dy, b, zb, qb)


def _with_full_precision(kind: str, layer: Layer, dtype: torch.dtype, last: bool) -> Run:
    """Products of float32's accuracy, where cuDNN would round to tf32."""
    launch = _fused(kind, layer, dtype, last)

    def run() -> object:
        conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        before = conv.fp32_precision
        conv.fp32_precision = "ieee"
        try:
            return launch()
        finally:
            conv.fp32_precision = before

    return run


def _plain(kind: str, layer: Layer, dtype: torch.dtype, last: bool) -> Run:
    """The masked weights and cuDNN."""
    x = floats(*layer.x_shape, dtype=dtype, last=last)
    w = floats(*layer.weight_shape, dtype=dtype, last=last)
    dy = floats(*layer.y_shape, dtype=dtype, last=last)
    b = floats(layer.out, dtype=dtype)
    logits, thresholds = floats(w.numel() + b.numel()), floats(2, positive=True)
    stride, _, dilation, groups = layer.options
    around = layer.geometry.constants["PADDING"]
    given = [stride] * 2, list(around), [dilation] * 2, False, [0, 0], groups

    def forward() -> object:
        (masked, bias), *_ = mask_weights.forward([w, b], logits, thresholds, (True, True))
        assert masked is not None
        options: Any = layer.options
        return F.conv2d(x, masked, bias, *options)

    def gradients(of_x: bool, of_w: bool) -> tuple[torch.Tensor, ...]:
        return torch.ops.aten.convolution_backward(dy, x, w, None, *given, [of_x, of_w, False])

    def weight() -> object:
        grads = [gradients(False, True)[1]]
        return mask_weights.backward([w], logits[: w.numel()], thresholds[:1], grads)

    return {"forward": forward, "input": lambda: gradients(True, False), "weight": weight}[kind]


_PASSES = {"forward": CONFIGS, "input": CONFIGS, "weight": backward.CONFIGS, "bias": ({},)}
_CASES = {
    "zenke_3_32_fp32": ("zenke_3_32", torch.float32, False),
    "zenke_3_32_bf16_last": ("zenke_3_32", torch.bfloat16, True),
    "zenke_64_64_bf16": ("zenke_64_64", torch.bfloat16, False),
    "resnet_16_fp32": ("resnet_16", torch.float32, False),
    "resnet_32_64_fp32": ("resnet_32_64", torch.float32, False),
    "resnet_128_fp32_last": ("resnet_128", torch.float32, True),
}
_NAMES = {"forward": "masked_conv2d"}


def _launch(kind: str, layer: str, dtype: torch.dtype, last: bool) -> Launch:
    arguments = (kind, LAYERS[layer], dtype, last)
    plain = None if kind == "bias" else partial(_plain, *arguments)
    name = _NAMES.get(kind, f"masked_conv2d_{kind}")
    return Launch(partial(_fused, *arguments), name, _PASSES[kind], plain)


LAUNCHES = {
    f"{kind}_{name}": _launch(kind, *case)
    for kind in _PASSES
    for name, case in _CASES.items()
    if kind != "bias" or case[0] == "resnet_128"
}
# Only to be compiled: their sizes do not tell them from those above.
LAUNCHES |= {
    f"{kind}_resnet_128_tf32x3": launch._replace(
        make=partial(_with_full_precision, kind, LAYERS["resnet_128"], torch.float32, False),
        alternative=None,
    )
    for kind in _PASSES
    for launch in [_launch(kind, "resnet_128", torch.float32, False)]
}
GRID = {
    f"{kind}_{layer}_{dtype}{'_last' if last else ''}".replace("torch.", ""): _launch(
        kind, layer, dtype, last
    )
    for layer in LAYERS
    for dtype in (torch.float32, torch.bfloat16)
    for last in (False, True)
    for kind in ("forward", "input", "weight")
}
