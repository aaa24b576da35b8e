"""HNET's tasks, outputs, errors and state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast import export_subnet, unconvert
from hypermask_fast.errors import ConfigError
from hypermask_fast.files import checkpoint
from hypermask_fast.methods.hnet.learner import HNET
from hypermask_fast.networks import MLP
from hypermask_fast.settings import build
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.trainer import Trainer
from tests.support.hnet_cases import batch, make, stepper, train

HEADS = ("shared", "multi", "growing")


def generated(learner: HNET, task: int) -> dict[str, Tensor]:
    """The whole network's weights, from the hypernetwork's own parameters by hand."""
    hypernetwork: Any = learner.hypernetwork
    embedding = hypernetwork.embeddings[task]
    chunks = hypernetwork.chunk_embeddings
    hidden = torch.cat((embedding.expand(len(chunks), -1), chunks), 1)
    for layer in (m for m in hypernetwork.trunk if isinstance(m, nn.Linear)):
        hidden = F.relu(F.linear(hidden, layer.weight, layer.bias))
    flat = F.linear(hidden, hypernetwork.head.weight, hypernetwork.head.bias).flatten()
    weights, at = {}, 0
    for name, p in learner.net.named_parameters():
        weights[name] = flat[at : at + p.numel()].view_as(p)
        at += p.numel()
    return weights


def by_hand(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    h = F.relu(F.linear(x, weights["hidden.0.weight"], weights["hidden.0.bias"]))
    return F.linear(h, weights["classifier.weight"], weights["classifier.bias"])


@pytest.mark.parametrize("heads", HEADS)
def test_forward_and_loss_are_those_of_the_tasks_outputs(heads: str) -> None:
    torch.manual_seed(0)
    learner = make(tasks=3, task_heads=heads)
    train(learner, 0)
    x, y = batch(learner)
    learner.begin_task(1)
    every = by_hand(generated(learner, 1), x).detach()
    own = every[:, 2:4] if heads != "shared" else every[:, :2]
    total = every[:, :4] if heads == "growing" else own
    label = y + 2 if heads == "growing" else y
    out = stepper(learner)(x, y, 1)
    torch.testing.assert_close(out.task, F.cross_entropy(total, label))
    learner.abandon_task()
    with torch.no_grad():
        found = learner.eval()(x, 1)
    torch.testing.assert_close(found[:, :2], own)
    assert found.shape == ((8, 6) if heads == "shared" else (8, 2))
    assert heads != "shared" or bool(found[:, 2:].isinf().all())


def test_only_the_current_embedding_moves() -> None:
    learner = make()
    train(learner, 0)
    before = learner.hypernetwork.embeddings.detach().clone()
    out = train(learner, 1)
    moved = (learner.hypernetwork.embeddings != before).any(1)
    assert moved.tolist() == [False, True, False, False, False]
    # The look-ahead has moved the hypernetwork already.
    assert out[0].output_reg > 0
    assert [float(o.total) for o in out] == pytest.approx(
        [float(o.task + learner.beta * o.output_reg) for o in out], rel=1e-6
    )


def test_the_network_has_no_weights_of_its_own() -> None:
    learner = make()
    names = {name for name, p in learner.named_parameters() if p.requires_grad}
    assert all(name.startswith("hypernetwork.") for name in names)
    x, _ = batch(learner)
    before = learner.eval()(x, 0)
    for p in learner.net.parameters():
        p.data.zero_()
    assert torch.equal(learner(x, 0), before)
    net = unconvert(learner.net)
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("heads", HEADS)
def test_all_outputs_mixed_rows_and_export(heads: str) -> None:
    learner = make(task_heads=heads)
    for task in range(3):
        train(learner, task)
    learner.eval()
    x, _ = batch(learner)
    ids = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0])
    with torch.no_grad():
        each = torch.stack([learner(x, task) for task in range(3)])
        torch.testing.assert_close(learner.all_outputs(x), each)
        mixed = learner(x, ids)
    torch.testing.assert_close(mixed, each[ids, torch.arange(8)])
    torch.testing.assert_close(learner(x, ids), mixed)
    for task in range(3):
        plain = export_subnet(learner, task)
        assert type(plain) is MLP
        torch.testing.assert_close(plain(x)[:, :2], each[task][:, :2])
        assert plain.classifier.out_features == (6 if heads == "shared" else 2)
        torch.testing.assert_close(learner.features(x, task), plain.features(x))
        alpha = torch.eye(3)[task].requires_grad_()
        with learner.blended(alpha) as net:
            blend = net(x)
        torch.testing.assert_close(blend[:, :2], each[task][:, :2])
        blend[:, :2].sum().backward()
        assert alpha.grad is not None
        assert bool((alpha.grad != 0).all())


def test_tasks_of_different_sizes_have_outputs_of_their_own() -> None:
    learner = HNET(MLP(5, (4,), 6), task_heads="multi", chunk_size=20)
    for classes in ([0, 1], [2, 3, 4], [5]):
        learner.add_task(classes=classes)
    x = torch.randn(4, 5)
    with torch.no_grad():
        every = [by_hand(generated(learner, task), x) for task in range(3)]
        found = learner.eval().all_outputs(x)
    own = (every[0][:, :2], every[1][:, 2:5], every[2][:, 5:])
    for outputs, expected in zip(found, own, strict=True):
        width = expected.shape[1]
        torch.testing.assert_close(outputs[:, :width], expected)
        assert bool(outputs[:, width:].isneginf().all())
    with pytest.raises(ValueError, match=r"\[1, 2, 3\] classes.*cannot be blended"):
        learner.blended(torch.ones(3)).__enter__()
    learner.add_task(classes=[6, 7])
    with pytest.raises(ValueError, match="8 classes together and the network 6 outputs"):
        learner(x, 3)


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6))


@pytest.mark.parametrize("bn", ["per_task", "batch"])
def test_scale_and_shift_of_norms_are_generated(bn: str) -> None:
    learner = make(normalised(), bn=bn)
    weights = generated(learner, 0)
    assert weights["1.weight"].shape == (6,)
    for task in range(2):
        train(learner, task, steps=4)
    x, _ = batch(learner)
    plain = export_subnet(learner, 0)
    torch.testing.assert_close(plain[1].weight, generated(learner, 0)["1.weight"])
    torch.testing.assert_close(plain[1].bias, generated(learner, 0)["1.bias"])
    torch.testing.assert_close(plain(x), learner.eval()(x, 0))
    if bn == "per_task":
        (table,) = learner.norms.tables
        assert not list(table.parameters())
        # Statistics moved while their task was learned.
        assert [bool((row != 0).any()) for row in table.running_mean[:3]] == [True, True, False]


@pytest.mark.parametrize("targets", ["full", "recomputed"])
def test_drawn_tasks_give_their_own_mean(targets: str) -> None:
    """Of three earlier tasks, each one's regularizer alone, and the means of two and of three."""

    def regularizer(count: int | None, seed: int) -> float:
        torch.manual_seed(3)
        learner = make(tasks=4, targets=targets).double()
        for task in range(3):
            train(learner, task)
        learner._kept.count, learner._kept._seed = count, seed
        return float(train(learner, 3, steps=1)[0].output_reg)

    whole = regularizer(None, 0)
    alone = sorted({round(regularizer(1, seed), 12) for seed in range(12)})
    assert len(alone) == 3
    assert sum(alone) / 3 == pytest.approx(whole, rel=1e-8)
    pairs = [(alone[i] + alone[j]) / 2 for i, j in ((0, 1), (0, 2), (1, 2))]
    for seed in range(4):
        assert min(abs(regularizer(2, seed) - pair) / pair for pair in pairs) < 1e-8


