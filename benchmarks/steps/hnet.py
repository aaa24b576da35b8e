"""HNET's training step as published, in plain PyTorch, and its settings.

The plain algorithm passes the earlier tasks one by one through the hypernetwork with shifted
weights, with dense gradients, and steps ``torch.optim.Adam``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.methods.hnet.learner import HNET
from hypermask_fast.networks import MLP
from hypermask_fast.training.optimizers import make_optimizers
from hypermask_fast.training.settings import TrainingSettings
from hypermask_fast.training.step import TrainingStep

SEED = 1
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "relu": F.relu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class HNETCase:
    """A training step of HNET at a number of earlier tasks; the network is an MLP.

    Attributes:
        inputs, hidden, classes: Of the MLP, which has ``classes`` outputs for each task.
        tasks: Their number.
        earlier: How many of them were learned.
        batch: Rows of a batch.
        options: Of :class:`HNET`.
    """

    inputs: int
    hidden: tuple[int, ...]
    classes: int
    tasks: int
    earlier: int
    batch: int
    options: tuple[tuple[str, Any], ...]


def _case(
    inputs: int, width: int, classes: int, tasks: int, earlier: int, **options: Any
) -> HNETCase:
    chosen = tuple(options.items())
    return HNETCase(inputs, (width, width), classes, tasks, earlier, 128, chosen)


_SPLIT = {
    "embedding_dim": 96,
    "chunk_embedding_dim": 96,
    "hidden": (10, 10),
    "chunk_size": 42000,
    "beta": 0.01,
}
_PERMUTED = {
    "embedding_dim": 24,
    "chunk_embedding_dim": 8,
    "hidden": (25, 25),
    "activation": "elu",
    "chunk_size": 78000,
    "beta": 0.1,
}
_FULL = {"embedding_dim": 96, "hidden": (25, 25), "head": "full", "beta": 0.01}
CASES = {
    "split-mnist-t4": _case(784, 400, 2, 5, 4, **_SPLIT),
    "permuted-mnist-t4": _case(1024, 1000, 10, 10, 4, **_PERMUTED),
    "permuted-mnist-t9": _case(1024, 1000, 10, 10, 9, **_PERMUTED),
    "split-mnist-full-t4": _case(784, 400, 2, 5, 4, **_FULL),
    "permuted-mnist-full-t4": _case(1024, 1000, 10, 10, 4, **{**_FULL, "hidden": (50, 50)}),
}
TINY = {
    name: HNETCase(
        *(6, (5, 4), 2, 3, 2, 4),
        options=tuple(
            {**dict(case.options), "embedding_dim": 3, "hidden": (4, 3)}.items()
            if "head" in dict(case.options)
            else {
                **dict(case.options),
                **{"embedding_dim": 3, "chunk_embedding_dim": 2, "hidden": (4, 3)},
                "chunk_size": 20,
            }.items()
        ),
    )
    for name, case in CASES.items()
}


class PlainHNET:
    """The hypernetwork and a training step, from the published description.

    Args:
        net: The target network, whose parameters are not used.
        layers: Weight and bias of each layer of the hypernetwork, the head last.
        chunks: Chunk embeddings (K, C), or None for a full head.
        embeddings: Of the earlier tasks, then the current one.
        targets: Outputs (N,) to keep of each earlier task.
        outputs: Those of the current task.
        beta, lr, activation: As in the published code.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Sequence[tuple[Tensor, Tensor]],
        chunks: Tensor | None,
        embeddings: Sequence[Tensor],
        targets: Sequence[Tensor],
        outputs: slice,
        *,
        beta: float,
        lr: float,
        activation: str,
    ) -> None:
        self.net, self.outputs, self.beta = net, outputs, beta
        self.activation = _ACTIVATIONS[activation]
        self.embeddings, self.targets = embeddings, targets
        self.has_chunks = chunks is not None
        self.shared = [p for layer in layers for p in layer]
        self.shared += [] if chunks is None else [chunks]
        self.main = torch.optim.Adam(self.shared, lr=lr)
        self.embedding = torch.optim.Adam([embeddings[-1]], lr=lr)
        self.size = sum(p.numel() for p in net.parameters())

    def theta(self, shared: Sequence[Tensor], embedding: Tensor) -> Tensor:
        """Return the target weights (N,) of a task."""
        layers: list[Tensor] = list(shared)
        hidden = embedding[None]
        if self.has_chunks:
            chunks = layers.pop()
            hidden = torch.cat((embedding.expand(len(chunks), -1), chunks), 1)
        for i in range(0, len(layers) - 2, 2):
            hidden = self.activation(F.linear(hidden, layers[i], layers[i + 1]))
        return F.linear(hidden, layers[-2], layers[-1]).flatten()[: self.size]

    @torch.no_grad()
    def look_ahead(self) -> list[Tensor]:
        """Return the shared parameters as Adam would nearly make them."""
        (group,) = self.main.param_groups
        (beta1, beta2), ahead = group["betas"], []
        for p in self.shared:
            state = self.main.state.get(p, {})
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            n = float(state["step"]) + 1 if state else 1.0
            m = (1 - beta1) * grad + (beta1 * state["exp_avg"] if state else 0)
            v = (1 - beta2) * grad * grad + (beta2 * state["exp_avg_sq"] if state else 0)
            size = group["lr"] * (1 - beta2**n) ** 0.5 / (1 - beta1**n)
            ahead.append((p - size * m / (v.sqrt() + group["eps"])).requires_grad_())
        return ahead

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Train on a batch; return its cross-entropy and the regularizer."""
        self.main.zero_grad()
        self.embedding.zero_grad()
        weights, at = {}, 0
        theta = self.theta(self.shared, self.embeddings[-1])
        for name, p in self.net.named_parameters():
            weights[name] = theta[at : at + p.numel()].view_as(p)
            at += p.numel()
        logits = torch.func.functional_call(self.net, weights, (x,))[:, self.outputs]
        loss = F.cross_entropy(logits, y)
        loss.backward()
        reg: Tensor = loss.new_zeros(())
        if self.targets:
            ahead = self.look_ahead()
            for embedding, target in zip(self.embeddings, self.targets, strict=False):
                reg = reg + (self.theta(ahead, embedding.detach()) - target).pow(2).sum()
            reg = reg / len(self.targets)
            grads = torch.autograd.grad(self.beta * reg, ahead)
            for q, grad in zip(self.shared, grads, strict=True):
                q.grad = grad if q.grad is None else q.grad + grad
        self.main.step()
        self.embedding.step()
        return loss.detach(), reg.detach()


def make_learner(case: HNETCase, dtype: torch.dtype = torch.float32) -> HNET:
    """Return a learner within a task, whose hypernetwork moved since the task began."""
    torch.manual_seed(SEED)
    net = MLP(case.inputs, case.hidden, case.tasks * case.classes).to(dtype)
    learner = HNET(
        net,
        example_input=torch.zeros(2, case.inputs, dtype=dtype),
        task_heads="multi",
        capacity=case.tasks,
        **dict(case.options),
    )
    for task in range(case.tasks):
        learner.add_task(classes=range(task * case.classes, (task + 1) * case.classes))
    tensors, state = learner.task_state()
    learner.load_task_state(tensors, state | {"learned": list(range(case.earlier))})
    learner.begin_task(case.earlier)
    with torch.no_grad():
        for p in learner.hypernetwork.parameters():
            if p is not learner.hypernetwork.embeddings:
                p.add_(torch.randn_like(p), alpha=1e-3)
    return learner


def make_plain(learner: HNET, case: HNETCase, lr: float = 1e-3) -> PlainHNET:
    """Return the plain algorithm in the state of a learner, with parameters of its own."""

    def own(p: Tensor) -> Tensor:
        return nn.Parameter(p.detach().clone())

    hypernetwork: Any = learner.hypernetwork
    linears = [m for m in hypernetwork.trunk if isinstance(m, nn.Linear)]
    layers = [(own(m.weight), own(m.bias)) for m in (*linears, hypernetwork.head)]
    chunks = getattr(hypernetwork, "chunk_embeddings", None)
    first = case.earlier * case.classes
    options = dict(case.options)
    return PlainHNET(
        MLP(case.inputs, case.hidden, case.tasks * case.classes),
        layers,
        None if chunks is None else own(chunks),
        [own(e) for e in hypernetwork.embeddings[: case.earlier + 1]],
        list(learner.task_state()[0].get("targets", ())),
        slice(first, first + case.classes),
        beta=options["beta"],
        lr=lr,
        activation=options.get("activation", "relu"),
    )


def make_batch(case: HNETCase, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of the recorded batch."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.rand(case.batch, case.inputs, generator=generator, dtype=dtype)
    return x, torch.randint(case.classes, (case.batch,), generator=generator)


def make_ours(learner: HNET, case: HNETCase, lr: float = 1e-3) -> Callable[[Tensor, Tensor], Any]:
    """Return the trainer's step of a learner."""
    step = TrainingStep(learner, make_optimizers(learner, TrainingSettings(lr=lr)))
    return lambda x, y: step(x, y, case.earlier)
