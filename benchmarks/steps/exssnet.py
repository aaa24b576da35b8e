"""ExSSNeT's weight phase as published, in plain PyTorch.

All weights have a gradient and moments; the gradient is multiplied by what may move.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.methods.exssnet.learner import ExSSNeT


class PublishedWeights:
    """The plain algorithm over copies of a learner's weights.

    Args:
        learner: In its phase of weights.
        task: That it learns.
        lr: Of Adam.

    Attributes:
        weights: By name.
        editable: Which of them may move, by name.
    """

    def __init__(self, learner: ExSSNeT, task: int, lr: float) -> None:
        self.net, self.masks = learner.net, learner.masks(task)
        self.editable = learner.editable()
        parameters = dict(learner.net.named_parameters())
        self.weights = {n: nn.Parameter(parameters[n].detach().clone()) for n in self.masks}
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=lr)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on a batch and return its loss."""
        self.optimizer.zero_grad()
        weights = {n: w * self.masks[n] for n, w in self.weights.items()}
        loss = F.cross_entropy(torch.func.functional_call(self.net, weights, (x,)), y)
        loss.backward()
        for name, weight in self.weights.items():
            assert weight.grad is not None
            weight.grad *= self.editable[name]
        self.optimizer.step()
        return loss.detach()
