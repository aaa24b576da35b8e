"""A hypernetwork that turns boxes of task embeddings into boxes of target weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.backends.compiled import Compiler
from hypermask_fast.backends.precision import full_precision
from hypermask_fast.head.types import KeptBoxes
from hypermask_fast.hypernetworks.autograd import HeadUpdate
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.methods.hyperinterval.autograd import BoxUpdate, box_logits, box_regularizer
from hypermask_fast.optim.rows import take_rows
from hypermask_fast.tables import add_rows


class IntervalHypernetwork(Hypernetwork):
    """Task embeddings and radii, a ReLU trunk, and a linear head, all of boxes.

    A box goes through a layer as W h + b and abs(W) r; a ReLU takes both of its ends. What the
    head emits for a task are N centers, and N radii after them.

    Args:
        num_outputs: N, the number of target weights.
        nested: Boxes around centers sigma cos(e) with sigma = E / (2 d) and radii E / d: each holds
            the origin. Else centers e and radii E softmax(v), v learned.
        extent: E, the sum of a box's radii.
        **options: As in :class:`Hypernetwork`.

    Attributes:
        radii: v (capacity, d), which starts at 1 / d; None where nested.
    """

    def __init__(self, num_outputs: int, *, nested: bool, extent: float, **options: Any) -> None:
        super().__init__(num_outputs, activation="relu", **options)
        self.nested, self.extent = nested, extent
        self.radii: nn.Parameter | None = None
        if not nested:
            start = torch.full_like(self.embeddings.detach(), 1 / self.embedding_dim)
            self.radii = nn.Parameter(start)

    @property
    def embedding_dim(self) -> int:
        """d, the length of an embedding."""
        return self.embeddings.shape[1]

    @property
    def can_update(self) -> bool:
        return self.head.weight.dtype in (torch.float32, torch.float64)

    def compile_trunk(self, compiler: Compiler | None) -> None:
        """A box's way through the trunk is not compiled."""

    @torch.no_grad()
    def grow(self, capacity: int) -> None:
        before = self.capacity
        super().grow(capacity)
        if self.radii is not None:
            size = self.embedding_dim
            add_rows(self.radii, self.radii.new_full((capacity - before, size), 1 / size))

    @torch.no_grad()
    def copy_row(self, source: int, task: int) -> None:
        super().copy_row(source, task)
        if self.radii is not None:
            self.radii[task] = self.radii[source]

    @torch.no_grad()
    def renew_row(self, task: int) -> None:
        super().renew_row(task)
        if self.radii is not None:
            self.radii[task] = 1 / self.embedding_dim

    def box(self, ids: Tensor, extent: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return centers and radii (k, d) of tasks' boxes; only the first has gradients.

        Args:
            ids: int64 (k,).
            extent: E of the first, the others having the final one. Default: the final one.
        """
        rows = self._embedded(ids)
        rows = torch.cat((rows[:1], rows[1:].detach()))
        extents = rows.new_full((len(ids), 1), self.extent)
        if extent is not None:
            extents[0] = extent
        if self.radii is None:
            size = self.embedding_dim
            return 0.5 * extents / size * rows.cos(), (extents / size).expand_as(rows)
        shares = take_rows(self.radii, ids).softmax(1)
        return rows, extents * torch.cat((shares[:1], shares[1:].detach()))

    def hidden_boxes(self, centers: Tensor, radii: Tensor) -> Tensor:
        """Return what the head reads for boxes (k, d): their centers, then radii, (2 k, H)."""
        for layer in self.trunk:
            if isinstance(layer, nn.Linear):
                centers, radii = layer(centers), radii @ layer.weight.abs().t()
            else:
                low, up = layer(centers - radii), layer(centers + radii)
                centers, radii = (up + low) / 2, (up - low) / 2
        return torch.cat((centers, radii))

    def emitted(self, centers: Tensor, radii: Tensor) -> Tensor:
        """Return centers and radii (k, 2 N) of the target weights for boxes (k, d)."""
        with full_precision(self.embeddings.device):
            return box_logits(self.head.weight, self.head.bias, self.hidden_boxes(centers, radii))

    def logits(self, ids: Tensor) -> Tensor:
        """Return centers and radii (k, 2 N) of the target weights of tasks."""
        with full_precision(self.embeddings.device):
            return self.emitted(*self.box(ids))

    def head_update(self, optimizer: Optimizer | None) -> HeadUpdate | None:
        update = super().head_update(optimizer)
        return None if update is None else BoxUpdate(update.optimizer, update.watched, self.nested)

    def regularized(
        self,
        ids: Tensor,
        kept: Tensor | None,
        extent: float | Tensor,
        update: HeadUpdate | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what the first task's box becomes, (2 N,), and the output regularizer, 0-d.

        The regularizer is the mean over the t earlier tasks of ``|dc|^2 + 2/3 |dr|^2``, a third of
        the squared changes of low, center and up, or where not nested of ``|dc|^2``; 0 where t = 0.

        Args:
            ids: int64 (1 + t,), the current task, then the t earlier ones.
            kept: (t, 2 N) or, where not nested, (t, N); None where t is 0.
            extent: E of the current task's box; the earlier ones' is the final one.
            update: Updates the head in the backward pass.
        """
        with full_precision(self.embeddings.device):
            hidden = self.hidden_boxes(*self.box(ids, extent))
            if update is not None:
                return update.logits(self.head, hidden, KeptBoxes(kept, self.nested))
            emitted = box_logits(self.head.weight, self.head.bias, hidden)
            return emitted[0], box_regularizer(emitted[1:], kept, self.nested)

    @torch.no_grad()
    def kept(self, ids: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
        if len(ids) == 1:
            return None
        made = self.logits(ids)[1:]
        made = made if self.nested else made[:, : self.num_outputs]
        return made.to(dtype or made.dtype, copy=True)
