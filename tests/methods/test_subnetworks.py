"""What SupSup and ExSSNeT promise: nothing is forgotten, and a task leaves a bit a weight."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast import export_subnet
from hypermask_fast.errors import ConfigError
from hypermask_fast.files import checkpoint
from hypermask_fast.methods.exssnet.learner import ExSSNeT
from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.methods.subnetwork import SubnetworkLearner
from hypermask_fast.methods.supsup.learner import SupSup
from hypermask_fast.networks import MLP, GEMResNet18
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.settings.config import RunConfig
from tests.support.subnetwork_cases import KINDS, SmallConvNet

OPTIMIZERS = {
    "adam": (FactoredAdam, {"weight_decay": 0.1}),
    "torch-adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"weight_decay": 0.1, "momentum": 0.9}),
    "rmsprop": (torch.optim.RMSprop, {"weight_decay": 0.1, "momentum": 0.9}),
}


def small_net() -> nn.Module:
    return SmallConvNet((6, 8), (1, 2), 4, 4)


def batches(task: int, count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(task)
    return [
        (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(4, (8,), generator=generator))
        for _ in range(count)
    ]


def learn(
    learner: SubnetworkLearner,
    task: int,
    optimizer: str = "adam",
    *,
    in_loop: bool = False,
    classes: int = 4,
) -> None:
    """Train a task through all its phases, by the learner's step or in a loop of one's own."""
    kind, options = OPTIMIZERS[optimizer]
    steps = iter(batches(task, 12))
    learner.begin_task(task, steps=12, data=batches(task, 3))
    learner.train()
    for phase in learner.phases(task, 12):
        if learner.phase != phase.name:
            learner.begin_phase(phase.name)
        opt = kind(learner.parameters(), lr=0.01, **options)
        for _ in range(phase.steps):
            x, y = next(steps)
            y = y % classes
            if in_loop:
                opt.zero_grad()
                learner.losses(x, y, task).total.backward()
                opt.step()
            else:
                learner.step(x, y, task, {"main": opt})
    learner.end_task()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("in_loop", [False, True], ids=["step", "loop"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("supsup", {"density": 0.4}),
        ("supsup", {"rule": "threshold", "score_init": "mean"}),
        ("exssnet", {"density": 0.4}),
        ("exssnet", {"density": 0.4, "kkt": "knn_all"}),
    ],
    ids=str,
)
def test_nothing_is_forgotten(
    method: str, options: dict[str, Any], optimizer: str, in_loop: bool
) -> None:
    torch.manual_seed(0)
    learner = KINDS[method](small_net(), **options)
    first: dict[int, Tensor] = {}
    x = batches(99, 1)[0][0]
    begun = [w.clone() for w in learner.net.parameters()]
    for task in range(3):
        learner.add_task(classes=range(4))
        learn(learner, task, optimizer, in_loop=in_loop)
        for other in range(task + 1):
            logits = learner.eval()(x, other)
            assert torch.equal(logits, first.setdefault(other, logits)), (task, other)
    now = learner.net.parameters()
    moved = any(not torch.equal(a, b) for a, b in zip(begun, now, strict=True))
    assert moved == (method == "exssnet")
    masks = {tuple(learner._flat_mask(task).tolist()) for task in first}
    assert len(masks) == 3 or optimizer == "sgd"


def test_the_overlapping_variant_forgets_and_trains_all_of_its_mask() -> None:
    torch.manual_seed(0)
    learner = ExSSNeT(small_net(), density=0.6, editable="original")
    x = batches(99, 1)[0][0]
    for task in range(2):
        learner.add_task()
        learn(learner, task)
        if task == 0:
            before = learner.eval()(x, 0)
    assert not torch.equal(learner.eval()(x, 0), before)
    learner.begin_task(0, steps=4)
    for name, mask in learner.masks(0).items():
        assert torch.equal(learner.editable()[name], mask)


def test_an_optimizer_keeps_no_state_of_weights_that_cannot_move() -> None:
    torch.manual_seed(0)
    learner = ExSSNeT(small_net(), density=0.3)
    for task in range(2):
        learner.add_task()
        learn(learner, task)
    learner.add_task()
    learner.begin_task(2, steps=4)
    learner.begin_phase("weights")
    free = sum(int(mask.sum()) for mask in learner.editable().values())
    taken = {name: learner.masks(0)[name] | learner.masks(1)[name] for name in learner.masks(0)}
    for name, mask in learner.editable().items():
        assert not (mask & taken[name]).any()
        assert torch.equal(mask, learner.masks(2)[name] & ~taken[name])
    (group,) = learner.parameter_groups("weights")
    assert sum(p.numel() for p in group.params) == free > 0


@pytest.mark.parametrize("in_loop", [False, True], ids=["step", "loop"])
def test_the_networks_own_weights_follow_within_a_phase(in_loop: bool) -> None:
    """They and the state have what was learned, and setting them from outside is followed."""
    torch.manual_seed(0)
    learner = ExSSNeT(small_net(), density=0.4)
    learner.add_task()
    learner.begin_task(0, steps=4)
    learner.begin_phase("weights")
    start = {name: value.clone() for name, value in weights_of(learner).items()}
    opt = torch.optim.SGD(learner.parameters(), lr=0.1)
    x, y = batches(0, 1)[0]
    if in_loop:
        learner.losses(x, y, 0).total.backward()
        opt.step()
    else:
        learner.step(x, y, 0, {"main": opt})
    assert learner.edited is not None
    kept = torch.cat([w.flatten() for w in learner.task_weights(0).values()])
    assert torch.equal(kept[learner.edited.places], learner.edited.values)
    saved = {name: value.clone() for name, value in learner.state_dict().items()}
    assert not torch.equal(saved["net.classifier.weight"], start["net.classifier.weight"])
    assert not any(name.startswith("edited") for name in saved)
    outputs = learner.eval()(x, 0)

    torch.manual_seed(5)
    other = ExSSNeT(small_net(), density=0.4)
    other.load_state_dict(saved)
    assert (other.current, other.phase) == (0, "weights")
    assert torch.equal(other.eval()(x, 0), outputs)
    assert torch.equal(copy.deepcopy(learner)(x, 0), outputs)
    a, b = (each.train().losses(x, y, 0) for each in (learner, other))
    assert torch.equal(a.total, b.total)

    learner.restore(start)
    assert torch.equal(
        learner.net.get_parameter("classifier.weight"), start["net.classifier.weight"]
    )
    learner.end_task()
    assert torch.equal(
        learner.net.get_parameter("classifier.weight"), start["net.classifier.weight"]
    )
    assert learner.scores.requires_grad


@pytest.mark.parametrize("method", KINDS)
def test_an_abandoned_task_leaves_nothing(method: str) -> None:
    torch.manual_seed(0)
    learner = KINDS[method](small_net(), density=0.4)
    learner.add_task()
    learner.add_task()
    learn(learner, 0)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    learner.begin_task(1, steps=4)
    for phase in learner.phases(1, 4):
        learner.begin_phase(phase.name)
        opt = torch.optim.Adam(learner.parameters(), lr=0.1)
        learner.step(*batches(1, 1)[0], 1, {"main": opt})
    learner.abandon_task()
    for name, value in learner.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("keep", [False, True], ids=["masks", "scores"])
@pytest.mark.parametrize(
    ("method", "options"),
    [("supsup", {}), ("supsup", {"rule": "threshold"}), ("exssnet", {})],
    ids=str,
)
def test_a_learned_task_goes_on_from_its_mask(
    method: str, options: dict[str, Any], keep: bool
) -> None:
    torch.manual_seed(0)
    learner = KINDS[method](small_net(), keep_scores=keep, **options)
    ended = []
    for task in range(2):
        learner.add_task()
        learn(learner, task)
        ended.append(learner.scores.detach().clone())
    mask, x = learner._flat_mask(0), batches(99, 1)[0][0]
    logits = learner.eval()(x, 0)
    learner.begin_task(0, steps=4)
    assert torch.equal(learner._flat_mask(0), mask)
    assert torch.equal(learner(x, 0), logits)
    assert torch.equal(learner.scores, ended[0]) == keep


@pytest.mark.parametrize(
    ("method", "options"),
    [("supsup", {}), ("exssnet", {}), ("exssnet", {"kkt": "knn_best", "keep_scores": False})],
    ids=str,
)
def test_a_hundred_tasks_take_a_bit_a_weight(
    method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    learner = KINDS[method](GEMResNet18(5), **options)
    weights = 1_090_940
    for task in range(100):
        learner.add_task(f"task {task}")
    assert learner.bits.shape == (100, 136_368)
    images = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    for task in (0, 1):
        learner.begin_task(task, data=[images])
        learner.end_task()
    learner.begin_task(2, data=[images])
    state = weights_of(learner)
    shared = {name: value for name, value in state.items() if name.startswith("net.")}
    own = sum(value.nbytes for name, value in state.items() if name not in shared)
    norms = 100 * 2 * 1500 * 4
    assert own == 100 * 136_368 + 4 * weights + norms
    held = [t for t in vars(learner).values() if isinstance(t, Tensor)]
    assert not held
    checkpoint.save(tmp_path, 1, state, {})
    on_disk = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    assert on_disk < own + sum(value.nbytes for value in shared.values()) + 2**17


@pytest.mark.parametrize("method", KINDS)
def test_outputs_features_export_and_manifest(method: str) -> None:
    torch.manual_seed(0)
    learner = KINDS[method](small_net(), density=0.4)
    for name in ("a", "b"):
        learner.add_task(name, classes=range(3))
    learn(learner, 0, classes=3)
    x = batches(7, 1)[0][0]
    learner.eval()
    for task in range(2):
        plain = export_subnet(learner, task)
        assert type(plain) is SmallConvNet
        outputs = learner(x, task)
        assert torch.equal(plain(x)[:, :3], outputs[:, :3])
        assert (outputs[:, 3] == -torch.inf).all()
        assert torch.equal(learner.all_outputs(x)[task], outputs)
        assert torch.equal(learner.features(x, task), plain.body(x))
        kept = learner.task_weights(task)
        for name, mask in learner.masks(task).items():
            assert torch.equal(kept[name], learner.net.get_parameter(name) * mask)
            assert int(mask.sum()) == mask.numel() - int((1 - 0.4) * mask.numel())
    mixed = learner(x, torch.tensor([0, 1] * 4))
    assert torch.equal(mixed[0], learner(x, 0)[0])
    assert [entry["masked"] for entry in learner.manifest()] == [True] * 3


def test_biases_become_zero_and_stay() -> None:
    torch.manual_seed(0)
    net = MLP(12, (8,), 4)
    learner = SupSup(net, rule="threshold")
    assert not any(layer.bias.any() for layer in net.modules() if isinstance(layer, nn.Linear))
    assert [e["reason"] for e in learner.manifest() if "bias" in e["name"]] == [
        "excluded: frozen"
    ] * 2
    for weight in (net.hidden[0].weight, net.classifier.weight):
        assert weight.abs().unique().numel() == 1
        assert float(weight.abs().max()) == pytest.approx((2 / weight.shape[1]) ** 0.5)
    for part, fan_in in zip(learner.scores.split([96, 32]), (12, 8), strict=True):
        assert fan_in**-0.5 * 0.9 < part.abs().max() <= fan_in**-0.5


def test_a_task_begins_with_the_mean_of_earlier_scores() -> None:
    torch.manual_seed(0)
    learner = SupSup(small_net(), score_init="mean")
    ended = []
    for task in range(3):
        learner.add_task()
        learner.begin_task(task)
        if ended:
            mean = torch.stack(ended).mean(0)
            assert torch.allclose(learner.scores, mean, rtol=1e-5, atol=1e-7)
        learner.abandon_task()
        learn(learner, task)
        ended.append(learner.scores.detach().clone())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("supsup", {"density": 0.0}, "density=0.0 is out of range"),
        ("supsup", {"density": 1.5}, "density=1.5 is out of range"),
        ("supsup", {"rule": "topk"}, "rule='topk' is unknown"),
        ("supsup", {"superfluous": -1}, "superfluous=-1 is out of range"),
        ("exssnet", {"mask_share": 0.0}, "mask_share=0.0 is out of range"),
        ("exssnet", {"editable": "all"}, "editable='all' is unknown"),
        ("exssnet", {"kkt": "knn"}, "kkt='knn' is unknown"),
        ("exssnet", {"kkt_neighbours": 0}, "kkt_neighbours=0 is out of range"),
        ("exssnet", {"rule": "threshold"}, "rule"),
    ],
)
def test_malformed_settings_are_refused(method: str, options: dict[str, Any], message: str) -> None:
    net = MLP(12, (8,), 4)
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(ConfigError, match=message):
        KINDS[method](net, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_options(method=method, **options)


def test_a_refused_network_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ConfigError, match="track_running_stats"):
        SupSup(net)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad for p in net.parameters())


def test_shares_of_layers_by_their_size() -> None:
    learner = SupSup(small_net(), density_rule="er", er_scale=2.0)
    kept = [n - d for n, d in zip(learner._sizes, learner._dropped, strict=True)]
    assert kept == [18, 28, 16]
    # ExSSNeT has no bound of a half.
    other = ExSSNeT(small_net(), density_rule="er", er_scale=2.0)
    assert other._sizes[2] - other._dropped[2] == 24
