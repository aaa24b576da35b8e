"""Normalisation under a learner, held against torch's own layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.conversion.convert import convert
from hypermask_fast.conversion.norm_tables import TaskNorms
from hypermask_fast.errors import ConfigError
from hypermask_fast.layers.norms import TaskNorm
from hypermask_fast.methods.hypermask.learner import HyperMask


class ConvNet(nn.Module):
    """A batch norm after a convolution, one after a linear layer, a layer norm, a group norm."""

    def __init__(self, *, affine: bool = True, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.bn2d = nn.BatchNorm2d(4, affine=affine, **options)
        self.group = nn.GroupNorm(2, 4, affine=affine)
        self.fc = nn.Linear(4, 6)
        self.bn1d = nn.BatchNorm1d(6, affine=affine, **options)
        self.layer = nn.LayerNorm(6, elementwise_affine=affine)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.bn2d(self.conv(x)).relu())
        x = self.bn1d(self.fc(x.mean((2, 3))))
        return self.out(self.layer(x).relu())


def make(bn: str, *, affine: bool = True, exclude: Any = (), **options: Any) -> HyperMask:
    net = ConvNet(affine=affine, **options)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
                for parameter in module.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
                for key, value in module.named_buffers():
                    if key.startswith("running"):
                        value.uniform_(0.5, 2)
    learner = HyperMask(net, embedding_dim=3, hidden=(5,), capacity=3, bn=bn, exclude=exclude)
    for _ in range(3):
        learner.add_task()
    learner.eval()(batch(2), 0)  # finds the last bias
    return learner.train()


def batch(n: int = 9) -> Tensor:
    return 2 * torch.randn(n, 2, 5, 5) + 1


def train(learner: HyperMask, task: int, steps: int = 3, lr: float = 0.05) -> None:
    learner.begin_task(task)
    optimizer = torch.optim.Adam(learner.parameters(), lr=lr)
    for _ in range(steps):
        x = batch()
        out = learner.losses(x, torch.randint(3, (len(x),)), task)
        optimizer.zero_grad()
        out.total.backward()
        optimizer.step()
    learner.end_task()


def norm_inputs(learner: HyperMask, x: Tensor, task: int, name: str) -> tuple[Tensor, Tensor]:
    """What goes into a normalisation layer, and what comes out."""
    seen: list[tuple[Tensor, Tensor]] = []
    layer = learner.net.get_submodule(name)
    hook = layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    learner(x, task)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        pytest.param(nn.BatchNorm1d(4), (7, 4), id="1d"),
        pytest.param(nn.BatchNorm1d(4, momentum=0.3, eps=1e-2), (7, 4, 5), id="1d-sequence"),
        pytest.param(nn.BatchNorm2d(4, affine=False), (3, 4, 5, 5), id="2d-plain"),
        pytest.param(nn.BatchNorm2d(4, momentum=0.01), (3, 4, 5, 5), id="2d"),
    ],
)
def test_per_task_statistics_move_as_those_of_torch(
    norm: nn.Module, shape: tuple[int, ...]
) -> None:
    """Each task's row behaves as a layer of its own, over several steps and then in evaluation."""
    net = nn.Sequential(nn.Linear(1, 1), norm)
    options = {key: getattr(norm, key) for key in ("eps", "momentum", "affine")}
    plain = [type(norm)(4, **options) for _ in range(2)]
    convert(net)
    norms = TaskNorms(net, "per_task", 2)
    for step in range(6):
        task = step % 2
        x = torch.randn(shape) * (task + 1) + task
        ((layer, state),) = norms.states(task, learning=True)
        layer.active = state
        assert torch.equal(layer(x), plain[task](x))
    for task in range(2):
        ((layer, state),) = norms.states(task, learning=True)
        for name in ("running_mean", "running_var"):
            assert torch.equal(getattr(state, name), getattr(plain[task], name))
        layer.active = state
        x = torch.randn(shape)
        assert torch.equal(layer.eval()(x), plain[task].eval()(x))


