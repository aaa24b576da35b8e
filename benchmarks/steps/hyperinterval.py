"""HyperInterval's training step as published, in plain PyTorch, and its settings.

The plain algorithm passes the boxes of all tasks through the hypernetwork with dense products of A
and |A|, forms low, center and up of all of them for the regularizer, and steps
``torch.optim.Adam``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hypermask_fast.methods.hyperinterval.learner import HyperInterval
from hypermask_fast.methods.hyperinterval.target import weights_of
from hypermask_fast.networks import MLP

SEED = 1


class Case(NamedTuple):
    """A step of a task with 4 earlier ones.

    Attributes:
        widths: Of the target's layers.
        hidden, embedding_dim, mode, extent, beta: Of the method.
        batch: Rows of the batch.
    """

    widths: tuple[int, ...]
    hidden: tuple[int, ...]
    batch: int
    mode: str = "nested"
    embedding_dim: int = 24
    extent: float = 10.0
    beta: float = 1e-3


CASES: Mapping[str, Case] = {
    "tiny": Case((64, 32, 2), (16,), 16),
    "tiny-task": Case((64, 32, 2), (16, 12), 16, "task", 24, 1.0, 0.01),
    "split-mnist": Case((784, 400, 400, 2), (100,), 64),
    "split-mnist-task": Case((784, 400, 400, 2), (75, 75), 128, "task", 72, 1.0, 0.01),
}
KEYS = ("weight", "bias")
EARLIER, _STEPS = 4, 2000


def make(name: str) -> tuple[HyperInterval, Tensor, Tensor]:
    """Return a learner within its fifth task, and a batch."""
    torch.manual_seed(SEED)
    widths, hidden, batch, mode, embedding_dim, extent, beta = CASES[name]
    learner = HyperInterval(
        MLP(widths[0], widths[1:-1], widths[-1]),
        mode=mode,
        embedding_dim=embedding_dim,
        hidden=hidden,
        extent=extent,
        beta=beta,
        division="twice",
        capacity=EARLIER + 1,
    )
    for task in range(EARLIER + 1):
        learner.add_task()
        learner.begin_task(task, steps=_STEPS)
        if task < EARLIER:
            learner.end_task()
    learner.steps_taken = _STEPS // 2
    return learner, torch.rand(batch, widths[0]), torch.randint(widths[-1], (batch,))


def published_layer(
    x: Sequence[Tensor], weight: Sequence[Tensor], bias: Sequence[Tensor]
) -> list[Tensor]:
    """Return low, mid and up of a layer whose inputs are not negative."""
    (low, mid, up), (w_low, w_mid, w_up), (b_low, b_mid, b_up) = x, weight, bias
    return [
        F.linear(low, w_low.clamp(min=0), b_low) + F.linear(up, w_low.clamp(max=0)),
        F.linear(mid, w_mid, b_mid),
        F.linear(up, w_up.clamp(min=0), b_up) + F.linear(low, w_up.clamp(max=0)),
    ]


def plain_step(
    learner: HyperInterval,
) -> tuple[Callable[[Tensor, Tensor], Tensor], torch.optim.Optimizer]:
    """Return a step of the plain algorithm over a learner's parameters, and its optimizer."""
    hypernetwork, network = learner.hypernetwork, learner._network
    head = hypernetwork.head
    optimizer = torch.optim.Adam(hypernetwork.parameters())
    ids = torch.tensor([EARLIER, *range(EARLIER)], device=hypernetwork.embeddings.device)

    # Of centers alone, where tasks are told apart, radii of earlier tasks are not needed.
    boxes = len(ids) if learner.nested else 1

    def ends() -> tuple[Tensor, Tensor]:
        points, spreads = hypernetwork.hidden_boxes(*hypernetwork.box(ids)).chunk(2)
        center, radius = head(points), spreads[:boxes] @ head.weight.abs().t()
        wide = center[:boxes]
        low_mid_up = torch.stack((wide - radius, wide, wide + radius))
        return low_mid_up[:, 0], low_mid_up[:, 1:] if learner.nested else center[None, 1:]

    with torch.no_grad():
        kept = ends()[1].clone()

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        emitted, earlier = ends()
        current = [weights_of(network, each) for each in emitted]
        h = [x, x, x]
        names = [entry.name.rpartition(".")[0] for entry in network.tensors[::2]]
        for layer in names:
            h = published_layer(h, *([each[f"{layer}.{key}"] for each in current] for key in KEYS))
            h = h if layer == names[-1] else [F.relu(each) for each in h]
        low, mid, up = h
        worst = torch.where(F.one_hot(y, low.shape[1]).bool(), low, up)
        loss = 0.5 * F.cross_entropy(mid, y) + 0.5 * F.cross_entropy(worst, y)
        changes = (earlier - kept).square().sum() / (len(kept) * EARLIER)
        total = loss + learner.beta / EARLIER * changes
        total.backward()
        optimizer.step()
        return total.detach()

    return step, optimizer
