"""Any network can be masked in place, in whole or in part, and becomes plain again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypermask_fast
from hypermask_fast import export_subnet, networks, unconvert
from hypermask_fast.layers.masked import MaskedLinear
from hypermask_fast.vision import import_torchvision
from tests.support.conversion_cases import (
    IMAGES,
    Branched,
    Tokens,
    clone_state,
    normed,
    snapshot,
    wrap,
)


def tiny_resnet18() -> nn.Module:
    import_torchvision()
    from torchvision.models.resnet import BasicBlock, ResNet

    net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)
    # The widest stages hold 90 % of the parameters.
    net.layer3 = net.layer4 = nn.Identity()
    net.fc = nn.Linear(128, 3)
    return net


NETWORKS = [
    pytest.param(lambda: networks.MLP(12, (7, 6), 4), (2, 12), "classifier.bias", id="mlp"),
    pytest.param(lambda: networks.LeNet300_100(4), (2, 784), None, id="lenet"),
    pytest.param(lambda: networks.ZenkeNet(4), (2, 3, 32, 32), "classifier.bias", id="zenkenet"),
    pytest.param(
        lambda: networks.ZenkeNet64(4), (2, 3, 64, 64), "classifier.bias", id="zenkenet64"
    ),
    pytest.param(
        lambda: networks.ResNet(1, 1, 4, track_running_stats=True),
        IMAGES,
        "classifier.bias",
        id="resnet",
    ),
    pytest.param(tiny_resnet18, (2, 3, 32, 32), "fc.bias", id="torchvision-resnet"),
    pytest.param(Branched, (2, 5), "out.bias", id="branched"),
    pytest.param(lambda: nn.Linear(5, 3), (2, 5), "bias", id="single-layer"),
    pytest.param(
        lambda: nn.Sequential(MaskedLinear(5, 4), nn.ReLU(), MaskedLinear(4, 3)),
        (2, 5),
        "2.bias",
        id="masked-by-hand",
    ),
]


@pytest.mark.parametrize(("make", "shape", "exempt"), NETWORKS)
def test_networks_are_masked_in_place_and_back(
    make: Callable[[], nn.Module], shape: tuple[int, ...], exempt: str | None
) -> None:
    net = make().eval()
    before, state = snapshot(net), clone_state(net)
    x = torch.randn(shape)
    plain = net(x)
    learner = wrap(net, sparsity=30.0).eval()
    assert learner.net is net
    assert list(net.state_dict()) == list(state)
    assert torch.equal(net(x), plain)
    with torch.no_grad():
        logits = learner(x, 1)
    assert learner.exempt == exempt
    masked = learner.task_weights(1)
    norms = {n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(masked) == {n for n in before["parameters"] if n.rpartition(".")[0] not in norms}
    for name, value in masked.items():
        own, zeros = net.get_parameter(name), (value == 0).sum().item()
        if name == exempt:
            assert torch.equal(value, own)
        else:
            # Exact up to float32 ties with the threshold, in tensors of 100,000 entries and more.
            expected = -(-30 * (own.numel() - 1) // 100)
            assert zeros == pytest.approx(expected, abs=own.numel() * 1e-5)
            assert (value.abs() < own.abs()).any() or own.numel() == 1
    unconvert(net)
    assert snapshot(net) == before
    net.load_state_dict({**state, **masked}, strict=True)
    torch.testing.assert_close(net(x), logits, rtol=1e-5, atol=1e-6)


def test_excluded_parts_stay_plain_and_frozen_until_unconvert() -> None:
    net = nn.Sequential(
        nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)), nn.LSTM(6, 6), nn.Linear(6, 3)
    )
    net.get_parameter("2.bias").requires_grad_(False)
    before = snapshot(net)
    learner = wrap(net, exclude=("0", "1"))
    assert type(net.get_submodule("0.0")) is nn.Linear
    assert isinstance(net[2], MaskedLinear)
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {"2.weight"}
    reasons = {entry["name"]: entry["reason"] for entry in learner.manifest()}
    assert all(reasons[name] == "excluded: frozen" for name in reasons if name[0] in "01")
    unconvert(net)
    assert snapshot(net) == before


@pytest.mark.parametrize(
    ("exclude", "frozen"),
    [
        pytest.param("stem", {"stem.weight", "stem.bias"}, id="module"),
        pytest.param("*.bias", {"stem.bias", "loop.bias", "out.bias"}, id="parameters"),
        pytest.param(("loop.weight", "s*"), None, id="several"),
    ],
)
def test_exclude_takes_names_and_patterns(exclude: Any, frozen: set[str] | None) -> None:
    frozen = frozen or {"loop.weight", "stem.weight", "stem.bias", "side.weight"}
    net = Branched()
    learner = wrap(net, exclude=exclude)
    assert {n for n, p in net.named_parameters() if not p.requires_grad} == frozen
    entries = learner.manifest()
    assert {entry["name"] for entry in entries if not entry["masked"]} == frozen
    x = torch.randn(2, 5)
    learner(x, 0)
    assert frozen.isdisjoint(learner.task_weights(0))
    learner.begin_task(0)
    before = clone_state(net)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.1, weight_decay=0.1)
    learner.losses(x, torch.tensor([0, 1]), 0).total.backward()
    optimizer.step()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == (name in frozen), name


def test_the_token_of_a_network_can_be_excluded() -> None:
    net = Tokens()
    learner = wrap(net, exclude="token")
    assert not net.token.requires_grad
    assert learner(torch.randn(2, 5), 0).shape == (2, 3)


def test_repr_shows_the_source_of_the_masks() -> None:
    net = normed()
    wrap(net, sparsity=30.0)
    assert "in_features=5, out_features=6, bias=True, mask=hyper(p=30)" in repr(net)
    unconvert(net)
    assert "mask" not in repr(net)


def test_hooks_stay_and_fire() -> None:
    net = normed()
    seen = []
    net[0].register_forward_hook(lambda *_: seen.append("hook"))
    learner = wrap(net)
    learner.eval()(torch.randn(2, 5), 0)
    seen.clear()
    learner(torch.randn(2, 5), 0)
    assert seen == ["hook"]


def test_unconvert_reaches_through_a_learner_and_leaves_plain_networks_alone() -> None:
    net = normed()
    before = snapshot(net)
    assert unconvert(net) is net
    assert snapshot(net) == before
    learner = wrap(net)
    assert unconvert(learner) is learner
    assert snapshot(net) == before


def test_the_learner_of_an_unconverted_network_is_void() -> None:
    learner = wrap(normed()).eval()
    x = torch.randn(2, 5)
    learner(x, 0)
    unconvert(learner.net)
    with pytest.raises(RuntimeError, match=r"was unconverted .*; build a new learner"):
        learner(x, 0)


def test_layers_that_do_not_run_are_warned_of() -> None:
    class Lazy(Branched):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.stem(x))

    learner = wrap(Lazy())
    message = r"side, loop did not run in a forward.*exclude=\['side', 'loop'\]"
    with pytest.warns(UserWarning, match=message):
        learner(torch.randn(2, 5), 0)
    assert learner.exempt == "out.bias"


def test_report_and_manifest() -> None:
    learner = wrap(normed(), sparsity=25.0, exclude="3.weight", train_target=False)
    keys = ("name", "shape", "offset", "masked", "reason")
    rows = [
        ("0.weight", [6, 5], 0, True, ""),
        ("0.bias", [6], 30, True, ""),
        ("1.weight", [6], -1, False, "normalisation"),
        ("1.bias", [6], -1, False, "normalisation"),
        ("3.weight", [3, 6], -1, False, "excluded: frozen"),
        ("3.bias", [3], 36, True, ""),
    ]
    assert learner.manifest() == [dict(zip(keys, row, strict=True)) for row in rows]
    assert "found at the first batch" in learner.report()
    learner.eval()(torch.randn(2, 5), 0)
    last = learner.manifest()[-1]
    assert (last["masked"], last["reason"], last["offset"]) == (False, "exempt: last bias", 36)
    lines = [" ".join(line.split()) for line in learner.report().splitlines()]
    # The hypernetwork: a table of 2 x 2, a trunk of 2 x 2 + 2, a head of 39 x 2 + 39.
    assert lines == [
        "0.weight 6x5 30 masked",
        "0.bias 6 6 masked",
        "1.weight 6 6 normalisation: a copy for each task",
        "1.bias 6 6 normalisation: a copy for each task",
        "3.weight 3x6 18 excluded: frozen",
        "3.bias 3 3 exempt: last bias",
        "36 of 69 target parameters are masked; not masked: 12 normalisation: a copy for each "
        "task, 18 excluded: frozen, 3 exempt: last bias",
        "sparsity: 25 % of each mask; the target does not train",
        "hypernetwork: 127 parameters, 508 bytes; with gradients and Adam's moments 2.0 KiB",
        "targets while training: 156 bytes for each earlier task",
        "net(x) outside a task: its own weights, without a mask",
    ]


def test_an_exempt_bias_can_be_chosen_and_changed() -> None:
    learner = wrap(Branched(), exempt="stem.bias")
    unmasked = [entry["name"] for entry in learner.manifest() if not entry["masked"]]
    assert unmasked == ["stem.bias"]
    other = wrap(Branched(), example_input=torch.randn(2, 5))
    learner.load_task_state(*other.task_state())
    unmasked = [entry["name"] for entry in learner.manifest() if not entry["masked"]]
    assert unmasked == ["out.bias"]


def test_a_converted_network_can_be_copied() -> None:
    net = normed()
    before = snapshot(net)
    wrap(net, exclude="3")
    twin = copy.deepcopy(net)
    unconvert(twin)
    assert {n: type(m) for n, m in twin.named_modules()} == before["classes"]
    assert all(p.requires_grad for p in twin.parameters())
    assert isinstance(net[0], MaskedLinear)
    assert not net.get_parameter("3.weight").requires_grad


def test_public_names() -> None:
    assert hypermask_fast.export_subnet is export_subnet
    assert hypermask_fast.unconvert is unconvert
