"""A hypernetwork's head in autograd: a gradient of low rank, or an update in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast import reference
from hypermask_fast.backends.choice import backend, requested
from hypermask_fast.backends.precision import full_precision
from hypermask_fast.errors import shown
from hypermask_fast.head import cuda, passes
from hypermask_fast.head.types import (
    FrozenHead,
    Head,
    HeadGrads,
    HeadStep,
    Kept,
    KeptBoxes,
    KeptSample,
)
from hypermask_fast.hypernetworks.autograd_frozen import frozen_logits
from hypermask_fast.modes import is_followed, is_plain, is_transformed, needs_operators
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.optim.factored_grad import FactoredGrad
from hypermask_fast.optim.factors import dense_is_smaller


class _HeadLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, hidden: Tensor, sample: KeptSample | None
    ) -> Tensor:
        ctx.save_for_backward(weight, hidden)
        ctx.backend = requested()
        return passes.logits(Head(weight, bias), hidden, sample=sample)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, hidden = ctx.saved_tensors
        dz = grads[0].contiguous()
        if is_followed() or needs_operators(dz):
            with full_precision(dz.device):
                return dz.t() @ hidden, dz.sum(0), dz @ weight, None
        of_weight: Tensor | None = None
        of_bias: Tensor | None = None
        of_hidden: Tensor | None = None
        with backend(ctx.backend), full_precision(dz.device):
            if ctx.needs_input_grad[0]:
                dense = dense_is_smaller(len(dz), *weight.shape)
                of_weight = dz.t() @ hidden if dense else FactoredGrad(dz, hidden)
            if ctx.needs_input_grad[1]:
                of_bias = dz.sum(0)
            if ctx.needs_input_grad[2]:
                of_hidden = passes.hidden_grad(weight, dz)
        return of_weight, of_bias, of_hidden, None


def _accumulates(node: Any) -> bool:
    """Return whether the backward pass that is running adds to the gradient of a leaf's node."""
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:
        # autograd.grad is to return this gradient.
        return False


class _UpdateInBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        update: HeadUpdate,
        head: nn.Linear,
        kept: Kept | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.update, ctx.head, ctx.kept = update, head, kept
        ctx.backend = requested()
        ctx.versions = [p._version for p in update.watched]
        ctx.save_for_backward(hidden)
        return update.read(Head(weight, bias), hidden), hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True asks for a second derivative of losses whose backward pass "
                "updates the head; use an optimizer without step_in_backward"
            )
        (hidden,) = ctx.saved_tensors
        update, head = ctx.update, ctx.head
        if ctx.versions != [p._version for p in update.watched]:
            raise RuntimeError(
                "the hypernetwork changed since these losses were computed, by a step or by a "
                "backward pass before this one; call losses() anew for each backward pass, and "
                "accumulate with step_in_backward=False"
            )
        takes = update.apply
        nodes = [node for node, _ in ctx.next_functions[1:3]]
        trains = (head.weight.requires_grad, head.bias.requires_grad)
        if tuple(map(_accumulates, nodes)) != trains:
            takes = update.gradients
        with backend(ctx.backend), full_precision(hidden.device):
            return *takes(head, hidden, ctx.kept, *grads), None, None, None


