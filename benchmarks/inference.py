"""Inference by entropy as published.

The published code of HNET makes a task's weights anew for each sample, in batches of one. That of
HyperMask runs batches of 2,000 and loops over samples and tasks for the entropies alone. Both are
written here in plain PyTorch, for HyperMask over an MLP.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from hypermask_fast.benching.published import percentile
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP

ROWS = 2000


def logits_of(learner: HyperMask, x: Tensor, task: int) -> Tensor:
    """Return the outputs (batch, outputs) of a task of a masked MLP, in plain PyTorch."""
    hypernetwork, net = learner.hypernetwork, learner.net
    assert isinstance(net, MLP)
    z = hypernetwork.trunk(hypernetwork.embeddings[task])
    z = F.linear(z, hypernetwork.head.weight, hypernetwork.head.bias)
    parameters = dict(net.named_parameters())
    weights: list[Tensor] = []
    offset = 0
    for name, parameter in parameters.items():
        part = z[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
        if name == learner.exempt:
            weights.append(parameter)
            continue
        mask = part.tanh().abs()
        weights.append(parameter * torch.where(mask >= percentile(mask, learner.sparsity), mask, 0))
    layers = list(pairwise(weights))[::2]
    hidden = x.flatten(1)
    for weight, bias in layers[:-1]:
        hidden = F.linear(hidden, weight, bias).relu()
    return F.linear(hidden, *layers[-1])


def entropy_of(logits: Tensor) -> Tensor:
    """Return the entropy of one row of logits, as published: without a guard against 0 log 0."""
    p = logits.softmax(0)
    return -(p * p.log()).sum()


@torch.no_grad()
def entropies_one_by_one(learner: HyperMask, x: Tensor) -> list[list[float]]:
    """Return entropies by input and task: one sample at a time, whose weights are made for it."""
    return [
        [float(entropy_of(logits_of(learner, row, task)[0])) for task in learner.learned]
        for row in x.split(1)
    ]


@torch.no_grad()
def entropies_in_batches(learner: HyperMask, x: Tensor) -> list[list[float]]:
    """Return entropies by input and task: outputs in batches, entropies in a loop over both."""
    found = []
    for rows in x.split(ROWS):
        outputs = [logits_of(learner, rows, task) for task in learner.learned]
        found += [
            [float(entropy_of(each[place])) for each in outputs] for place in range(len(rows))
        ]
    return found


def _lowest(entropies: list[list[float]]) -> list[int]:
    return [min(range(len(each)), key=each.__getitem__) for each in entropies]


def one_by_one(learner: HyperMask, x: Tensor) -> list[int]:
    """Return the tasks of inputs, one sample at a time."""
    return _lowest(entropies_one_by_one(learner, x))


def in_batches(learner: HyperMask, x: Tensor) -> list[int]:
    """Return the tasks of inputs, in batches."""
    return _lowest(entropies_in_batches(learner, x))
