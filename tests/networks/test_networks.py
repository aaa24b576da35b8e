"""The published networks: parameter counts, execution order, shapes, shortcut, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hypermask_fast.errors import ConfigError
from hypermask_fast.networks import (
    FC1024,
    MLP,
    GEMResNet18,
    LeNet300_100,
    ResNet,
    ZenkeNet,
    ZenkeNet64,
    make_network,
)
from hypermask_fast.networks.resnet import _shortcut


def _count(parameters) -> int:
    return sum(p.numel() for p in parameters)


def _count_norm(net: nn.Module) -> int:
    return sum(_count(m.parameters()) for m in net.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        pytest.param(lambda: MLP(1024, (1000, 1000), 10), 2_036_010, id="permuted-mnist-10"),
        pytest.param(lambda: MLP(1024, (1000, 1000), 100), 2_126_100, id="permuted-mnist-100"),
        pytest.param(lambda: MLP(1024, (1000, 1000), 1000), 3_027_000, id="permuted-mnist-1000"),
        pytest.param(lambda: MLP(784, (400, 400), 2), 475_202, id="split-mnist-2"),
        pytest.param(lambda: MLP(784, (400, 400), 10), 478_410, id="split-mnist-10"),
        pytest.param(lambda: MLP(784, (100, 100), 10), 89_610, id="small-10"),
        pytest.param(lambda: MLP(784, (100, 100), 100), 98_700, id="small-100"),
        pytest.param(lambda: MLP(784, (1024, 1024), 10, bias=False), 1_861_632, id="fc1024-10"),
        pytest.param(lambda: MLP(784, (1024, 1024), 500, bias=False), 2_363_392, id="fc1024-500"),
        pytest.param(lambda: LeNet300_100(2), 265_400, id="lenet-2"),
        pytest.param(lambda: LeNet300_100(10), 266_200, id="lenet-10"),
        pytest.param(lambda: LeNet300_100(100), 275_200, id="lenet-100"),
        pytest.param(lambda: LeNet300_100(500), 315_200, id="lenet-500"),
        pytest.param(lambda: FC1024(784, 10), 1_861_632, id="fc1024-10"),
        pytest.param(lambda: FC1024(784, 500), 2_363_392, id="fc1024-500"),
        pytest.param(lambda: GEMResNet18(5), 1_090_940, id="gem-resnet18-5"),
        pytest.param(lambda: GEMResNet18(10), 1_091_740, id="gem-resnet18-10"),
        pytest.param(lambda: GEMResNet18(20), 1_093_340, id="gem-resnet18-20"),
        pytest.param(lambda: ZenkeNet(10), 1_250_858, id="zenkenet-10"),
        pytest.param(lambda: ZenkeNet(60), 1_276_508, id="zenkenet-60"),
        pytest.param(lambda: ZenkeNet64(5), 175_301, id="zenkenet64-5"),
        pytest.param(lambda: ResNet(5, 1, 10), 465_290, id="resnet32-10"),
        pytest.param(lambda: ResNet(5, 1, 60), 468_540, id="resnet32-60"),
        pytest.param(lambda: ResNet(3, 1, 10), 270_410, id="resnet20-10"),
    ],
)
def test_parameter_count_is_the_published_one(build, expected):
    assert _count(build().parameters()) == expected


@pytest.mark.parametrize(
    ("num_classes", "expected"), [(5, 1_066_885), (10, 1_067_530), (20, 1_068_820), (50, 1_072_690)]
)
def test_hypermask_resnet_count_without_norms(num_classes, expected):
    net = ResNet(3, 2, num_classes)
    assert _count_norm(net) == 2_720
    assert _count(net.parameters()) - 2_720 == expected
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 19


def test_resnet_without_conv_biases_lacks_one_number_a_channel():
    with_bias, without = ResNet(3, 2, 10), ResNet(3, 2, 10, bias=False)
    assert _count(with_bias.parameters()) - _count(without.parameters()) == 16 + 6 * (32 + 64 + 128)
    assert without.classifier.bias is not None


NETWORKS = [
    pytest.param("mlp", (784,), {"hidden": [30, 20]}, 20, id="mlp"),
    pytest.param("mlp", (1, 28, 28), {"hidden": [30, 20], "bias": False}, 20, id="mlp-image"),
    pytest.param("lenet-300-100", (1, 28, 28), {}, 100, id="lenet"),
    pytest.param("zenkenet", (3, 32, 32), {}, 512, id="zenkenet"),
    pytest.param("zenkenet", (1, 32, 32), {"dropout": False}, 512, id="zenkenet-grey"),
    pytest.param("zenkenet64", (3, 64, 64), {}, 12544, id="zenkenet64"),
    pytest.param("resnet", (3, 32, 32), {"n": 1, "k": 2}, 128, id="resnet"),
    pytest.param("fc1024", (1, 28, 28), {}, 1024, id="fc1024"),
    pytest.param("gem-resnet18", (3, 32, 32), {}, 160, id="gem-resnet18"),
    pytest.param("resnet", (2, 9, 7), {"n": 2, "k": 1, "bias": False}, 64, id="resnet-odd"),
]


@pytest.mark.parametrize(("name", "shape", "options", "width"), NETWORKS)
def test_logits_are_the_classifier_of_the_features(name, shape, options, width):
    net = make_network(name, shape, 7, **options).eval()
    x = torch.randn(3, *shape)
    features = net.features(x)
    assert features.shape == (3, width)
    logits = net(x)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits, net.classifier(features), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "shape", "options", "width"), NETWORKS)
def test_parameters_are_named_in_execution_order(name, shape, options, width):
    net = make_network(name, shape, 7, **options)
    executed = []
    for module_name, module in net.named_modules():
        own = [f"{module_name}.{key}" for key, _ in module.named_parameters(recurse=False)]
        module.register_forward_hook(lambda *_, own=own: executed.extend(own))
    net(torch.randn(2, *shape))
    assert [key for key, _ in net.named_parameters()] == executed


@pytest.mark.parametrize(("name", "shape", "options", "width"), NETWORKS)
def test_every_parameter_gets_a_gradient(name, shape, options, width):
    net = make_network(name, shape, 7, **options).eval()
    net(torch.randn(4, *shape)).square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None] == []


def test_mlp_is_what_numpy_computes():
    net = MLP(6, (5, 4), 3).double()
    x = torch.randn(2, 2, 3, dtype=torch.float64)
    y = x.numpy().reshape(2, 6)
    for layer in net.hidden:
        y = np.maximum(y @ layer.weight.detach().numpy().T + layer.bias.detach().numpy(), 0)
    y = y @ net.classifier.weight.detach().numpy().T + net.classifier.bias.detach().numpy()
    np.testing.assert_allclose(net(x).detach().numpy(), y, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("channels", "stride", "size"),
    [
        pytest.param(4, 1, 5, id="identity"),
        pytest.param(8, 1, 6, id="wider"),
        pytest.param(8, 2, 6, id="half-even"),
        pytest.param(8, 2, 7, id="half-odd"),
        pytest.param(7, 2, 4, id="odd-padding"),
    ],
)
def test_shortcut_subsamples_and_pads_on_both_sides(channels, stride, size):
    x = torch.randn(2, 4, size, size)
    expected = np.zeros((2, channels, -(-size // stride), -(-size // stride)), np.float32)
    before = (channels - 4) // 2
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            expected[:, before : before + 4, row, column] = x[:, :, stride * row, stride * column]
    np.testing.assert_array_equal(_shortcut(x, channels, stride).numpy(), expected)


def test_resnet_with_silent_blocks_is_a_chain_of_shortcuts():
    net = ResNet(2, 2, 128, in_channels=16, track_running_stats=True).double().eval()
    with torch.no_grad():
        for block in net.blocks:
            block.conv2.weight.zero_()
            block.conv2.bias.zero_()
        net.conv.weight.copy_(torch.eye(16, dtype=torch.float64)[:, :, None, None] * _centre())
        net.conv.bias.zero_()
    x = torch.rand(3, 16, 8, 8, dtype=torch.float64)
    # 16 -> 32 -> 64 -> 128 channels: 8, 16 and 32 zeros on each side; every fourth pixel is left.
    expected = np.zeros((3, 128))
    expected[:, 56:72] = x.numpy()[:, :, ::4, ::4].mean((2, 3))
    running_variance_only = 1 / np.sqrt(1 + net.bn.eps)
    np.testing.assert_allclose(
        net.features(x).detach().numpy(), expected * running_variance_only, rtol=1e-12
    )


def _centre() -> torch.Tensor:
    kernel = torch.zeros(3, 3, dtype=torch.float64)
    kernel[1, 1] = 1
    return kernel


def test_resnet_strides_only_at_the_second_and_third_group():
    net = ResNet(2, 1, 5)
    assert [block.conv1.stride for block in net.blocks] == [(s, s) for s in (1, 1, 2, 1, 2, 1)]
    assert {block.conv2.stride for block in net.blocks} == {(1, 1)}


@pytest.mark.parametrize("track", [False, True])
def test_running_statistics_decide_whether_evaluation_depends_on_the_batch(track):
    net = make_network("resnet", (3, 8, 8), 4, n=1, k=1, track_running_stats=track).double().eval()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.track_running_stats for m in norms] == [track] * 7
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    alike = torch.allclose(net(x)[:3], net(x[:3]), rtol=1e-9, atol=1e-12)
    assert alike is track


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        pytest.param(lambda on: ZenkeNet(10, dropout=on), [0.25, 0.25, 0.5], id="zenkenet"),
        pytest.param(lambda on: ZenkeNet64(10, dropout=on), [0.25, 0.25], id="zenkenet64"),
    ],
)
def test_dropout_rates(build, expected):
    def rates(net: nn.Module) -> list[float]:
        return [m.p for m in net.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]

    assert rates(build(True)) == expected
    assert rates(build(False)) == []


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        pytest.param("zenknet", (3, 32, 32), {}, r"'zenknet' .*mean 'zenkenet'", id="name"),
        pytest.param("zenkenet", (3, 64, 64), {}, r"32, 32\), not \(3, 64, 64\)", id="zenkenet"),
        pytest.param("zenkenet64", (3, 32, 32), {}, r"64\), not \(3, 32, 32\)", id="zenkenet64"),
        pytest.param("resnet", (784,), {}, r"width\), not \(784,\)", id="resnet"),
        pytest.param("lenet-300-100", (3, 32, 32), {}, r"not \(3, 32, 32\)", id="lenet"),
        pytest.param("mlp", (), {}, r"input_shape is \(\); give", id="no-shape"),
        pytest.param("mlp", (3, 0), {}, r"input_shape=\(3, 0\)", id="empty"),
        pytest.param("gem-resnet18", (784,), {}, r"not \(784,\)", id="gem-resnet18"),
        pytest.param("mlp", (3,), {"hiden": [4]}, r"'hiden' .*mean 'hidden'", id="option"),
        pytest.param(
            "mlp", (3,), {"hidden": [4, 0]}, r"mlp_hidden=\(4, 0\) .* at least 1", id="width"
        ),
        pytest.param("lenet-300-100", (784,), {"bias": True}, "give none", id="no-options"),
        pytest.param("resnet", (3, 8, 8), {"n": 0}, "resnet_n=0", id="no-blocks"),
    ],
)
def test_bad_settings_are_named(name, shape, options, message):
    with pytest.raises(ConfigError, match=message):
        make_network(name, shape, 5, **options)


def test_no_classes_is_an_error():
    with pytest.raises(ConfigError, match="num_classes=0"):
        make_network("mlp", (4,), 0)
