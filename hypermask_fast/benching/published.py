"""HyperMask's training step as published, in plain PyTorch: what speed-ups are measured against.

The earlier tasks are looped over one by one, percentiles come from a full sort in float64, the
gradients are dense and the optimizer is ``torch.optim.Adam``. Percentile 0, which removes nothing,
is not sorted for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.benching.laps import Enter
from hypermask_fast.benching.names import BACKWARD, MASKS, OPTIMIZER, REGULARIZER, TARGET
from hypermask_fast.conversion.convert import unconvert
from hypermask_fast.methods.hypermask.learner import HyperMask


def _nothing(phase: str) -> None:
    """Do nothing."""


def _adam(parameters: list[Tensor]) -> Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


class PublishedLosses(NamedTuple):
    """The losses of a batch, 0-d, under the names that HyperMask gives them."""

    total: Tensor
    task: Tensor
    output_reg: Tensor
    weight_reg: Tensor


def percentile(values: Tensor, p: float) -> Tensor:
    """Return the p-th percentile of all elements: a float64 sort, linearly interpolated."""
    ordered = values.flatten().double().sort().values
    position = p / 100 * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    value = ordered[low] + (position - low) * (ordered[high] - ordered[low])
    return value.to(values.dtype)


class Published:
    """The hypernetwork, the target network and a training step over both.

    Args:
        net: The target network; its normalisation layers use batch statistics.
        trunk: Weight and bias of each hidden layer of the hypernetwork.
        head: Weight (N, H) and bias (N,) of its output layer.
        embeddings: Of the earlier tasks, then the current one.
        targets: Outputs (N,) to keep of each earlier task.
        previous: Values to stay near of each target parameter that is not a normalisation's, by
            name in the order of the outputs; the last is the bias that is not masked.
        sparsity, beta, lam, masked_l1: As in ``HyperMask``.
        make_optimizer: Makes the optimizer of parameters. Default: Adam with a rate of 1e-3.
    """

    def __init__(
        self,
        net: nn.Module,
        trunk: Sequence[tuple[Tensor, Tensor]],
        head: tuple[Tensor, Tensor],
        embeddings: Sequence[nn.Parameter],
        targets: Sequence[Tensor],
        previous: Mapping[str, Tensor],
        *,
        sparsity: float,
        beta: float,
        lam: float,
        masked_l1: bool,
        make_optimizer: Callable[[list[Tensor]], Optimizer] = _adam,
    ) -> None:
        self.net, self.trunk, self.head = net, trunk, head
        self.embeddings, self.targets, self.previous = embeddings, targets, previous
        self.sparsity, self.beta, self.lam = sparsity, beta, lam
        self.masked_l1 = masked_l1
        layers = [p for layer in (*trunk, head) for p in layer]
        self.optimizer = make_optimizer([*embeddings, *layers, *net.parameters()])

    def outputs(self, task: int) -> Tensor:
        """Return the hypernetwork's output (N,) for a task."""
        hidden = self.embeddings[task][None]
        for weight, bias in self.trunk:
            hidden = F.elu(F.linear(hidden, weight, bias))
        return F.linear(hidden, *self.head)[0]

    def output_reg(self) -> Tensor:
        """Return the mean over earlier tasks of the squared distance of outputs and targets."""
        total = self.targets[0].new_zeros(())
        for task, target in enumerate(self.targets):
            total = total + (target - self.outputs(task)).pow(2).sum()
        return total / len(self.targets)

    def losses(self, x: Tensor, y: Tensor, enter: Enter = _nothing) -> PublishedLosses:
        """Return the losses of a batch of the current task.

        Args:
            x, y: Inputs, and labels int64 (batch,).
            enter: Told of the phases after the first, the hypernetwork's forward.
        """
        weights = {k: p for k, p in self.net.named_parameters() if k in self.previous}
        sizes = [w.numel() for w in weights.values()]
        outputs = self.outputs(len(self.embeddings) - 1).split(sizes)
        enter(MASKS)
        last = list(self.previous)[-1]
        masks, masked = {}, {}
        for (name, weight), output in zip(weights.items(), outputs, strict=True):
            mask = output.view_as(weight).tanh().abs()
            if self.sparsity and name != last:
                mask = mask * (mask >= percentile(mask.detach(), self.sparsity))
            masks[name] = mask
            masked[name] = weight if name == last else weight * mask
        enter(TARGET)
        task = F.cross_entropy(torch.func.functional_call(self.net, masked, (x,)), y)

        enter(REGULARIZER)
        earlier = len(self.targets)
        output_reg = weight_reg = task.new_zeros(())
        if earlier:
            output_reg = self.output_reg()
            for name, old in self.previous.items():
                drift = weights[name] - old
                weight_reg = weight_reg + (drift * masks[name] if self.masked_l1 else drift).norm(1)
        total = task + self.beta * output_reg / max(1, earlier) + self.lam * weight_reg
        return PublishedLosses(total, task, output_reg, weight_reg)

    def step(self, x: Tensor, y: Tensor, enter: Enter = _nothing) -> PublishedLosses:
        """Train on a batch, and return its losses, detached; ``enter`` as in :meth:`losses`."""
        self.optimizer.zero_grad()
        losses = self.losses(x, y, enter)
        enter(BACKWARD)
        losses.total.backward()
        enter(OPTIMIZER)
        self.optimizer.step()
        return PublishedLosses(*(value.detach() for value in losses))


