"""HyperInterval: boxes, ramps, what is evaluated and exported, states, and errors."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypermask_fast as hmf
from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.hyperinterval.learner import HyperInterval
from hypermask_fast.methods.hyperinterval.ramps import extent_at, kappa_at
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.networks import MLP
from hypermask_fast.training.optimizers import make_optimizers
from hypermask_fast.training.settings import TrainingSettings
from tests.support.hyperinterval_cases import make

MODES = ["nested", "task"]


def train(learner: HyperInterval, task: int, steps: int = 4, shape: tuple[int, ...] = (5,)) -> None:
    learner.train()
    learner.begin_task(task, steps=steps)
    optimizers = make_optimizers(learner, TrainingSettings(lr=0.01))
    for _ in range(steps):
        learner.step(torch.rand(8, *shape), torch.randint(3, (8,)), task, optimizers)
    learner.end_task()
    learner.eval()


def conv_net() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2, padding=1)),
        *(nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
    )


def norm_net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize(
    ("make_net", "shape"),
    [(lambda: MLP(5, (7, 6), 3), (5,)), (conv_net, (1, 8, 8))],
    ids=["mlp", "conv"],
)
@pytest.mark.parametrize("mode", MODES)
def test_bounds_hold_every_network_of_the_box(make_net: Any, shape: Any, mode: str) -> None:
    """Networks of the weights' box, and of points of the embedding's box; inputs of any sign."""
    torch.manual_seed(0)
    learner = make(make_net().double(), mode=mode, extent=1.5)
    train_double = torch.randn(6, *shape, dtype=torch.float64)
    bounds, weights = learner.bounds(train_double, 1), learner.weight_bounds(1)
    assert (bounds.low <= bounds.mid).all()
    assert (bounds.mid <= bounds.up).all()
    hypernetwork = learner.hypernetwork
    center, radius = hypernetwork.box(torch.tensor([1]))
    for i in range(200):
        at = {name: torch.rand_like(b.low) for name, b in weights.items()}
        if i % 2:
            at = {name: a.round() for name, a in at.items()}
        sampled = {n: torch.lerp(b.low, b.up, at[n]) for n, b in weights.items()}
        if i % 4 == 3:
            point = center + radius * (2 * torch.rand_like(center) - 1)
            with torch.no_grad():
                flat = hypernetwork.emitted(point, torch.zeros_like(point))[0].chunk(2)[0]
            sizes = [b.low.numel() for b in weights.values()]
            sampled = {
                n: part.view(weights[n].low.shape)
                for n, part in zip(weights, flat.split(sizes), strict=True)
            }
            for name, w in sampled.items():
                assert (w >= weights[name].low - 1e-12).all()
                assert (w <= weights[name].up + 1e-12).all()
        with torch.no_grad(), learner.activated(1, sampled) as net:
            y = net(train_double)
        assert (y >= bounds.low - 1e-11).all()
        assert (y <= bounds.up + 1e-11).all()


def test_the_ramps_are_the_published_ones() -> None:
    for steps in (2000, 13, 2, 1, 0):
        ramp = steps // 2
        for i in range(max(1, steps)):
            if not ramp or i >= ramp:
                extent, kappa = 4.0, 0.5
            else:
                extent = 4.0 * i / (ramp - 1) if ramp > 1 else 0.0
                kappa = max(1 - 5e-5 * i, 0.5)
            for step in (i + 1, torch.tensor(i + 1)):
                if ramp == 1 and i >= 1:
                    extent = 4.0
                assert float(extent_at(step, ramp, 4.0)) == pytest.approx(extent, rel=1e-12)
                assert float(kappa_at(step, ramp, 0.5)) == pytest.approx(kappa, rel=1e-12)


def test_one_network_serves_all_learned_tasks() -> None:
    torch.manual_seed(0)
    learner, x = make(extent=2.0), torch.rand(4, 5)
    own = learner(x, 0)
    assert not torch.equal(own, learner(x, 1))
    for task in (0, 1):
        train(learner, task)
    learner.eval()
    low, up = learner.universal_box()
    for task in (0, 1):
        center, radius = learner.hypernetwork.box(torch.tensor([task]))
        assert (center[0] - radius[0] <= low + 1e-6).all()
        assert (up <= center[0] + radius[0] + 1e-6).all()
    assert torch.equal(learner(x, 0), learner(x, 1))
    assert torch.equal(learner.all_outputs(x)[0], learner(x, 0))
    # Of as many rows each, for a CPU may round a product of two otherwise than the same of four.
    ids = torch.tensor([0, 1, 0, 1])
    for task in (0, 1):
        assert torch.equal(learner(x, ids)[ids == task], learner(x[ids == task], 0))
    plain = learner.universal_network()
    assert type(plain) is MLP
    assert not any(type(m).__module__.startswith("hypermask_fast.layers") for m in plain.modules())
    assert torch.equal(plain(x), learner(x, 0))
    assert torch.equal(hmf.export_subnet(learner, 1)(x), plain(x))
    # A task that is being learned has its own network.
    learner.begin_task(2, steps=4)
    assert not torch.equal(learner(x, 2), learner(x, 0))
    learner.end_task()
    assert torch.equal(learner(x, 2), learner(x, 0))


@pytest.mark.parametrize("evaluates", ["universal", "task"])
@pytest.mark.parametrize("mode", MODES)
def test_outputs_of_many_tasks_are_those_of_each(mode: str, evaluates: str) -> None:
    torch.manual_seed(0)
    learner, x = make(mode=mode, evaluates=evaluates), torch.rand(6, 5)
    for task in (0, 1, 2):
        train(learner, task)
    each = torch.stack([learner(x, task) for task in range(3)])
    torch.testing.assert_close(learner.all_outputs(x), each)
    ids = torch.tensor([2, 0, 1, 1, 0, 2])
    with torch.no_grad():
        mixed = learner(x, ids)
    torch.testing.assert_close(mixed, each[ids, torch.arange(6)])
    assert learner.features(x, 1).shape == (6, 4)
    torch.testing.assert_close(hmf.export_subnet(learner, 2)(x), each[2])
    alpha = torch.tensor([0.0, 1.0, 0.0], requires_grad=True)
    with learner.blended(alpha) as net:
        if evaluates == "task" or mode == "task":
            torch.testing.assert_close(net(x), each[1])
        net(x).sum().backward()
    assert alpha.grad is not None


def test_earlier_tables_stay_and_the_current_row_moves() -> None:
    torch.manual_seed(0)
    learner = make(mode="task")
    train(learner, 0)
    tables = [learner.hypernetwork.embeddings, learner.hypernetwork.radii]
    before = [table.clone() for table in tables if table is not None]
    train(learner, 1)
    for old, table in zip(before, tables, strict=True):
        assert table is not None
        moved = (table != old).any(1).nonzero().flatten().tolist()
        assert moved == [1]
    radii = learner.hypernetwork.radii
    assert radii is not None
    _, radius = learner.hypernetwork.box(torch.tensor([0, 1, 2]))
    torch.testing.assert_close(radius.sum(1), torch.full((3,), learner.extent))


@pytest.mark.parametrize("options", [{}, {"mode": "task"}, {"targets": "bfloat16"}], ids=str)
def test_the_regularizer_starts_at_0_and_holds_the_outputs(options: dict[str, Any]) -> None:
    changes = []
    for beta in (0.0, 100.0):
        torch.manual_seed(0)
        learner = make(beta=beta, extent=2.0, **options)
        train(learner, 0)
        with torch.no_grad():
            before = learner.hypernetwork.logits(torch.tensor([0]))
        learner.begin_task(1, steps=30)
        optimizers = make_optimizers(learner, TrainingSettings(lr=0.01))
        for step in range(30):
            out = learner.step(torch.rand(8, 5), torch.randint(3, (8,)), 1, optimizers)
            if step == 0:
                assert out.output_reg.item() == 0.0
        learner.end_task()
        with torch.no_grad():
            after = learner.hypernetwork.logits(torch.tensor([0]))
        size = after.shape[1] if learner.nested else after.shape[1] // 2
        changes.append(float((after - before)[:, :size].norm()))
    assert changes[1] < 0.3 * changes[0]


def test_the_published_division_is_by_the_tasks_once_more() -> None:
    totals = {}
    for division in ("once", "twice"):
        torch.manual_seed(0)
        learner = make(division=division, beta=1.0)
        for task in (0, 1):
            train(learner, task)
        learner.begin_task(2)
        with torch.no_grad():
            learner.hypernetwork.head.bias.add_(0.1)
        out = learner.losses(torch.rand(4, 5), torch.tensor([0, 1, 2, 0]), 2)
        assert out.output_reg > 0.1
        totals[division] = (out.total - out.task).item() / out.output_reg.item()
    assert totals["once"] == pytest.approx(1.0, rel=1e-5)
    assert totals["twice"] == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("bn", ["per_task", "batch"])
def test_three_passes_take_any_network(bn: str) -> None:
    torch.manual_seed(0)
    net = norm_net()
    options = {"arithmetic": "three_pass", "mode": "task", "bn": bn}
    learner = make(net, **options, center="exchanged")
    learner.train()
    for task in (0, 1):
        train(learner, task)
    x = torch.rand(6, 5)
    with torch.no_grad():
        bounds = learner.bounds(x, 1)
        assert (bounds.mid <= bounds.up).all()
        torch.testing.assert_close(learner(x, 1), bounds.mid)
    assert not next(iter(learner.net.parameters())).requires_grad
    names = [entry["name"] for entry in learner.manifest()]
    assert "1.weight" in names
    assert all(entry["reason"] == "generated" for entry in learner.manifest())


def test_published_selection_takes_full_extents_only() -> None:
    losses = Losses(torch.tensor(0.7), torch.tensor(0.7), torch.zeros(1, 1), {})
    learner = make(extent=5.0)
    learner.begin_task(0, steps=200)
    scores = []
    for taken in (1, 50, 90, 95, 150):
        learner.steps_taken = taken
        scores.append(learner.published_score(losses, 50.0))
    # The ramp has 100 steps; an extent above 4.5 rounds to 5.
    assert scores == [-torch.inf, -torch.inf, -torch.inf, pytest.approx(-0.7), pytest.approx(-0.7)]
    small = make(extent=0.5)
    small.begin_task(0, steps=200)
    small.steps_taken = 150
    assert small.published_score(losses, 50.0) == -torch.inf
    other = make(mode="task")
    assert other.published_score(losses, 50.0) == 50.0


@pytest.mark.parametrize("new_embedding", ["drawn", "previous"])
def test_a_new_tasks_embedding(new_embedding: str) -> None:
    """A copy of the one of the task learned last, where asked for; one that was learned stays."""
    torch.manual_seed(0)
    learner = make(mode="task", new_embedding=new_embedding)
    table = learner.hypernetwork.embeddings
    drawn = table.detach().clone()
    for task in (1, 0):
        learner.begin_task(task)
        learner.end_task()
        with torch.no_grad():
            table[task] += 1
    learned = table.detach().clone()
    copies = new_embedding == "previous"
    assert torch.equal(table[0], (drawn[1] + 1 if copies else drawn[0]) + 1)
    learner.begin_task(2)
    assert torch.equal(table[2], learned[0] if copies else drawn[2])
    learner.abandon_task()
    assert torch.equal(table, learned)
    learner.begin_task(1)
    assert torch.equal(table, learned)


@pytest.mark.parametrize("mode", MODES)
def test_a_state_dict_goes_to_another_learner(mode: str) -> None:
    torch.manual_seed(0)
    learner, other = make(mode=mode, capacity=2), make(mode=mode, capacity=2, tasks=0)
    for task in (0, 1, 2):
        train(learner, task)
    other.load_state_dict(learner.state_dict())
    x = torch.rand(3, 5)
    assert [torch.equal(other.eval()(x, t), learner(x, t)) for t in range(3)] == [True] * 3
    twin = copy.deepcopy(learner)
    assert torch.equal(twin(x, 1), learner(x, 1))
    tensors, state = learner.task_state()
    third = make(mode=mode, capacity=2, tasks=0)
    third.load_task_state(tensors, json.loads(json.dumps(state)))
    assert third.learned == learner.learned


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigError, match="BatchNorm1d, which bounds do not go through"):
        make(norm_net())
    with pytest.raises(ConfigError, match="no bounds for layers that stay plain"):
        make(MLP(5, (4,), 3), exclude="classifier")
    with pytest.raises(ConfigError, match="needs arithmetic='three_pass'"):
        make(center="exchanged")
    with pytest.raises(ConfigError, match="extent"):
        make(extent=-1.0)
    with pytest.raises(ConfigError, match=r"mode='nestd'.*nested"):
        make(mode="nestd")
    with pytest.raises(RuntimeError, match="no task was learned"):
        make().universal_box()
    with pytest.raises(RuntimeError, match="mode is 'task'"):
        make(mode="task").universal_network()
    learner = make()
    with pytest.raises(RuntimeError, match="call begin_task"):
        learner.losses(torch.rand(2, 5), torch.tensor([0, 1]), 0)
    learner.begin_task(0)
    with pytest.raises(ValueError, match="labels reach"):
        learner.losses(torch.rand(2, 5), torch.tensor([0, 7]), 0)
    with pytest.raises(ConfigError, match="capacity"):
        learner._settings.check_run(tasks=9, moments="float32")


def test_a_report_and_facts() -> None:
    learner = make(mode="task")
    assert "6 for each task" in learner.report()
    assert learner.facts() == {"target_weights": 39, "head_width": 5, "head_parameters": 39 * 6}


def test_an_abandoned_task_leaves_no_trace() -> None:
    torch.manual_seed(0)
    learner = make(mode="task")
    train(learner, 0)
    before: dict[str, Tensor] = {k: v.clone() for k, v in learner.state_dict().items()}
    learner.begin_task(1, steps=4)
    optimizers = make_optimizers(learner, TrainingSettings(lr=0.1))
    learner.step(torch.rand(8, 5), torch.randint(3, (8,)), 1, optimizers)
    learner.abandon_task()
    after = learner.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
