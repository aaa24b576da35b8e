"""Where the tensors of the masked convolution's kernels lie, and how far apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.support.masked_conv2d_checks import (
    by_kernels,
    channels_last,
    check,
    full_precision,
    some_gradient,
    some_layer,
)
from tests.support.masked_op_checks import HALF, Layer, far_apart, sliced, some

pytest.importorskip("triton")

import triton.language as tl

from hypermask_fast.kernels.layers import conv2d as forward
from hypermask_fast.kernels.layers import conv2d_geometry


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    with full_precision():
        yield


def _turned(tensor: Tensor) -> Tensor:
    """The same values with the axes stored in the opposite order."""
    return tensor.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda layer, dy: (layer._replace(x=sliced(layer.x)), dy), id="x-sliced"),
        pytest.param(lambda layer, dy: (layer._replace(x=_turned(layer.x)), dy), id="x-turned"),
        pytest.param(
            lambda layer, dy: (layer._replace(x=layer.x[:1, :1].expand(2, 3, -1, -1)), dy),
            id="x-expanded",
        ),
        pytest.param(
            lambda layer, dy: (
                layer._replace(
                    weight=sliced(layer.weight), weight_logits=_turned(layer.weight_logits)
                ),
                dy,
            ),
            id="w-sliced-z-turned",
        ),
        pytest.param(
            lambda layer, dy: (
                layer._replace(bias=sliced(layer.bias), bias_logits=sliced(layer.bias_logits)),
                dy,
            ),
            id="bias-sliced",
        ),
        pytest.param(
            lambda layer, dy: (
                layer._replace(bias=layer.bias.repeat_interleave(2)[::2]),
                dy,
            ),
            id="bias-every-second",
        ),
        pytest.param(lambda layer, dy: (layer, sliced(dy)), id="dy-sliced"),
        pytest.param(lambda layer, dy: (layer, _turned(dy)), id="dy-turned"),
        pytest.param(lambda layer, dy: (layer, dy[:1].expand_as(dy)), id="dy-expanded"),
        pytest.param(lambda layer, dy: (layer, dy[:1, :1, :1, :1].expand_as(dy)), id="dy-of-sum"),
        pytest.param(lambda layer, dy: (layer, torch.cat((dy, dy), 1)[:, 4:]), id="dy-of-cat"),
        pytest.param(
            lambda layer, dy: (layer._replace(x=channels_last(layer.x)), dy), id="x-last-dy-nchw"
        ),
        pytest.param(lambda layer, dy: (layer, channels_last(dy)), id="x-nchw-dy-last"),
    ],
)
def test_layouts(
    change: Callable[[Layer, Tensor], tuple[Layer, Tensor]], device: torch.device
) -> None:
    layer = some_layer((2, 3, 6, 5), (4, 3, 3, 3), device=device)
    layer, grad = change(layer, some(2, 4, 6, 5).to(device))
    check(layer, grad, padding=1)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels-last"])
def test_results_have_the_format_of_their_tensors(last: bool, device: torch.device) -> None:
    layer = some_layer((2, 3, 6, 5), (4, 3, 3, 3), last=last, device=device)
    grad = some_gradient(layer)
    y, dx, dw, _, dz, _ = by_kernels(layer, grad)
    layout = torch.channels_last if last else torch.contiguous_format
    assert all(t.is_contiguous(memory_format=layout) for t in (y, dx, dw))
    assert dz.is_contiguous()


def test_an_image_of_one_channel_keeps_its_format(device: torch.device) -> None:
    layer = some_layer((2, 1, 6, 5), (4, 1, 3, 3), device=device)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = layer.x.clone(memory_format=layout)
        x = x.as_strided(x.shape, (30, 1, 5, 1)) if layout == torch.channels_last else x
        y = forward.masked_conv2d_forward(x, *layer[1:])
        assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("axis", "stride"),
    [
        pytest.param(0, 2**31 + 8, id="image-stride-past-int32"),
        pytest.param(0, 2**30 + 8, id="images-past-int32"),
        pytest.param(1, 2**30 + 8, id="channels-past-int32"),
        pytest.param(2, 2**29 + 8, id="rows-past-int32"),
    ],
)
def test_offsets_past_32_bits(axis: int, stride: int, device: torch.device) -> None:
    near = some_layer((3, 3, 5, 4), (3, 3, 3, 3), HALF, device=device)
    near = near._replace(x=near.x[:2] if stride > 2**31 else near.x)
    grad = some_gradient(near, padding=1)
    right = by_kernels(near, grad, padding=1)
    far = near._replace(x=far_apart(near.x, axis, stride))
    for found, close in zip(by_kernels(far, grad, padding=1), right, strict=True):
        assert torch.equal(found, close)
    del far
    far_grad = far_apart(grad, axis, stride)
    for found, close in zip(by_kernels(near, far_grad, padding=1), right, strict=True):
        assert torch.equal(found, close)


def test_offsets_are_wide_where_they_must_be() -> None:
    shape = conv2d_geometry.geometry((1, 4, 8, 8), (4, 4, 3, 3), 1, 1, 1)
    small = torch.empty(4, 4, 8, 8, device="meta")
    large = torch.empty(4, 4, 2**15, 2**14, device="meta")
    # Only with the taps beyond its edges is an image of just 2^31 elements too large.
    assert conv2d_geometry.index_type(shape, (small, large[:, :3]), (small,)) == tl.int32
    assert conv2d_geometry.index_type(shape, (small, large)) == tl.int64
    assert conv2d_geometry.index_type(shape, (small,), (small, large[:, :1])) == tl.int64
