"""The weights that a task may change, as one short parameter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn


def _places(mask: Tensor, most: int) -> Tensor:
    """Return the places of a mask's ones, int64; on the meta device as many as there may be."""
    if mask.is_meta:
        return mask.new_empty(most, dtype=torch.int64)
    return mask.nonzero().flatten()


class EditableWeights(nn.Module):
    """The entries of a network's weights that may move, and where they stand.

    An optimizer that is given :attr:`values` can neither move another entry nor keep a state of it.
    What it changes is in the weights after :meth:`write_back`. It follows from weights and masks,
    so no ``state_dict`` holds it.

    Args:
        weights: Of the network, in order.
        mask: Which of their N entries the task uses, bool (N,).
        editable: Which of these may move, bool (N,).
        most: For each weight how many entries the mask has.

    Attributes:
        values: (E,), the entries of all weights, one after the other.
    """

    places: Tensor
    base: Tensor

    def __init__(
        self,
        weights: Sequence[Tensor],
        mask: Tensor,
        editable: Tensor,
        most: Sequence[int],
    ) -> None:
        super().__init__()
        self._shapes = [w.shape for w in weights]
        self._sizes = [w.numel() for w in weights]
        own = [_places(m, n) for m, n in zip(editable.split(self._sizes), most, strict=True)]
        self._counts = [len(places) for places in own]
        self._starts = [0, *accumulate(self._sizes[:-1])]
        pairs = zip(own, self._starts, strict=True)
        self.register_buffer("places", torch.cat([p + start for p, start in pairs]))
        base = weights[0].new_zeros(len(mask))
        parts = zip(base.split(self._sizes), weights, mask.split(self._sizes), strict=True)
        for part, weight, kept in parts:
            part.copy_(weight.detach().flatten()).masked_fill_(~kept, 0)
        self.register_buffer("base", base)
        self.values = nn.Parameter(base[self.places])

    def products(self) -> list[Tensor]:
        """Return the weights times their masks; gradients flow to :attr:`values`."""
        flat = self.base.index_copy(0, self.places, self.values)
        parts = flat.split(self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    @torch.no_grad()
    def write_back(self, weights: Sequence[Tensor]) -> None:
        """Set the entries of the weights to the present values."""
        places, values = self.places.split(self._counts), self.values.split(self._counts)
        for weight, start, at, value in zip(weights, self._starts, places, values, strict=True):
            flat = weight.flatten()
            flat.index_copy_(0, at - start, value)
            if flat.data_ptr() != weight.data_ptr():
                weight.copy_(flat.view_as(weight))

    def _save_to_state_dict(self, *_: Any) -> None:
        """Save nothing: the weights have it."""

    def _load_from_state_dict(self, *_: Any, **options: Any) -> None:
        """Load nothing."""
