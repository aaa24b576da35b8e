"""The masked linear kernels against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import Tensor

from tests.support.kernel_checks import assert_as_exact, poisoned
from tests.support.masked_linear_checks import (
    bounds,
    by_autograd,
    by_kernels,
    check,
    every,
    some_layer,
)
from tests.support.masked_op_checks import (
    BIAS,
    BRAIN,
    FLOAT,
    HALF,
    Layer,
    double,
    far_apart,
    sliced,
    some,
)

pytest.importorskip("triton")

from hypermask_fast.kernels.layers import linear as forward
from hypermask_fast.kernels.layers import linear_backward as backward
from hypermask_fast.kernels.tuning import forced


@contextmanager
def large_tiles(device: torch.device) -> Iterator[None]:
    """Fewer steps for the interpreter, where each takes milliseconds; a GPU has its defaults."""
    tile = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "GROUP": 2}
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(every({**tile, "SPLIT": 0}))
            stack.enter_context(forced("masked_linear_weight", tile))
        yield


@pytest.mark.parametrize(
    ("sizes", "dtypes"),
    [
        pytest.param((1, 1, 1), (FLOAT,), id="ones"),
        pytest.param((2, 10, 16), (FLOAT,), id="2-10-16"),
        pytest.param((7, 33, 129), (FLOAT,), id="odd"),
        pytest.param((7, 33, 129), (BRAIN,), id="odd-bfloat16"),
        pytest.param((7, 33, 129), (HALF,), id="odd-float16"),
        pytest.param((130, 24, 40), (HALF,), id="many-rows-float16"),
        pytest.param((7, 33, 129), (BRAIN, BRAIN, BRAIN), id="bfloat16-logits"),
        pytest.param((7, 33, 129), (HALF, HALF, HALF), id="float16-logits"),
        pytest.param((7, 33, 129), (FLOAT, FLOAT, BRAIN), id="only-logits-bfloat16"),
        pytest.param((7, 33, 129), (BRAIN, FLOAT), id="autocast-bfloat16"),
        pytest.param((7, 33, 129), (HALF, FLOAT), id="autocast-float16"),
        pytest.param((3, 65, 1), (FLOAT,), id="one-input"),
        pytest.param((65, 1, 70), (FLOAT,), id="one-output"),
        pytest.param((1, 20, 1000), (FLOAT,), id="one-row-split"),
    ],
)
def test_sizes_and_dtypes(
    sizes: tuple[int, int, int], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    layer = some_layer(sizes, *dtypes, device=device)
    check(layer, some(*sizes[:2], dtype=dtypes[0]).to(device))


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        pytest.param((128, 400, 784), FLOAT, id="digits"),
        pytest.param((128, 10, 400), BRAIN, id="last-layer"),
        pytest.param((64, 512, 512), HALF, id="square"),
    ],
)
def test_large_sizes(sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    layer = some_layer(sizes, dtype, device=device)
    with large_tiles(device):
        check(layer, some(*sizes[:2], dtype=dtype).to(device))


@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("threshold", [True, False], ids=["threshold", "dense"])
def test_bias_and_threshold(bias: str, threshold: bool, device: torch.device) -> None:
    layer = some_layer((5, 18, 37), bias=bias, threshold=threshold, device=device)
    check(layer, some(5, 18).to(device))


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous().t()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda layer, dy: (layer._replace(x=_transposed(layer.x)), dy), id="x.t"),
        pytest.param(lambda layer, dy: (layer._replace(x=sliced(layer.x)), dy), id="x-sliced"),
        pytest.param(
            lambda layer, dy: (layer._replace(x=layer.x[:1].expand(6, -1)), dy), id="x-expanded"
        ),
        pytest.param(lambda layer, dy: (layer, _transposed(dy)), id="dy.t"),
        pytest.param(lambda layer, dy: (layer, sliced(dy)), id="dy-sliced"),
        pytest.param(lambda layer, dy: (layer, dy[:1].expand(6, -1)), id="dy-rows-expanded"),
        pytest.param(lambda layer, dy: (layer, dy[:1, :1].expand(6, 32)), id="dy-of-sum"),
        pytest.param(lambda layer, dy: (layer, torch.cat((dy, dy), 1)[:, 32:]), id="dy-of-cat"),
        pytest.param(
            lambda layer, dy: (layer._replace(weight=_transposed(layer.weight)), dy), id="w.t"
        ),
        pytest.param(
            lambda layer, dy: (layer._replace(weight_logits=sliced(layer.weight_logits)), dy),
            id="z-sliced",
        ),
        pytest.param(
            lambda layer, dy: (
                layer._replace(bias=sliced(layer.bias), bias_logits=sliced(layer.bias_logits)),
                dy,
            ),
            id="bias-sliced",
        ),
        pytest.param(
            lambda layer, dy: (layer._replace(x=layer.x.view(2, 3, 48)), dy.view(2, 3, 32)),
            id="three-axes",
        ),
        pytest.param(lambda layer, dy: (layer._replace(x=layer.x[0]), dy[0]), id="one-axis"),
    ],
)
def test_layouts(
    change: Callable[[Layer, Tensor], tuple[Layer, Tensor]], device: torch.device
) -> None:
    layer = some_layer((6, 32, 48), device=device)
    check(*change(layer, some(6, 32).to(device)))


@pytest.mark.parametrize(
    ("height", "stride"),
    [
        pytest.param(2, 2**31 + 8, id="stride-past-int32"),
        pytest.param(520, 2**22 + 8, id="rows-past-int32"),
    ],
)
def test_offsets_past_32_bits(height: int, stride: int, device: torch.device) -> None:
    layer = some_layer((height, 4, 5), HALF, device=device)
    layer = layer._replace(x=far_apart(layer.x, 0, stride))
    grad = some(height, 4, dtype=HALF).to(device)
    near = layer._replace(x=layer.x.contiguous())
    for far, close in zip(by_kernels(layer, grad), by_kernels(near, grad), strict=True):
        assert torch.equal(far, close)
    gradients = backward.masked_linear_backward_bias(far_apart(grad, 0, stride), *layer[2::2])
    assert torch.equal(gradients[0], by_kernels(near, grad)[3])


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((0, 5, 7), id="no-rows"),
        pytest.param((3, 0, 7), id="no-outputs"),
        pytest.param((3, 5, 0), id="no-inputs"),
    ],
)
def test_empty(sizes: tuple[int, int, int], device: torch.device) -> None:
    layer = some_layer(sizes, device=device)
    grad = some(*sizes[:2]).to(device)
    for found, right in zip(by_kernels(layer, grad), by_autograd(layer, grad), strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("kind", forward.CONFIGS)
def test_shipped_configurations(kind: str, device: torch.device) -> None:
    dtype = BRAIN if "16bit" in kind else FLOAT
    layer = some_layer((18, 70, 130), dtype, device=device)
    grad = some(18, 70, dtype=dtype).to(device)
    exact, allowed = by_autograd(double(layer), grad.double()), bounds(layer, grad)
    for config in forward.CONFIGS[kind]:
        with every(config), poisoned():
            y = forward.masked_linear_forward(*layer)
            dx = forward.masked_linear_backward_input(grad, layer.weight, *layer[3:6:2])
        assert_as_exact(y, exact[0], allowed[0], dtype)
        assert_as_exact(dx, exact[1], allowed[1], dtype)


@pytest.mark.parametrize("kind", backward.CONFIGS)
def test_shipped_configurations_of_the_gradient(kind: str, device: torch.device) -> None:
    dtype = BRAIN if kind == "16bit" else FLOAT
    layer = some_layer((18, 70, 130), dtype, device=device)
    grad = some(18, 70, dtype=dtype).to(device)
    exact, allowed = by_autograd(double(layer), grad.double()), bounds(layer, grad)
    for config in backward.CONFIGS[kind]:
        with forced("masked_linear_weight", config), poisoned():
            dw, dz = backward.masked_linear_backward_weight(grad, layer.x, *layer[1::2][:3])
        assert_as_exact(dw, exact[2], allowed[2], dtype)
        assert_as_exact(dz, exact[4], allowed[4])


@pytest.mark.parametrize("split", [2, 3, 4], ids="in-{}".format)
def test_parts_of_a_sum(split: int, device: torch.device) -> None:
    # Five steps: two parts of unequal length, three, and four of which the last is empty.
    config = {**forward.CONFIGS["rows16_32bit"][0], "BLOCK_K": 32, "SPLIT": split}
    layer = some_layer((3, 140, 140), device=device)
    with every(config):
        check(layer, some(3, 140).to(device))


def test_few_tiles_are_split_and_many_are_not() -> None:
    assert forward._splits(tiles=8, rows=1, depth=4096, step=64) == 16
    assert forward._splits(tiles=100, rows=16, depth=4096, step=64) == 2
    assert forward._splits(tiles=8, rows=128, depth=784, step=32) == 6
    assert forward._splits(tiles=129, rows=128, depth=4096, step=32) == 1
    assert forward._splits(tiles=1, rows=1, depth=1, step=64) == 1


def test_two_runs_have_the_same_bits(device: torch.device) -> None:
    layer = some_layer((20, 70, 300), device=device)
    grad = some(20, 70).to(device)
    for first, second in zip(by_kernels(layer, grad), by_kernels(layer, grad), strict=True):
        assert torch.equal(first, second)


def test_bias_gradients_of_many_rows(device: torch.device) -> None:
    layer = some_layer((700, 70, 2), BRAIN, device=device)
    check(layer, some(700, 70, dtype=BRAIN).to(device))


def test_values_on_the_threshold_stay(device: torch.device) -> None:
    """Saturated masks are all 1, of logits that differ: a threshold of 1 keeps them."""
    z = torch.tensor([[12.0, -20.0, 9.5, 8.0, 0.0, 3.0]], device=device)
    x = torch.eye(6, device=device)
    weight, one = torch.full_like(z, 2.0), torch.tensor(1.0, device=device)
    y = forward.masked_linear_forward(x, weight, None, z, None, one)
    assert y.flatten().tolist() == [2.0, 2.0, 2.0, 0.0, 0.0, 0.0]


def test_a_logit_that_is_not_a_number_stays_one(device: torch.device) -> None:
    layer = some_layer((3, 4, 5), device=device)
    layer.weight_logits[2, 1] = torch.nan
    y, dx, dw, _, dz, _ = by_kernels(layer, some(3, 4).to(device))
    for tensor, places in ((y, (slice(None), 2)), (dx, (slice(None), 1))):
        assert tensor[places].isnan().all()
        assert tensor.isnan().sum() == 3
    for tensor in (dw, dz):
        assert tensor.isnan().nonzero().tolist() == [[2, 1]]