def test_learning_a_task_leaves_the_others_untouched() -> None:
    learner = make("per_task")
    train(learner, 0)
    x = batch()
    hypernetwork = {k: v.clone() for k, v in learner.hypernetwork.state_dict().items()}
    weights = learner.task_weights(0)
    rows = {k: v[[0, 2]].clone() for k, v in learner.norms.state_dict().items()}
    own = {k: v.clone() for k, v in learner.net.state_dict().items() if "bn" in k or "layer" in k}
    logits = learner.eval()(x, 0)
    train(learner.train(), 1)
    for key, value in learner.norms.state_dict().items():
        assert torch.equal(value[[0, 2]], rows[key]), key
        assert not torch.equal(value[1], rows[key][1]), key
    for key, value in own.items():
        assert torch.equal(learner.net.state_dict()[key], value), key
    # The same hypernetwork and target: then the logits are the same to the last bit.
    assert not torch.equal(learner.eval()(x, 0), logits)
    learner.hypernetwork.load_state_dict(hypernetwork)
    with learner.activated(0, weights=weights) as net:
        assert torch.equal(net(x), logits)


def test_statistics_move_only_for_the_task_that_is_learned() -> None:
    learner = make("per_task")
    train(learner, 0)
    learner.begin_task(1)
    before = {k: v.clone() for k, v in learner.norms.state_dict().items()}
    x = batch()
    trained = learner.train()(x, 0)
    assert torch.equal(trained, learner.eval()(x, 0))
    for key, value in learner.norms.state_dict().items():
        assert torch.equal(value, before[key]), key
    learner.train()(x, 1)
    moved = learner.norms.state_dict()["tables.0.running_mean"]
    assert not torch.equal(moved[1], before["tables.0.running_mean"][1])


