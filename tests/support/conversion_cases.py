"""Networks to convert, and what a conversion might change in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.methods.hypermask.learner import HyperMask


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


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


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
