"""What cannot be masked is refused by name, and left as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from hypermask_fast import networks, unconvert
from hypermask_fast.errors import ConfigError
from hypermask_fast.layers.masked import MaskedLinear
from tests.support.conversion_cases import Branched, Tokens, normed, snapshot, wrap


class Block(nn.Module):
    """One unusual layer beside a linear one; only converted, never run."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.odd = layer


def _tied() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].register_parameter("weight", net.get_parameter("0.weight"))
    return net


def _shared() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


def _patched() -> nn.Module:
    layer = nn.Linear(4, 4)
    vars(layer)["forward"] = lambda x: x
    return Block(layer)


def _extended() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_parameter("scale", nn.Parameter(torch.ones(4)))
    return Block(layer)


def _integers() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    return Block(layer)


def _quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Block(torch.ao.nn.quantized.dynamic.Linear(4, 4))


def _weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nn.utils.weight_norm(layer)


REFUSED = [
    pytest.param(
        lambda: Block(nn.MultiheadAttention(4, 2)),
        r"odd is a MultiheadAttention.*exclude=\['odd'\]",
        id="attention",
    ),
    pytest.param(
        lambda: Block(nn.TransformerEncoderLayer(4, 2)),
        "odd is a TransformerEncoderLayer, which reads its layers' weights",
        id="transformer",
    ),
    pytest.param(lambda: Block(nn.LSTM(4, 4)), "odd is a LSTM with parameters", id="lstm"),
    pytest.param(lambda: Block(nn.GRU(4, 4)), "odd is a GRU with parameters", id="gru"),
    pytest.param(lambda: Block(nn.Embedding(9, 4)), "odd is a Embedding", id="embedding"),
    pytest.param(lambda: Block(nn.Conv1d(4, 4, 1)), "odd is a Conv1d", id="conv1d"),
    pytest.param(
        lambda: Block(nn.ConvTranspose2d(4, 4, 1)), "odd is a ConvTranspose2d", id="transposed"
    ),
    pytest.param(lambda: Block(nn.PReLU()), "odd is a PReLU", id="prelu"),
    pytest.param(
        lambda: Block(nn.BatchNorm3d(4, affine=False)),
        "odd is a BatchNorm3d with running statistics",
        id="shared-statistics",
    ),
    pytest.param(Tokens, r"the network itself is a Tokens.*exclude=\['token'\]", id="token"),
    pytest.param(_tied, "2.weight is tied to 0.weight.*exclude", id="tied"),
    pytest.param(_shared, "2.weight is tied to 0.weight", id="shared-layer"),
    pytest.param(
        lambda: Block(parametrizations.weight_norm(nn.Linear(4, 4))),
        "odd is a ParametrizedLinear, whose weight is the result of a parametrization",
        id="parametrized",
    ),
    pytest.param(
        lambda: Block(parametrizations.spectral_norm(nn.Conv2d(4, 4, 1, bias=False))),
        "odd is a ParametrizedConv2d",
        id="parametrized-without-bias",
    ),
    pytest.param(
        lambda: Block(_weight_norm(nn.Linear(4, 4))),
        "odd is a Linear whose parameters are bias, weight_g, weight_v",
        id="old-weight-norm",
    ),
    pytest.param(
        lambda: Block(prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5)),
        "odd is a Linear whose parameters are bias, weight_orig",
        id="pruned",
    ),
    pytest.param(_extended, "odd is a Linear whose parameters are bias, scale, weight", id="extra"),
    pytest.param(lambda: Block(nn.LazyLinear(4)), "odd.weight has no shape yet", id="lazy"),
    pytest.param(_integers, "odd.weight is torch.int8.*quantised", id="integers"),
    pytest.param(_quantised, "odd is a Linear, which is quantised", id="quantised"),
    pytest.param(_patched, "odd is a Linear whose forward was replaced", id="patched-forward"),
    pytest.param(lambda: nn.Sequential(nn.ReLU()), "Sequential has nothing to mask", id="empty"),
    pytest.param(lambda: nn.Sequential(nn.BatchNorm1d(3)), "nothing to mask", id="only-norms"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_cannot_be_masked_is_refused_by_name(
    make: Callable[[], nn.Module], message: str
) -> None:
    net = make()
    before = snapshot(net)
    with pytest.raises(ConfigError, match=message):
        wrap(net)
    assert snapshot(net) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"hidden": (0,)}, "hidden", id="hypernetwork"),
        pytest.param({"activation": "gelu"}, "activation", id="activation"),
        pytest.param({"head": "chunked", "init": "hyperfan"}, "chunked", id="hyperfan-chunked"),
        pytest.param({"exempt": "3.bais"}, "did you mean '3.bias'", id="exempt"),
        pytest.param({"exempt": "1.bias"}, "give a masked parameter", id="exempt-norm"),
        pytest.param({"exclude": "nothing"}, "'nothing' matches no module", id="exclude"),
        pytest.param({"exclude": "[03]"}, "nothing to mask", id="exclude-all"),
        pytest.param(
            {"example_input": torch.randn(2, 7)}, r"shape \(2, 7\).*Sequential", id="example"
        ),
    ],
)
def test_a_refused_setting_leaves_the_network_as_it_was(
    options: dict[str, Any], message: str
) -> None:
    net = normed()
    net.get_parameter("0.bias").requires_grad_(False)
    before = snapshot(net)
    with pytest.raises(ValueError, match=message):
        wrap(net, **options)
    assert snapshot(net) == before
    wrap(net)


def test_a_norm_that_cannot_be_per_task_leaves_the_network_as_it_was() -> None:
    net = networks.ResNet(1, 1, 3)
    before = snapshot(net)
    with pytest.raises(ConfigError, match="bn is a BatchNorm2d with track_running_stats=False"):
        wrap(net)
    assert snapshot(net) == before
    wrap(net, bn="batch")


def test_a_second_learner_on_the_same_network_is_refused() -> None:
    net = normed()
    wrap(net)
    for again in (net, nn.Sequential(net), net[0]):
        with pytest.raises(ConfigError, match="belongs to a learner already; unconvert"):
            wrap(again)
    unconvert(net)
    wrap(net)


def test_a_layer_with_a_mask_of_its_own_is_refused() -> None:
    layer = MaskedLinear(4, 3)
    layer.set_mask(torch.randn(3, 4))
    with pytest.raises(ConfigError, match=r"1 has a mask already; call its clear_mask\(\)"):
        wrap(nn.Sequential(nn.Linear(4, 4), layer))
    layer.clear_mask()
    wrap(nn.Sequential(nn.Linear(4, 4), layer))


def test_tied_weights_can_be_excluded_together_only() -> None:
    net = _tied()
    with pytest.raises(ConfigError, match="tied"):
        wrap(net, exclude=["2.weight"])
    wrap(net, exclude=["0.weight", "2.weight"])
    assert not net.get_parameter("0.weight").requires_grad


def test_a_network_that_reads_weights_past_its_layers_is_refused() -> None:
    class Functional(Branched):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.stem.weight)

    with pytest.raises(ConfigError, match="no masked layer of Functional ran"):
        wrap(Functional(), example_input=torch.randn(2, 5))
