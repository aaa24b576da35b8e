"""The weights that a task may change, as one short parameter."""

from __future__ import annotations

from collections.abc import Sequence
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
        products: They times their mask.
        editable: For each weight which entries may move, bool (n,), all within the mask.
        most: For each weight how many entries the mask has.

    Attributes:
        values: (E,), the entries of all weights, one after the other.
    """

    places: Tensor
    base: Tensor

    def __init__(
        self,
        weights: Sequence[Tensor],
        products: Sequence[Tensor],
        editable: Sequence[Tensor],
        most: Sequence[int],
    ) -> None:
        super().__init__()
        own = [_places(mask, count) for mask, count in zip(editable, most, strict=True)]
        self._counts = [len(places) for places in own]
        self._starts = [0]
        for weight in weights:
            self._starts.append(self._starts[-1] + weight.numel())
        pairs = zip(own, self._starts, strict=False)
        self.register_buffer("places", torch.cat([p + start for p, start in pairs]))
        self.register_buffer("base", torch.cat([p.detach().flatten() for p in products]))
        self._shapes = [w.shape for w in weights]
        self.values = nn.Parameter(self.base[self.places])

    def products(self) -> list[Tensor]:
        """Return the weights times their masks; gradients flow to :attr:`values`."""
        flat = self.base.index_copy(0, self.places, self.values)
        parts = flat.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    @torch.no_grad()
    def write_back(self, weights: Sequence[Tensor]) -> None:
        """Set the entries of the weights to the present values."""
        places, values = self.places.split(self._counts), self.values.split(self._counts)
        for weight, start, at, value in zip(weights, self._starts, places, values, strict=False):
            flat = weight.flatten()
            flat.index_copy_(0, at - start, value)
            if flat.data_ptr() != weight.data_ptr():
                weight.copy_(flat.view_as(weight))

    def _save_to_state_dict(self, *_: Any) -> None:
        """Save nothing: the weights have it."""

    def _load_from_state_dict(self, *_: Any, **options: Any) -> None:
        """Load nothing."""
