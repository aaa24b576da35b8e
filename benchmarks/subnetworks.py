"""SupSup's training step and inference of the task as published, in plain PyTorch.

A sort of every layer's scores in each step, and dense masks of all tasks for inference.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.inference.one_shot import entropy
from hypermask_fast.masks.packed import unpack
from hypermask_fast.masks.top_k import dropped_count
from hypermask_fast.methods.subnetwork import SubnetworkLearner


class _Sorted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, share: float) -> Tensor:
        mask = scores.clone()
        order = scores.flatten().sort().indices
        dropped = dropped_count(scores.numel(), share)
        flat = mask.flatten()
        flat[order[:dropped]], flat[order[dropped:]] = 0, 1
        return flat.view_as(scores)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Signed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        return (scores >= 0).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Published:
    """The plain algorithm over a network of which it shares the weights and scores."""

    def __init__(self, learner: SubnetworkLearner) -> None:
        self.net = learner.net
        self.weights = {n: p.detach().clone() for n, p in learner.net.named_parameters()}
        parts = learner._shaped(learner.scores.detach().clone())
        self.scores = {n: nn.Parameter(s) for n, s in zip(self.weights, parts, strict=True)}
        by_sign = getattr(learner._settings, "rule", "top_k") == "threshold"
        self.share = None if by_sign else learner._settings.density
        self.optimizer = torch.optim.Adam(self.scores.values())

    def mask(self, scores: Tensor) -> Tensor:
        return (
            _Signed.apply(scores) if self.share is None else _Sorted.apply(scores.abs(), self.share)
        )

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on a batch and return its loss."""
        self.optimizer.zero_grad()
        weights = {n: w * self.mask(self.scores[n]) for n, w in self.weights.items()}
        loss = F.cross_entropy(torch.func.functional_call(self.net, weights, (x,)), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def dense_masks(self, learner: SubnetworkLearner) -> dict[str, Tensor]:
        """Return the masks of the learned tasks, (tasks, ...) for each weight."""
        like = next(iter(self.weights.values()))
        flat = torch.stack([unpack(bits, learner.bits.shape[1] * 8) for bits in learner.bits])
        sizes = [w.numel() for w in self.weights.values()]
        parts = flat[:, : sum(sizes)].to(like).split(sizes, 1)
        return {
            name: part.view(len(flat), *w.shape)
            for (name, w), part in zip(self.weights.items(), parts, strict=True)
        }

    def infer(self, x: Tensor, masks: dict[str, Tensor]) -> int:
        """Return the task of a batch; arguments as of :meth:`gradient`."""
        return int(self.gradient(x, masks).argmin())

    def gradient(self, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
        """Return the gradient (tasks,) of the outputs' entropy by the masks' factors.

        Args:
            x: Inputs.
            masks: For each weight those of all tasks, dense (tasks, ...).
        """
        count = len(next(iter(masks.values())))
        alpha = torch.full((count,), 1 / count, dtype=x.dtype, device=x.device).requires_grad_()
        weights = {
            n: w * (alpha.view(-1, *[1] * w.dim()) * masks[n]).sum(0)
            for n, w in self.weights.items()
        }
        logits = torch.func.functional_call(self.net, weights, (x,))
        (grad,) = torch.autograd.grad(entropy(logits), alpha)
        return grad