def why_not_published(learner: HyperMask) -> str:
    """Return which setting of a learner the plain algorithm lacks, for people; "": none.

    Args:
        learner: Which has run once.
    """
    settings, wanted = (
        learner._settings,
        dict(
            head="full",
            activation="elu",
            targets="full",
            regularized_tasks=None,
            earlier="regularized",
            train_target=True,
        ),
    )
    for name, value in wanted.items():
        if getattr(settings, name) != value:
            return f"the published step has no {name}={getattr(settings, name)!r}"
    masked = [entry for entry in learner.manifest() if entry["offset"] >= 0]
    if learner.exempt != masked[-1]["name"]:
        return "the published step wants an output layer that is the network's last, with a bias"
    if learner.bn == "frozen" and len(masked) < len(learner.manifest()):
        return "the published step has no bn='frozen'"
    return ""


def published_of(
    learner: HyperMask, algorithm: type[Published] = Published, **options: Any
) -> Published:
    """Take a learner's state within a task for the plain algorithm; the learner is void then.

    Args:
        learner: With the settings of :func:`why_not_published`, its tasks learned in their order.
        algorithm: The class.
        **options: ``make_optimizer``.
    """
    task = learner.current
    assert task is not None
    tensors, _ = learner.task_state()
    entries = [entry for entry in learner.manifest() if entry["offset"] >= 0]
    net, hypernetwork = unconvert(learner.net), learner.hypernetwork
    if learner.bn == "per_task":
        learner.install_norms(net, task)
    weights = [net.get_parameter(entry["name"]) for entry in entries]
    parts: Sequence[Tensor] = weights
    if "previous" in tensors:
        parts = tensors["previous"].split([w.numel() for w in weights])
    previous = {
        entry["name"]: part.view_as(weight)
        for entry, part, weight in zip(entries, parts, weights, strict=True)
    }
    embeddings = [nn.Parameter(e.clone()) for e in hypernetwork.embeddings[: task + 1]]
    linears = [m for m in hypernetwork.trunk if isinstance(m, nn.Linear)]
    return algorithm(
        net.requires_grad_(),
        [(m.weight, m.bias) for m in linears],
        (hypernetwork.head.weight, hypernetwork.head.bias),
        embeddings,
        list(tensors.get("targets", ())),
        previous,
        sparsity=learner.sparsity,
        beta=learner.beta,
        lam=learner.lam,
        masked_l1=learner.masked_l1,
        **options,
    )
