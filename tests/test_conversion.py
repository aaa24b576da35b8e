"""Any network can be masked in place or is refused by name, and becomes plain again."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import hypermask_fast
from hypermask_fast import export_subnet, networks, unconvert
from hypermask_fast.errors import ConfigError
from hypermask_fast.layers import MaskedConv2d, MaskedLinear
from hypermask_fast.methods.hypermask import HyperMask
from hypermask_fast.scenarios._torchvision import import_torchvision


class Branched(nn.Module):
    """Its last layer to run is registered first, and one layer runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)
        self.stem = nn.Linear(5, 6)
        self.side = nn.Linear(5, 6, bias=False)
        self.loop = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x) + self.side(x))
        return self.out(torch.relu(self.loop(torch.relu(self.loop(h)))))


class Tokens(nn.Module):
    """A parameter of the network itself beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(5))
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + self.token)


class Block(nn.Module):
    """One unusual layer beside a linear one; only converted, never run."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.odd = layer


def tiny_resnet18() -> nn.Module:
    import_torchvision()
    from torchvision.models.resnet import BasicBlock, ResNet

    net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)
    # The widest stages hold 90 % of the parameters.
    net.layer3 = net.layer4 = nn.Identity()
    net.fc = nn.Linear(128, 3)
    return net


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.GroupNorm(2, 4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def wrap(net: nn.Module, **options: Any) -> HyperMask:
    defaults: dict[str, Any] = {"embedding_dim": 2, "hidden": (2,), "capacity": 2}
    learner = HyperMask(net, **{**defaults, **options})
    for _ in range(2):
        learner.add_task()
    return learner


def snapshot(net: nn.Module) -> dict[str, Any]:
    """Everything that a conversion might change."""
    return {
        "classes": {name: type(m) for name, m in net.named_modules()},
        "own": {
            name: sorted(k for k in vars(m) if not k.startswith("__"))
            for name, m in net.named_modules()
        },
        "training": {name: m.training for name, m in net.named_modules()},
        "parameters": {n: (id(p), p.requires_grad) for n, p in net.named_parameters()},
        "repr": repr(net),
    }


def clone_state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


IMAGES = (3, 3, 8, 8)
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
    masked = learner.masked_weights(1)
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
    assert frozen.isdisjoint(learner.masked_weights(0))
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


def test_tied_weights_can_be_excluded_together_only() -> None:
    net = _tied()
    with pytest.raises(ConfigError, match="tied"):
        wrap(net, exclude=["2.weight"])
    wrap(net, exclude=["0.weight", "2.weight"])
    assert not net.get_parameter("0.weight").requires_grad


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


def test_a_network_that_reads_weights_past_its_layers_is_refused() -> None:
    class Functional(Branched):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.stem.weight)

    with pytest.raises(ConfigError, match="no masked layer of Functional ran"):
        wrap(Functional(), example_input=torch.randn(2, 5))


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
        "36 of 69 target parameters are masked",
        "sparsity: 25 % of each mask; the target does not train",
        "hypernetwork: 127 parameters, 0.0 MiB; with gradients and Adam's moments 0.0 MiB",
        "targets while training: 0.0 MiB for each earlier task",
    ]


def test_an_exempt_bias_can_be_chosen_and_changed() -> None:
    learner = wrap(Branched(), exempt="stem.bias")
    unmasked = [entry["name"] for entry in learner.manifest() if not entry["masked"]]
    assert unmasked == ["stem.bias"]
    other = wrap(Branched(), example_input=torch.randn(2, 5))
    learner.load_task_state(*other.task_state())
    unmasked = [entry["name"] for entry in learner.manifest() if not entry["masked"]]
    assert unmasked == ["out.bias"]


def train_a_little(learner: HyperMask, shape: tuple[int, ...]) -> None:
    for task in range(2):
        learner.train()
        learner.begin_task(task)
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
        for _ in range(2):
            learner.losses(torch.randn(shape), torch.tensor([0, 1, 1]), task).total.backward()
            optimizer.step()
            optimizer.zero_grad()
        learner.end_task()
    learner.eval()


