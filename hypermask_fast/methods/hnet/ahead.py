"""The backward passes of a step that looks ahead: of the task's loss, and of the regularizer."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from hypermask_fast.backends.choice import requested
from hypermask_fast.backends.precision import full_precision
from hypermask_fast.head import passes
from hypermask_fast.head.types import FrozenHead, Head, HeadStep, KeptChunks
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.hypernetworks.kept import KeptOutputs
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.optim.lookahead import ahead


class Update:
    """What a step of HNET does between the forward and the optimizers' steps.

    With a FactoredAdam over the head, and unless PyTorch alone is asked for, the head is stepped
    here: read for the current logits, for the gradient of what it reads, and then once more in the
    pass that forms its gradient of the loss, its look-ahead, the earlier tasks' weights there,
    their residuals and gradients, and Adam's step. Neither the shifted head nor any earlier task's
    weights are ever whole. Else all of it is autograd's.

    Args:
        hypernetwork: Of a learner.
        kept: What its earlier tasks keep.
        beta: Weight of the regularizer.
        optimizer: Of what all tasks share.
    """

    def __init__(
        self, hypernetwork: Hypernetwork, kept: KeptOutputs, beta: float, optimizer: Optimizer
    ) -> None:
        self.hypernetwork, self.kept, self.beta = hypernetwork, kept, beta
        self.optimizer = optimizer
        self._regularizes = kept.earlier > 0 and beta > 0
        self._head_optimizer = self._steps_head()

    def _steps_head(self) -> FactoredAdam | None:
        """Return the optimizer, where it can step the head in a pass."""
        optimizer, parts = self.optimizer, list(self.hypernetwork.head.parameters())
        if requested() == "reference" or self.kept.form == "frozen_head":
            return None
        usable = {torch.float32, torch.float64}
        if not all(p.requires_grad and p.dtype in usable for p in parts):
            return None
        if not isinstance(optimizer, FactoredAdam):
            return None
        groups = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
        return optimizer if any({id(p) for p in parts} <= group for group in groups) else None

    def logits(self) -> Tensor:
        """Return the current task's weights (N,); the last chunk may be whole."""
        hypernetwork, ids = self.hypernetwork, self.kept.current()
        if self._head_optimizer is None:
            return hypernetwork.logits(ids)[0]
        self._hidden = hypernetwork.hidden(ids)
        head = hypernetwork.head
        with full_precision(ids.device):
            chunks = passes.logits(Head(head.weight, head.bias), self._hidden.detach())
        self._chunks = chunks.requires_grad_()
        # To cut it off here would cost the backward pass a copy of all.
        return self._chunks.view(-1)

    def backward(self, loss: Tensor, step: int | Tensor) -> Tensor:
        """Leave the gradients of both terms, or step the head; return the regularizer, 0-d.

        Args:
            loss: Of the task, from what :meth:`logits` returned.
            step: Its number.
        """
        loss.backward()
        if self._head_optimizer is not None:
            with full_precision(loss.device):
                return self._in_a_pass(self._head_optimizer, step)
        if not self._regularizes:
            return loss.new_zeros(())
        hypernetwork = self.hypernetwork
        ids, kept, rows = self.kept.at(step, hypernetwork, alone=True)
        table = hypernetwork.embeddings
        shared = [p for p in hypernetwork.parameters() if p.requires_grad and p is not table]
        with ahead(self.optimizer, shared):
            _, output_reg = hypernetwork(ids, kept, rows)
            (self.beta * output_reg).backward()
        return output_reg.detach()

    def _in_a_pass(self, optimizer: FactoredAdam, step: int | Tensor) -> Tensor:
        hidden, dz, head = self._hidden, self._chunks.grad, self.hypernetwork.head
        assert dz is not None
        given = HeadStep(Head(head.weight, head.bias), dz, hidden.detach())
        if not self._regularizes:
            hidden.backward(optimizer.step_rows(given).hidden)
            return dz.new_zeros(())
        hidden.backward(passes.hidden_grad(head.weight, dz))
        ids, kept, _ = self.kept.at(step, self.hypernetwork, alone=True)
        assert kept is not None
        assert not isinstance(kept, FrozenHead)
        of_head = {id(p) for p in head.parameters()}
        others = chain(self.hypernetwork.trunk.parameters(), self.hypernetwork.parameters(False))
        table = self.hypernetwork.embeddings
        small = [p for p in others if p is not table and id(p) not in of_head and p.requires_grad]
        with ahead(optimizer, small):
            earlier = self.hypernetwork.hidden(ids[1:], trains=False)
            # A chunk may also be larger than the network.
            is_whole = len(head.weight) == self.hypernetwork.num_outputs
            update = given._replace(
                hidden=torch.cat((given.hidden, earlier.detach())),
                kept=kept if is_whole else KeptChunks(kept, self.hypernetwork.chunks),
                coefficient=2 * self.beta / len(kept),
                looks_ahead=True,
            )
            grads = optimizer.step_rows(update)
            if earlier.requires_grad:
                earlier.backward(grads.hidden[len(dz) :])
        return (grads.squares / len(kept)).to(dz.dtype)
