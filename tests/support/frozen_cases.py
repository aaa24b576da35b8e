"""Learners with frozen tasks, and all ways to what these give."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from hypermask_fast.inference.export import export_subnet
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.optim.factored_adam import FactoredAdam
from tests.support.hypermask_cases import batch, make, mixed_net

Bits = dict[str, Tensor]


class Averaging(nn.Module):
    """A layer with a bias, and a buffer that a forward in training mode moves."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(6))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.5)
        return x - self.mean + self.shift


class Recurrent(nn.Module):
    """A recurrent layer, some of whose weights are shared, before a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 6, batch_first=True)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.rnn(x[:, :, None])[0][:, -1])
        return outputs


def small_convolutions() -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(12, 3)),
    )


def buffered() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), Averaging(), nn.ReLU(), nn.Linear(6, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "mlp": (lambda: MLP(5, (4,), 3), {}),
    "ramp": (lambda: MLP(5, (4,), 3), {"sparsity": 40.0}),
    "chunked": (
        lambda: MLP(5, (4,), 3),
        {"head": "chunked", "chunk_size": 20, "chunk_embedding_dim": 2},
    ),
    "norm-per-task": (mixed_net, {"dropout": "off"}),
    "norm-batch": (mixed_net, {"bn": "batch", "dropout": "off"}),
    "norm-frozen": (mixed_net, {"bn": "frozen", "dropout": "off"}),
    "norm-shared": (mixed_net, {"shared": "1.*", "dropout": "off"}),
    "convolutions": (small_convolutions, {"per_task": "5.bias"}),
    "buffer-and-shared": (buffered, {"shared": ["1.shift", "0.bias"]}),
    "recurrent-shared": (Recurrent, {"shared": "rnn.weight_hh_l0"}),
    "weight-norm": (
        lambda: nn.Sequential(weight_norm(nn.Linear(5, 6)), nn.ReLU(), nn.Linear(6, 3)),
        {},
    ),
}
OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.05),
    "in-backward": lambda p: FactoredAdam(p, lr=0.05, step_in_backward=True),
}


def made(name: str = "mlp", **options: Any) -> HyperMask:
    torch.manual_seed(4)
    network, own = NETWORKS[name]
    with pytest.warns(match="shared") if name == "weight-norm" else nullcontext():
        learner = make(network(), tasks=0, **{"sparsity": 20.0, "beta": 1.0, **own, **options})
    for _ in range(4):
        learner.add_task(classes=range(3))
    return learner


def learn(learner: HyperMask, optimizer: Any, *tasks: int, steps: int = 3) -> None:
    for task in tasks:
        learner.train().begin_task(task, steps=steps)
        for _ in range(steps):
            step(learner, optimizer, task)
        learner.end_task()


def step(learner: HyperMask, optimizer: Any, task: int) -> Any:
    optimizer.zero_grad()
    losses = learner.losses(*batch(learner), task, optimizer=optimizer)
    losses.total.backward()
    optimizer.step()
    return losses


@torch.no_grad()
def bits_of(learner: HyperMask) -> Bits:
    """All ways to the outputs of tasks 0 and 1, in evaluation."""
    learner.eval()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([0, 1, 1, 0, 0, 1])
    factors = torch.tensor([0.25, 0.75] + [0.0] * (len(learner.tasks) - 2))
    found: Bits = {"mixed": learner(x, ids), "all": learner.all_outputs(x, [1, 0])}
    with learner.blended(factors) as net:
        found["blended"] = net(x)
    for task in (0, 1):
        found[f"single {task}"] = learner(x, task)
        found[f"features {task}"] = learner.features(x, task)
        found[f"exported {task}"] = export_subnet(learner, task)(x)
        found |= {f"{k} {task}": v for k, v in learner.task_weights(task).items()}
    return found


def assert_same(found: Bits, expected: Bits) -> None:
    different = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not different
