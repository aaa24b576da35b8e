"""A head that is given boxes in autograd: dense gradients, or an update in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.backends.choice import backend, requested
from hypermask_fast.backends.precision import full_precision
from hypermask_fast.head import boxes
from hypermask_fast.head.types import Head, HeadStep, Kept, KeptBoxes
from hypermask_fast.hypernetworks.autograd import HeadUpdate
from hypermask_fast.modes import gradients_by_operators, is_followed, needs_operators
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.reference import output_residuals


def _by_operators(weight: Tensor, bias: Tensor, hidden: Tensor) -> Tensor:
    points, spreads = hidden.chunk(2)
    return torch.cat((torch.addmm(bias, points, weight.t()), spreads @ weight.abs().t()), 1)


class _BoxLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(weight, bias, hidden)
        ctx.backend = requested()
        return boxes.logits(Head(weight, bias), hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, hidden = ctx.saved_tensors
        if is_followed() or needs_operators(*grads):
            return gradients_by_operators(
                lambda *inputs: (_by_operators(*inputs),), (weight, bias, hidden), grads
            )
        with backend(ctx.backend), full_precision(weight.device):
            return boxes.gradients(Head(weight, bias), hidden, grads[0])


def box_logits(weight: Tensor, bias: Tensor, hidden: Tensor) -> Tensor:
    """Return centers and radii (k, 2 N) of what a head makes of boxes; with gradients.

    Args:
        weight, bias: A (N, H) and b (N,).
        hidden: (2 k, H), the boxes' centers, then their radii.
    """
    if is_followed():
        return _by_operators(weight, bias, hidden)
    return _BoxLogits.apply(weight, bias, hidden)


def box_regularizer(emitted: Tensor, kept: Tensor | None, radii: bool) -> Tensor:
    """Return the mean over boxes of ``|dc|^2``, with radii plus ``2/3 |dr|^2``; 0 where none.

    Args:
        emitted: (t, 2 N), the boxes' centers and radii.
        kept: (t, 2 N) with radii, else (t, N); None where t is 0.
        radii: Whether radii are kept.
    """
    if kept is None:
        return emitted.new_zeros(())
    size = emitted.shape[1] // 2
    squares = output_residuals(emitted[:, :size], kept[:, :size]).square().sum()
    if radii:
        changes = output_residuals(emitted[:, size:], kept[:, size:])
        squares = squares + boxes.OF_RADII * changes.square().sum()
    return squares / len(kept)


class BoxUpdate(HeadUpdate):
    """The update of a head that is given boxes; see :class:`HeadUpdate`.

    Args:
        optimizer, watched: As there.
        radii: Whether the earlier boxes' radii are kept.
    """

    def __init__(self, optimizer: FactoredAdam, watched: Sequence[Tensor], radii: bool) -> None:
        super().__init__(optimizer, watched)
        self.radii = radii

    def read(self, head: Head, hidden: Tensor) -> Tensor:
        return boxes.logits(head, hidden[:: len(hidden) // 2])[0]

    def apply(
        self, head: nn.Linear, hidden: Tensor, kept: Kept | None, dz: Tensor, weight: Tensor
    ) -> tuple[Tensor, None, Tensor | None]:
        earlier = max(1, len(hidden) // 2 - 1)
        steps_bias = head.bias.requires_grad and self.optimizer.holds(head.bias)
        step = HeadStep(
            Head(head.weight, head.bias),
            *(dz.view(2, -1), hidden, kept),
            coefficient=2 * weight.double() / earlier,
            bias_grad=None if steps_bias else torch.empty_like(head.bias),
        )
        grads = self.optimizer.update_in_backward(step)
        self._complete(grads.squares, earlier)
        return grads.hidden, None, step.bias_grad

    def outputs(
        self, weight: Tensor, bias: Tensor, hidden: Tensor, kept: Kept | None
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(kept, KeptBoxes)
        emitted = box_logits(weight, bias, hidden)
        return emitted[0], box_regularizer(emitted[1:], kept.logits, self.radii)