EXPORTS = [
    pytest.param(lambda: networks.MLP(12, (7,), 3), (3, 12), {}, id="mlp"),
    pytest.param(lambda: networks.MLP(12, (7,), 3, bias=False), (3, 12), {}, id="no-bias"),
    *(
        pytest.param(convolutional, IMAGES, {"bn": bn}, id=f"conv-{bn}")
        for bn in ("per_task", "batch", "frozen")
    ),
    pytest.param(lambda: networks.ResNet(1, 1, 3), IMAGES, {"bn": "batch"}, id="published-resnet"),
    pytest.param(normed, (3, 5), {"exclude": "1"}, id="excluded-norm"),
    pytest.param(normed, (3, 5), {"exclude": "3", "train_target": False}, id="excluded-layer"),
    pytest.param(
        lambda: nn.Sequential(MaskedLinear(5, 4), nn.LayerNorm(4), MaskedLinear(4, 3)),
        (3, 5),
        {},
        id="masked-by-hand",
    ),
    pytest.param(
        lambda: nn.Sequential(MaskedConv2d(1, 2, 3, padding_mode="circular"), nn.Flatten()),
        (3, 1, 3, 3),
        {},
        id="conv",
    ),
]


@pytest.mark.parametrize(("make", "shape", "options"), EXPORTS)
def test_an_exported_subnet_is_plain_and_equal(
    make: Callable[[], nn.Module], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    net = make()
    kind = type(net)
    learner = wrap(net, sparsity=20.0, **options)
    train_a_little(learner, shape)
    x = torch.randn(4, *shape[1:])
    state = clone_state(learner)
    for task in range(2):
        subnet = export_subnet(learner, task)
        assert type(subnet) is kind
        assert not subnet.training
        for name, module in subnet.named_modules():
            assert type(module).__module__.startswith(("torch.nn", "hypermask_fast.networks")), name
            for key, value in vars(module).items():
                assert "hypermask" not in f"{key} {type(value)}", (name, key)
        with torch.no_grad():
            torch.testing.assert_close(subnet(x), learner(x, task), rtol=1e-5, atol=1e-6)
        buffer = io.BytesIO()
        torch.save(subnet.state_dict(), buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=True)
        assert all(torch.equal(loaded[k], v) for k, v in subnet.state_dict().items())
    for name, value in learner.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_subnet_of_torch_modules_unpickles_without_this_package(tmp_path: Path) -> None:
    learner = wrap(normed(), sparsity=20.0)
    train_a_little(learner, (3, 5))
    x = torch.randn(4, 5)
    subnet = export_subnet(learner, 1)
    torch.save({"net": subnet, "x": x, "y": learner(x, 1).detach()}, tmp_path / "subnet.pt")
    code = (
        "import sys, torch\n"
        "d = torch.load(sys.argv[1], weights_only=False)\n"
        "torch.testing.assert_close(d['net'](d['x']), d['y'], rtol=1e-5, atol=1e-6)\n"
        "assert not [m for m in sys.modules if m.startswith('hypermask')]\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "subnet.pt")], check=True, cwd=tmp_path
    )


def test_a_subnet_of_batch_mode_has_norms_without_running_statistics() -> None:
    learner = wrap(networks.ResNet(1, 1, 3, track_running_stats=True), bn="batch")
    train_a_little(learner, IMAGES)
    subnet, published = export_subnet(learner, 0), networks.ResNet(1, 1, 3)
    assert repr(subnet) == repr(published)
    published.load_state_dict(subnet.state_dict(), strict=True)
    x = torch.randn(IMAGES)
    assert torch.equal(published.eval()(x), subnet(x))


def test_a_subnet_shares_nothing_with_the_learner() -> None:
    learner = wrap(normed(), bn="batch", train_target=False)
    learner.eval()(torch.randn(2, 5), 0)
    subnet = export_subnet(learner, 0)
    assert all(p.requires_grad for p in subnet.parameters())
    before = clone_state(learner)
    with torch.no_grad():
        for parameter in subnet.parameters():
            parameter.zero_()
    assert all(torch.equal(v, before[k]) for k, v in learner.state_dict().items())


def test_export_asks_for_an_input_first_and_a_task_that_exists() -> None:
    learner = wrap(normed())
    with pytest.raises(RuntimeError, match="still unknown; run learner"):
        export_subnet(learner, 0)
    learner.eval()(torch.randn(2, 5), 0)
    with pytest.raises(ValueError, match="task 2 was not added"):
        export_subnet(learner, 2)


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
