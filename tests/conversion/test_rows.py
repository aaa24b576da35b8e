"""Networks that are known to treat the rows of a batch alone, and others, of which nothing is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.conversion.convert import convert
from hypermask_fast.conversion.rows import chain
from hypermask_fast.networks import MLP, LeNet300_100, ResNet, ZenkeNet
from tests.support.conversion_cases import Branched, Tokens, normed


class Forward(nn.Module):
    """Two layers and a function around them."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 4)
        self.function = function
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def converted(net: nn.Module) -> nn.Module:
    convert(net)
    return net.eval()


def sequential(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), *between, nn.Linear(5, 4))


CHAINS = [
    pytest.param(lambda: MLP(4, (5, 5), 3), ["hidden.0", "hidden.1", "classifier"], id="mlp"),
    pytest.param(lambda: LeNet300_100(3), ["hidden.0", "hidden.1", "classifier"], id="lenet"),
    pytest.param(lambda: sequential(nn.ReLU(), nn.Identity()), ["0", "3"], id="sequential"),
    pytest.param(lambda: sequential(nn.ELU(inplace=True), nn.Dropout()), ["0", "3"], id="in-place"),
    pytest.param(lambda: nn.Sequential(nn.Flatten(), sequential()), ["1.0", "1.1"], id="nested"),
    pytest.param(
        lambda: Forward(lambda m, x: m.last(F.leaky_relu(m.first(x.flatten(1)), 0.2)).tanh()),
        ["first", "last"],
        id="functions",
    ),
    pytest.param(
        lambda: Forward(lambda m, x: m.last(torch.flatten(m.first(x).relu(), start_dim=1))),
        ["first", "last"],
        id="flattened",
    ),
]


@pytest.mark.parametrize(("make", "layers"), CHAINS)
def test_a_chain_gives_its_layers_and_the_same_for_each_row(
    make: Callable[[], nn.Module], layers: list[str]
) -> None:
    net = converted(make())
    assert chain(net) == (tuple(layers), "")
    x = torch.randn(3, net.get_parameter(f"{layers[0]}.weight").shape[1])
    rows = torch.cat([net(row[None]) for row in x])
    torch.testing.assert_close(net(x), rows, rtol=1e-5, atol=1e-6)


def hooked(net: nn.Module) -> nn.Module:
    net[0].register_forward_hook(lambda module, args, out: out - out.mean(0))
    return net


def patched(net: nn.Module) -> nn.Module:
    net.forward = lambda x: x.softmax(0)
    return net


class Repeats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loop = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.loop(self.loop(x))


class Options(Repeats):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.loop(x)


class Pair(Repeats):
    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        return self.loop(x), 1.0


class Branches(Repeats):
    def forward(self, x: Tensor) -> Tensor:
        return self.loop(x) if x.sum() > 0 else x


def function(of: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Forward(of)


OTHERS = [
    pytest.param(normed, "1 is not known", id="batch-norm"),
    pytest.param(lambda: sequential(nn.LayerNorm(5)), "1 is not known", id="layer-norm"),
    pytest.param(lambda: ZenkeNet(3), "conv1 is not known", id="convolutions"),
    pytest.param(lambda: ResNet(1, 1, 3), "conv is not known", id="resnet"),
    pytest.param(lambda: sequential(nn.Softmax(0)), "1 is not known", id="softmax"),
    pytest.param(lambda: sequential(nn.Flatten(0), nn.Linear(1, 5)), "not known", id="flatten-0"),
    pytest.param(lambda: sequential(nn.RReLU()), "not known", id="random"),
    pytest.param(Branched, "does not read", id="branched"),
    pytest.param(Tokens, "does not read", id="parameter"),
    pytest.param(Repeats, "more than once", id="layer-runs-twice"),
    pytest.param(Options, "does not read", id="second-input"),
    pytest.param(Pair, "is not the one output", id="two-outputs"),
    pytest.param(Branches, "cannot be traced", id="branch-on-a-value"),
    pytest.param(lambda: hooked(sequential()), "0 has hooks", id="hook"),
    pytest.param(lambda: patched(sequential()), "the network has hooks, or", id="patched"),
    pytest.param(
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)), "in place", id="input"
    ),
    pytest.param(function(lambda m, x: m.last(m.first(x) + m.first(x))), "does not", id="sum"),
    pytest.param(function(lambda m, x: m.last(m.first(x) - 1)), "not known", id="arithmetic"),
    pytest.param(function(lambda m, x: m.last(m.first(x.flip(0)))), "flip is not", id="flip"),
    pytest.param(function(lambda m, x: m.last(m.first(x.flatten(0)))), "flatten", id="one-row"),
    pytest.param(
        function(lambda m, x: m.last(F.relu(m.first(F.relu(x, True))))), "relu", id="in-place-call"
    ),
    pytest.param(
        function(lambda m, x: m.last(F.relu(m.first(x), inplace=True))), "relu", id="in-place-flag"
    ),
    pytest.param(function(lambda m, x: x.relu()), "no masked layer runs", id="no-layer"),
]


@pytest.mark.parametrize(("make", "why"), OTHERS)
def test_of_others_nothing_is_claimed(make: Callable[[], nn.Module], why: str) -> None:
    net = make()
    exclude = ("token",) if isinstance(net, Tokens) else ()
    if "forward" in vars(net):
        own = vars(net).pop("forward")
        convert(net, exclude)
        net.forward = own
    else:
        convert(net, exclude)
    layers, why_not = chain(net.eval())
    assert layers == ()
    assert why in why_not


def test_what_changes_is_looked_at_again() -> None:
    net = converted(sequential(nn.Dropout(), nn.ReLU()))
    assert chain(net).layers == ("0", "3")
    assert "not known" in chain(net.train()).why_not
    assert chain(net.eval()).layers == ("0", "3")
    net[2] = nn.Softmax(0)
    assert not chain(net).layers
    twin = copy.deepcopy(net)
    twin[2] = nn.Tanh()
    assert chain(twin).layers == ("0", "3")
    handle = twin.register_forward_pre_hook(lambda module, args: None)
    assert not chain(twin).layers
    handle.remove()
    assert chain(twin).layers


def test_an_attribute_that_a_forward_reads_is_looked_at_again() -> None:
    net = converted(Forward(lambda m, x: m.last(m.first(x) if m.scale == 1 else m.first(x).t())))
    assert chain(net).layers
    net.scale = 2.0
    assert not chain(net).layers


def test_the_proof_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = converted(sequential())
    expected = chain(net)
    monkeypatch.setattr("hypermask_fast.conversion.rows._traced", None)
    assert chain(net) is expected