def test_digits_are_kept_by_the_regularizer() -> None:
    """Without it the first task is at chance after the others."""
    config = RunConfig.from_preset("hnet-split-digits", steps=150, tasks=3, device="cpu")
    torch.manual_seed(0)
    scenario = build.make_scenario(config)
    learner = build.make_learner(config, scenario.input_shape, scenario.num_classes)
    trainer = build.make_trainer(config, learner)
    for task in scenario:
        accuracy = trainer.fit(task)
    assert accuracy.min() > 93


def drift(lookahead: bool) -> float:
    """How far task 0's weights are from what was kept of them, after 11 steps of task 1."""
    config = RunConfig.from_preset(
        "hnet-split-digits",
        **{"steps": 60, "tasks": 2, "device": "cpu", "beta": 1.0, "lookahead": lookahead},
    )
    torch.manual_seed(0)
    scenario = build.make_scenario(config)
    learner: Any = build.make_learner(config, scenario.input_shape, scenario.num_classes)
    trainer = build.make_trainer(config, learner)
    trainer.fit(scenario[0])

    @torch.no_grad()
    def weights() -> Tensor:
        return learner.hypernetwork.logits(torch.tensor([0]))[0]

    kept, found = weights(), []
    trainer.hooks.append(lambda _: found.append(float((weights() - kept).square().sum())))
    trainer.fit(scenario[1])
    return found[10]


def test_on_digits_the_look_ahead_keeps_earlier_weights_nearer() -> None:
    """Of seeds 0 to 2, a third as far: 0.29 to 0.37 of the distance without."""
    assert drift(lookahead=True) < 0.6 * drift(lookahead=False)


