"""What is measured: a training step of one setting, at a number of earlier tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.networks import make_network

SUITES = ("cpu", "gpu")
SIZES = ("tiny", "full")


class _VitBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.out(q + k + v)
        return x + self.down(F.gelu(self.up(x)))


class _VitLayers(nn.Module):
    """The linear layers of ViT-B/16 on one token: its weights without its attention."""

    def __init__(self, width: int = 768, blocks: int = 12) -> None:
        super().__init__()
        self.patch = nn.Linear(width, width)
        self.blocks = nn.ModuleList(_VitBlock(width) for _ in range(blocks))
        self.classifier = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)


@dataclass(frozen=True)
class Case:
    """A training step of HyperMask.

    Attributes:
        name: As on the command line.
        network: Name of :func:`hypermask_fast.networks.make_network`, or "vit-b16".
        options: Of the network.
        input_shape: Of one input.
        classes: Outputs.
        embedding_dim, hidden, sparsity, beta, lam, masked_l1: As in ``HyperMask``.
        batch: Rows of a batch.
        earlier: t, the number of earlier tasks.
    """

    name: str
    network: str
    options: tuple[tuple[str, object], ...]
    input_shape: tuple[int, ...]
    classes: int
    embedding_dim: int
    hidden: tuple[int, ...]
    sparsity: float
    beta: float
    lam: float
    masked_l1: bool
    batch: int
    earlier: int = 0

    def make_network(self) -> nn.Module:
        """Build the target network."""
        if self.network == "vit-b16":
            return _VitLayers(**dict(self.options))  # type: ignore[arg-type]
        return make_network(self.network, self.input_shape, self.classes, **dict(self.options))


_PERMUTED = Case(
    "permuted-mnist",
    "mlp",
    (("hidden", (1000, 1000)),),
    (1024,),
    10,
    embedding_dim=24,
    hidden=(100, 100),
    sparsity=0.0,
    beta=5e-4,
    lam=1e-3,
    masked_l1=True,
    batch=128,
)
_SPLIT = replace(
    _PERMUTED,
    name="split-mnist",
    options=(("hidden", (400, 400)),),
    input_shape=(784,),
    classes=2,
    embedding_dim=128,
    hidden=(25, 25),
    sparsity=30.0,
    beta=1e-3,
)
_RESNET = Case(
    "resnet",
    "resnet",
    (("n", 3), ("k", 2)),
    (3, 32, 32),
    10,
    embedding_dim=48,
    hidden=(100,),
    sparsity=0.0,
    beta=0.01,
    lam=1.0,
    masked_l1=False,
    batch=32,
)
# Dropout, which acts only in a task's first step as published, would only blur the comparison.
_ZENKE = replace(
    _RESNET, name="zenkenet", network="zenkenet", options=(("dropout", False),), lam=0.01
)
_VIT = replace(_RESNET, name="vit-b16", network="vit-b16", options=(), input_shape=(768,))

_TINY_HEAD: dict[str, Any] = {"embedding_dim": 4, "batch": 4}
_TINY: dict[str, dict[str, Any]] = {
    "permuted-mnist": {"options": (("hidden", (12, 12)),), "input_shape": (16,), "hidden": (8, 8)},
    "split-mnist": {"options": (("hidden", (12, 12)),), "input_shape": (16,), "hidden": (8, 8)},
    "resnet": {"options": (("n", 1), ("k", 1)), "input_shape": (3, 8, 8), "hidden": (8,)},
    "zenkenet": {"hidden": (4,)},
    "vit-b16": {
        "options": (("width", 8), ("blocks", 1)),
        "input_shape": (8,),
        "hidden": (8,),
    },
}

_EARLIER = {
    "cpu": ((_PERMUTED, (0, 4, 9)), (_SPLIT, (0, 4)), (_RESNET, (0, 9)), (_ZENKE, (0, 9))),
    "gpu": (
        (_PERMUTED, (0, 4, 9, 99)),
        (_SPLIT, (0, 4)),
        (_RESNET, (0, 9)),
        (_ZENKE, (0, 9)),
        (_VIT, (0,)),
    ),
}


def tiny(case: Case) -> Case:
    """Return the case with its smallest network and head; its tasks and loss are the same."""
    changes = _TINY[case.name.rpartition("-t")[0]] | _TINY_HEAD
    return replace(case, **changes)


def find_cases(suite: str, names: list[str] | None = None, size: str = "full") -> list[Case]:
    """Return the cases of a suite, or those of them that are named.

    Args:
        suite: "cpu" or "gpu".
        names: Such as "permuted-mnist-t9"; None for all.
        size: "full" or "tiny".

    Raises:
        ConfigError: The suite has no case of that name.
    """
    cases = {
        f"{base.name}-t{t}": replace(base, name=f"{base.name}-t{t}", earlier=t)
        for base, counts in _EARLIER[suite]
        for t in counts
    }
    for name in names or ():
        if name not in cases:
            raise ConfigError(
                f"case is {name!r}{nearest(name, cases)}; choose from {', '.join(cases)}"
            )
    chosen = [cases[name] for name in names or cases]
    return [tiny(case) for case in chosen] if size == "tiny" else chosen
