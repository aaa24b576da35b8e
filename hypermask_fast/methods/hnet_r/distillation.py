"""The loss of replayed images: what a copy of the network said of them is to be said again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hypermask_fast.held import HoldsTensors
from hypermask_fast.methods.replay.replay import mean_cross_entropy


def distillation(
    logits: Tensor, targets: Tensor, temperature: float, count: float | None = None
) -> Tensor:
    """Return the loss of Hinton et al. (2015), 0-d: T^2 times the cross-entropy at temperature T.

    Args:
        logits: (batch, outputs).
        targets: What a copy of the network said, (batch, outputs).
        temperature: T, what both are divided by.
        count: Rows that the mean is over, where these are a part of them. Default: these.
    """
    soft = (targets / temperature).softmax(1)
    return mean_cross_entropy(logits / temperature, soft, count) * temperature**2


class Teacher(HoldsTensors):
    """A copy of a network's weights and statistics, as a task found them.

    Attributes:
        copy: All floating-point tensors of its ``state_dict``, one after the other; None without a
            copy.
    """

    held = ("copy",)
    copy: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.copy = None

    @torch.no_grad()
    def record(self, net: nn.Module) -> None:
        """Copy a network."""
        self.copy = torch.cat([value.flatten() for value in _tensors(net).values()])

    @torch.no_grad()
    def __call__(self, net: nn.Module, x: Tensor) -> Tensor:
        """Return what the copy says of x; the network is in evaluation mode."""
        assert self.copy is not None
        own = _tensors(net)
        parts = self.copy.split([value.numel() for value in own.values()])
        copies = {
            name: part.view_as(value).to(value.dtype)
            for (name, value), part in zip(own.items(), parts, strict=True)
        }
        said: Tensor = functional_call(net, copies, (x,))
        return said


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in net.state_dict().items() if v.is_floating_point()}


def growing_loss(
    logits: Tensor,
    targets: Tensor,
    rows: Sequence[slice],
    temperature: float,
    count: float | None = None,
) -> Tensor:
    """Return the loss of replayed images over the outputs of all tasks so far, 0-d.

    Outputs that no earlier task has get the target logit 0 (published). A single earlier class has
    no distribution over classes to keep, and is a hard target instead.

    Args:
        logits: (batch, outputs so far).
        targets: What the copy said, alike.
        rows: Of the outputs that earlier tasks have.
        temperature, count: As in :func:`distillation`.
    """
    earlier = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    for each in rows:
        earlier[each] = True
    if sum(each.stop - each.start for each in rows) == 1:
        label = torch.full(logits.shape[:1], rows[0].start, device=logits.device)
        return mean_cross_entropy(logits, label, count)
    return distillation(logits, targets.masked_fill(~earlier, 0), temperature, count)