def small_config(**options: Any) -> RunConfig:
    small = {"tasks": 3, "steps": 8, "mlp_hidden": (12,), "batch_size": 16, "device": "cpu"}
    small |= {"hidden": (6,), "chunk_size": 100, "embedding_dim": 4, "chunk_embedding_dim": 3}
    return RunConfig.from_preset("hnet-split-digits", **{**small, **options})


def made(config: RunConfig) -> tuple[Any, Trainer]:
    torch.manual_seed(config.run.seed)
    scenario = build.make_scenario(config)
    learner = build.make_learner(config, scenario.input_shape, scenario.num_classes)
    trainer = build.make_trainer(config, learner)
    for task in scenario:
        trainer.add(task)
    return scenario, trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head": "full"},
        {"targets": "recomputed", "regularized_tasks": 1},
        {"head": "full", "targets": "frozen_head"},
        {"lookahead": False, "head": "full", "embedding_lr": 0.01},
        {"task_heads": "growing", "targets": "bfloat16"},
    ],
    ids=str,
)
def test_a_stopped_task_continues_bit_identically(options: dict[str, Any], tmp_path: Path) -> None:
    config = small_config(**options)
    found: list[dict[str, Tensor]] = []
    for stops in (False, True):
        scenario, trainer = made(config)
        trainer.fit(scenario[0])
        trainer.fit(scenario[1])
        if stops:

            def interrupt(t: Trainer) -> None:
                if t.step == 3:
                    checkpoint.save(tmp_path, 3, *t.state())
                    raise KeyboardInterrupt

            trainer.hooks.append(interrupt)
            with pytest.raises(KeyboardInterrupt):
                trainer.fit(scenario[2])
            saved = checkpoint.load_latest(tmp_path)
            scenario, trainer = made(config)
            trainer.load_state(saved.tensors, json.loads(json.dumps(saved.state)))
        trainer.fit(scenario[2])
        found.append(trainer.state()[0])
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_a_state_dict_brings_the_tasks() -> None:
    learner, other = make(), make(MLP(5, (4,), 6), tasks=0)
    for task in range(2):
        train(learner, task)
    other.load_state_dict(learner.state_dict())
    x, _ = batch(learner)
    assert torch.equal(other.eval()(x, 1), learner.eval()(x, 1))
    assert other.learned == learner.learned


def test_more_tasks_than_rows() -> None:
    learner = make(tasks=2, capacity=2, embedding_std=0.1)
    learner.add_task(classes=[4, 5])
    assert learner.hypernetwork.capacity == 4
    assert learner.hypernetwork.embeddings[2:].abs().max() < 0.6


def step_of_two() -> None:
    learner = make()
    learner.begin_task(0)
    group = learner.parameter_groups()[0]
    learner.step(*batch(learner), 0, {"main": torch.optim.Adam(group.params)})


def step_of_sgd() -> None:
    learner = make()
    learner.begin_task(0)
    stepper(learner, optimizer="sgd")(*batch(learner), 0)


def losses_of_a_loop() -> None:
    learner = make()
    learner.begin_task(0)
    learner.losses(*batch(learner), 0)


def unknown_outputs() -> None:
    make().task_weights(0)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: make(beta=-1), ConfigError, "beta=-1"),
        (lambda: make(hidden=(0,)), ConfigError, "hidden=.*at least 1"),
        (lambda: make(task_heads="one"), ConfigError, "choose one of shared, multi, growing"),
        (lambda: make(targets="frozen_head"), ConfigError, "needs head='full'"),
        (lambda: make(sparsity=3.0), ConfigError, "'sparsity' is unknown"),
        (lambda: make(embedding_lr=0), ConfigError, "embedding_lr=0"),
        (lambda: make().add_task(), ValueError, "classes is None"),
        (lambda: small_config(capacity=2), ConfigError, "capacity=2 is less than tasks=3"),
        (lambda: small_config(moments="bfloat16"), ConfigError, "needs head='full'"),
        (step_of_two, ConfigError, r"optimizers are \['main'\]"),
        (step_of_sgd, ConfigError, "look-ahead of a SGD is not known"),
        (losses_of_a_loop, RuntimeError, "lookahead is True"),
        (unknown_outputs, RuntimeError, "output layer is still unknown"),
    ],
)
def test_what_does_not_fit_is_refused(act: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act()


def test_a_refused_network_stays_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.LazyLinear(2))
    with pytest.raises(ConfigError):
        HNET(net)
    assert type(net[0]) is nn.Linear
    assert all(p.requires_grad for p in net[0].parameters())