@pytest.mark.parametrize(
    ("bn", "exclude"),
    [
        pytest.param("per_task", (), id="per-task"),
        pytest.param("frozen", (), id="frozen"),
        pytest.param("batch", ("bn*",), id="batch-with-excluded-norms"),
    ],
)
def test_evaluation_does_not_depend_on_the_batch(bn: str, exclude: Any) -> None:
    learner = make(bn, exclude=exclude).double()
    train_batch = batch().double()
    learner.begin_task(0)
    learner.losses(train_batch, torch.zeros(len(train_batch), dtype=torch.int64), 0)
    learner.end_task()
    x = batch().double()
    one_by_one = torch.cat([learner.eval()(row[None], 0) for row in x])
    torch.testing.assert_close(learner(x, 0), one_by_one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_batch_mode_equals_a_net_without_running_statistics(affine: bool, mode: str) -> None:
    learner = make("batch", affine=affine)
    learner.train(mode == "training")
    twin = ConvNet(affine=affine, track_running_stats=False).train(mode == "training")
    own = {k: v.clone() for k, v in learner.net.state_dict().items()}
    twin.load_state_dict({k: v for k, v in own.items() if "running" not in k and "num_" not in k})
    with torch.no_grad():
        for name, value in learner.task_weights(0).items():
            twin.get_parameter(name).copy_(value)
    x = batch()
    assert torch.equal(learner(x, 0), twin(x))
    for key, value in learner.net.state_dict().items():
        assert torch.equal(value, own[key]), key


def test_batch_mode_trains_the_shared_parameters() -> None:
    learner = make("batch")
    before = {k: v.clone() for k, v in learner.net.state_dict().items()}
    train(learner, 0)
    after = learner.net.state_dict()
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert changed == {k for k in after if "running" not in k and "num_" not in k}


@pytest.mark.parametrize("affine", [True, False])
def test_frozen_mode_uses_the_running_statistics_and_moves_nothing(affine: bool) -> None:
    learner = make("frozen", affine=affine)
    x = batch()
    for name in ("bn2d", "bn1d"):
        layer = learner.net.get_submodule(name)
        assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
        source, result = norm_inputs(learner, x, 1, name)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        shape = (1, -1, *[1] * (source.dim() - 2))
        expected = (source - layer.running_mean.view(shape)) / (
            layer.running_var.view(shape) + layer.eps
        ).sqrt()
        if affine:
            expected = expected * layer.weight.view(shape) + layer.bias.view(shape)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    before = {k: v.clone() for k, v in learner.net.state_dict().items()}
    train(learner, 0)
    for key, value in learner.net.state_dict().items():
        moves = key.startswith(("conv", "fc", "out"))
        assert torch.equal(value, before[key]) != moves, key


@pytest.mark.parametrize("name", ["layer", "group"])
def test_layer_and_group_norm_have_affine_parameters_for_each_task(name: str) -> None:
    learner = make("per_task")
    for task in range(2):
        train(learner, task)
    plain = ConvNet().get_submodule(name)
    results = []
    x = batch()
    for task in range(3):
        layer = learner.net.get_submodule(name)
        assert isinstance(layer, TaskNorm)
        (state,) = [s for m, s in learner.norms.states(task, learning=False) if m is layer]
        assert state.weight is not None
        assert state.bias is not None
        plain.load_state_dict({"weight": state.weight, "bias": state.bias})
        source, result = norm_inputs(learner, x, task, name)
        assert torch.equal(plain(source), result)
        results.append(plain.state_dict()["weight"].clone())
    assert not torch.equal(results[0], results[1])
    assert torch.equal(results[2], learner.net.get_submodule(name).get_parameter("weight"))


def test_excluded_norms_keep_their_statistics_in_training() -> None:
    learner = make("per_task", exclude="bn2d")
    layer = learner.net.get_submodule("bn2d")
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    train(learner, 0)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key
    x = batch()
    source, result = norm_inputs(learner.train(), x, 0, "bn2d")
    plain = nn.BatchNorm2d(4).eval()
    plain.load_state_dict(before)
    assert torch.equal(plain(source), result)
    assert len(learner.norms.tables) == 3


def test_excluded_parameters_of_a_norm_do_not_train() -> None:
    learner = make("per_task", exclude="*.bias")
    before = {k: v.clone() for k, v in learner.norms.state_dict().items()}
    train(learner, 0)
    for key, value in learner.norms.state_dict().items():
        assert torch.equal(value, before[key]) == key.endswith("bias"), key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"track_running_stats": False}, "track_running_stats=False", id="untracked"),
        pytest.param({"momentum": None}, "momentum=None", id="cumulative"),
    ],
)
def test_per_task_refuses_norms_without_moving_statistics(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"bn2d is a BatchNorm2d with .*{message}.*bn='batch'"):
        make("per_task", **options)
    x = batch()
    torch.manual_seed(3)
    learner = make("batch", **options)
    assert torch.isfinite(learner(x, 0)).all()


@pytest.mark.parametrize(
    ("bn", "options", "training", "evaluation"),
    [
        pytest.param("batch", {}, True, False, id="batch"),
        pytest.param("per_task", {}, True, False, id="per-task"),
        pytest.param("frozen", {}, False, False, id="frozen"),
        pytest.param("frozen", {"track_running_stats": False}, True, False, id="untracked"),
    ],
)
def test_where_rows_meet(
    bn: str, options: dict[str, Any], training: bool, evaluation: bool
) -> None:
    learner = make(bn, **options)
    assert learner.train().norms.mixes_rows == training
    assert learner.eval().norms.mixes_rows == evaluation


def test_without_a_state_a_converted_layer_is_the_plain_one() -> None:
    learner = make("per_task")
    net = ConvNet()
    net.load_state_dict(learner.net.state_dict())
    x = batch()
    for mode in (True, False):
        assert torch.equal(learner.net.train(mode)(x), net.train(mode)(x))
    for key, value in net.state_dict().items():
        assert torch.equal(learner.net.state_dict()[key], value), key