class HeadUpdate:
    """The head's regularizer, gradients and Adam step in one pass, in the backward pass.

    Between forward and backward the head is read once, for the current task's logits; everything
    else is done row by row where the backward pass reaches the head, which moves 28 bytes a float32
    parameter in all (24 of them in the one pass that updates it). One backward pass is one update:
    there is no gradient left to clip, scale or accumulate. Gradients without accumulation
    (``torch.autograd.grad``, ``backward(inputs=)`` without the head) are only computed.

    Args:
        optimizer: Holds the head's weight.
        watched: What must not change between forward and backward; autograd itself would notice
            some of it too late, after the update.
    """

    def __init__(self, optimizer: FactoredAdam, watched: Sequence[Tensor]) -> None:
        self.optimizer, self.watched = optimizer, watched
        self._awaiting: list[tuple[Tensor, float]] = []

    def logits(self, head: nn.Linear, hidden: Tensor, kept: Kept | None) -> tuple[Tensor, Tensor]:
        """Return the current task's logits (N,), and 0 in place of the regularizer.

        The backward pass reads the regularizer's weight from the gradient of that 0, and then
        writes the regularizer there.

        Args:
            head: The linear head.
            hidden: (t + 1, H), the current embedding's first.
            kept: As in :class:`HeadStep`, or None where t is 0.
        """
        # The weight is an argument so that autograd comes here also where the trunk is frozen.
        inputs = hidden, head.weight, head.bias
        logits, output_reg = _UpdateInBackward.apply(*inputs, self, head, kept)
        self.completes(output_reg, 1.0)
        return logits, output_reg

    def read(self, head: Head, hidden: Tensor) -> Tensor:
        """Return the current task's logits (N,), without a graph."""
        return passes.logits(head, hidden[:1])[0]

    def outputs(
        self, weight: Tensor, bias: Tensor, hidden: Tensor, kept: Kept | None
    ) -> tuple[Tensor, Tensor]:
        """Return the current task's logits and the regularizer, with a graph."""
        return regularized_logits(weight, bias, hidden, kept)

    def completes(self, loss: Tensor, factor: float) -> None:
        """Let the backward pass add the regularizer, times a factor, to a 0-d loss in place."""
        self._awaiting.append((loss.detach(), factor))

    def _complete(self, squares: Tensor, earlier: int = 1) -> None:
        """Write the regularizer, a sum of squares over a number of tasks, to what waits for it."""
        if not self._awaiting:
            return
        (output_reg, _), *losses = self._awaiting
        self._awaiting.clear()
        # Over the 0 that stood in its place.
        same = {factor for _, factor in losses}
        if len(same) == 1 and cuda.completes(squares, output_reg, *(loss for loss, _ in losses)):
            cuda.complete(squares, earlier, output_reg, [loss for loss, _ in losses], *same)
            return
        torch.div(squares, earlier, out=output_reg)
        for loss, factor in losses:
            loss.add_(output_reg, alpha=factor)

    def _of_all_rows(self, grads: HeadGrads) -> HeadGrads:
        """Return what an update of the rows that are here gives, with that of all others."""
        return grads

    def apply(
        self, head: nn.Linear, hidden: Tensor, kept: Kept | None, dz: Tensor, weight: Tensor
    ) -> tuple[Tensor, None, Tensor | None]:
        """Update the head; return the gradients of ``hidden``, and of a bias of another optimizer.

        Args:
            head, hidden, kept: As in :meth:`logits`.
            dz: (N,), the gradient of the current task's logits.
            weight: 0-d, that of the regularizer.
        """
        earlier = max(1, len(hidden) - 1)
        steps_bias = head.bias.requires_grad and self.optimizer.holds(head.bias)
        step = HeadStep(
            Head(head.weight, head.bias),
            *(dz[None], hidden, kept),
            bias_grad=None if steps_bias else torch.empty_like(head.bias),
        )
        if cuda.takes(head.weight):
            step = step._replace(coefficient=weight)
            grads = self.optimizer.update_in_backward(
                step, factor=2 / earlier, flags=cuda.finite_flags(dz)
            )
        else:
            step = step._replace(coefficient=2 * weight.double() / earlier)
            grads = self.optimizer.update_in_backward(step)
        grads = self._of_all_rows(grads)
        self._complete(grads.squares, earlier)
        return grads.hidden, None, step.bias_grad

    def gradients(
        self, head: nn.Linear, hidden: Tensor, kept: Kept | None, *grads: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the gradients of ``hidden``, weight and bias, and update nothing."""
        inputs = [t.detach().requires_grad_() for t in (hidden, head.weight, head.bias)]
        with torch.enable_grad():
            outputs = self.outputs(inputs[1], inputs[2], inputs[0], kept)
        self._complete(outputs[1].detach())
        given = [(z, grad) for z, grad in zip(outputs, grads, strict=True) if z.requires_grad]
        return torch.autograd.grad([z for z, _ in given], inputs, [grad for _, grad in given])


def head_update(
    head: nn.Linear, trunk: nn.Module, optimizer: Optimizer | None
) -> HeadUpdate | None:
    """Return the update of a head in the backward pass that an optimizer asks for, if it does.

    None without a :class:`FactoredAdam` of ``step_in_backward=True`` over the head, where the head
    does not train, and without gradients.
    """
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is {shown(optimizer)}; give a torch.optim.Optimizer, or None")
    if not (isinstance(optimizer, FactoredAdam) and torch.is_grad_enabled()):
        return None
    if not optimizer.updates_in_backward(head.weight):
        return None
    if is_transformed() or not is_plain(head.weight):
        raise RuntimeError(
            f"the backward pass would update a head of type {type(head.weight).__name__} that has "
            "no memory of its own, or that torch.func or forward-mode differentiation transforms; "
            "use an optimizer without step_in_backward"
        )
    return HeadUpdate(optimizer, [*trunk.parameters(), *head.parameters()])


def head_logits(
    weight: Tensor, bias: Tensor, hidden: Tensor, sample: KeptSample | None = None
) -> Tensor:
    """Return the mask logits of several tasks, z = hidden A^T + b.

    As :func:`hypermask_fast.reference.mask_logits`, but the gradient of A is a
    :class:`~hypermask_fast.optim.factored_grad.FactoredGrad`, unless a dense one takes no more
    memory, or a second derivative is asked for. Runs in the dtype of A, also under autocast.

    Args:
        weight: A (N, H), the hypernetwork's linear head.
        bias: b (N,).
        hidden: (k, H), the trunk's output for k task embeddings.
        sample: As in :func:`hypermask_fast.head.passes.logits`.

    Returns:
        (k, N).

    Raises:
        ValueError: ``hidden`` is not (k, H), or A is not contiguous.
        TypeError: A is neither float32 nor float64.
    """
    if hidden.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)}; give (k, {weight.shape[1]}) for a head of "
            f"shape {tuple(weight.shape)}"
        )
    with full_precision(weight.device):
        if is_followed():
            return reference.mask_logits(weight, bias, hidden.to(weight.dtype))
        return _HeadLogits.apply(weight, bias, hidden.to(weight.dtype), sample)


def regularized_logits(
    weight: Tensor, bias: Tensor, hidden: Tensor, kept: Kept | None
) -> tuple[Tensor, Tensor]:
    """Return the current task's logits (N,) and the output regularizer, 0-d.

    Args:
        weight, bias: A (N, H) and b (N,).
        hidden: (t + 1, H), the current embedding's first.
        kept: As in :class:`HeadStep`, or None where t is 0.
    """
    if isinstance(kept, FrozenHead):
        return frozen_logits(weight, bias, hidden, kept)
    assert not isinstance(kept, KeptBoxes), "boxes have a regularizer of their own"
    sample = kept if isinstance(kept, KeptSample) else None
    logits = head_logits(weight, bias, hidden, sample)
    return regularized(logits, kept.logits if isinstance(kept, KeptSample) else kept)


def regularized(logits: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the first row of logits (t + 1, N), and the regularizer of the others; 0 if none.

    Args:
        logits: Of the current task, and of the t earlier ones.
        kept: (t, N), what the earlier ones are to be; None where t is 0.
    """
    if kept is None:
        return logits[0], logits.new_zeros(())
    current, earlier = logits.split([1, len(kept)])
    return current[0], reference.output_regularizer(earlier, kept)
