"""What cannot be masked is refused by name, and left as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import hypermask_fast as hmf
from hypermask_fast import networks, unconvert
from hypermask_fast.errors import ConfigError
from hypermask_fast.layers.masked import MaskedLinear
from tests.support.conversion_cases import normed, snapshot, wrap


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


class _StatisticsOfItsOwn(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


def _norms_tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.LayerNorm(4))
    net[2].register_parameter("weight", net.get_parameter("1.weight"))
    return net


def _patched_norm() -> nn.Module:
    layer = nn.BatchNorm1d(4)
    vars(layer)["forward"] = lambda x: x
    return Block(layer)


class _CannotBeExtended(nn.Linear):
    def __init_subclass__(cls, *, name: str) -> None:
        pass


class _Statistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))


REFUSED = [
    pytest.param(
        lambda: Block(_Statistics()),
        r"odd is a _Statistics, with running statistics.*exclude=\['odd'\]",
        id="shared-statistics",
    ),
    pytest.param(
        lambda: Block(_StatisticsOfItsOwn(4)),
        "odd is a _StatisticsOfItsOwn, with running statistics and a forward of its own",
        id="norm-with-its-own-forward",
    ),
    pytest.param(_patched_norm, "odd is a BatchNorm1d, whose forward was replaced", id="patched"),
    pytest.param(_norms_tied, "1.weight is tied to another parameter", id="tied-norms"),
    pytest.param(
        lambda: Block(nn.LazyLinear(4)), "odd is a LazyLinear, which has no shape yet", id="lazy"
    ),
    pytest.param(
        lambda: Block(nn.LazyBatchNorm1d(affine=False)), "odd is a LazyBatchNorm1d", id="lazy-norm"
    ),
    pytest.param(
        _integers, "odd is a Linear, whose weight is torch.int8.*quantised", id="integers"
    ),
    pytest.param(_quantised, "odd is a Linear, which is quantised", id="quantised"),
    pytest.param(
        lambda: Block(torch.jit.script(nn.Linear(4, 4))),
        "odd is a RecursiveScriptModule, which TorchScript compiled",
        id="scripted",
    ),
    pytest.param(
        lambda: Block(_CannotBeExtended(4, 4)),
        "odd is a _CannotBeExtended, a class that cannot be extended",
        id="class",
    ),
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
    with pytest.raises(
        ConfigError,
        match=r"1 is a MaskedLinear, which has a mask already \(call its clear_mask\(\)",
    ):
        wrap(nn.Sequential(nn.Linear(4, 4), layer))
    layer.clear_mask()
    wrap(nn.Sequential(nn.Linear(4, 4), layer))


def test_all_that_is_refused_is_named_at_once() -> None:
    net = nn.Sequential(_Statistics(), nn.Linear(4, 4), _StatisticsOfItsOwn(4))
    message = r"0 is a _Statistics.*and 2 is a _StatisticsOfItsOwn.*exclude=\['0', '2'\] to leave"
    with pytest.raises(ConfigError, match=message) as refused:
        wrap(net)
    assert "; " in str(refused.value)
    wrap(net, exclude=["0", "2"])


SHARED = [
    pytest.param(
        lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "ParametrizedLinear", id="weight"
    ),
    pytest.param(
        lambda: parametrizations.spectral_norm(nn.Linear(4, 4, bias=False)),
        "ParametrizedLinear",
        id="without-bias",
    ),
    pytest.param(lambda: _weight_norm(nn.Linear(4, 4)), "Linear", id="old-weight-norm"),
    pytest.param(
        lambda: prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5), "Linear", id="pruned"
    ),
    pytest.param(lambda: nn.Embedding(4, 4, max_norm=1.0), "Embedding", id="max-norm"),
    pytest.param(lambda: nn.EmbeddingBag(4, 4, sparse=True), "EmbeddingBag", id="sparse"),
]


@pytest.mark.parametrize(("make", "kind"), SHARED)
def test_what_cannot_be_masked_is_shared_with_a_warning(
    make: Callable[[], nn.Module], kind: str
) -> None:
    net = Block(make())
    before = snapshot(net)
    own = {name for name, _ in net.named_parameters() if name.startswith("odd")}
    message = rf"odd \({kind}\) cannot be masked.*shared=\['odd'\]"
    with pytest.warns(UserWarning, match=message):
        learner = wrap(net)
    reasons = {entry["name"]: entry["reason"] for entry in learner.manifest()}
    assert {name for name in reasons if reasons[name].startswith("shared")} == own
    assert all(p.requires_grad for p in net.parameters())
    unconvert(net)
    assert snapshot(net) == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrap(net, shared="odd")
    unconvert(net)
    wrap(net, exclude="odd")
    unconvert(net)
    # Neither can a copy of each task reach it.
    with pytest.raises(ConfigError, match="odd is a "):
        wrap(net, per_task="odd")
    assert snapshot(net) == before
    # A method that trains no weights of its own has nothing to hold them near.
    with pytest.raises(ConfigError, match=r"odd is a .*exclude=\['odd'\]"):
        hmf.HNET(net)
    assert snapshot(net) == before


def test_a_name_of_a_tied_weight_excludes_it() -> None:
    net = _tied()
    wrap(net, exclude=["2.weight"])
    assert not net.get_parameter("0.weight").requires_grad
