"""What a learner is given in a step that several processes take together, each with its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor


class Share(NamedTuple):
    """A process's part of a step.

    Attributes:
        rows: Which rows of the whole batch are this process's; at least one.
        whole: Rows of the whole batch.
        mean: Returns the means of tensors over the rows of all processes: each process's count by
            the share of its rows. All processes call it alike.
    """

    rows: slice
    whole: int
    mean: Callable[[Sequence[Tensor]], list[Tensor]]

    @property
    def weight(self) -> float:
        """The share of this process's rows."""
        return float(self.rows.stop - self.rows.start) / self.whole

    def exchanged(self, value: Tensor) -> Tensor:
        """Return a value whose gradient becomes that of the whole batch's loss.

        Args:
            value: The same in all processes, as are the gradients of what else comes of it.
        """
        if value.requires_grad:
            value.register_hook(lambda grad: self.mean([grad])[0])
        return value
