"""A batch that every step takes."""

from __future__ import annotations

from torch import Tensor

from hypermask_fast.scenarios import BatchStream


class OneBatch(BatchStream):
    """The same batch again and again, where it lies on the device.

    Args:
        x, y: Inputs and labels.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._batch = x, y

    def prepare(self, step: int) -> None:
        """Do nothing: the batch is there."""

    def gather(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        return self._batch

    def batch(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        return self._batch
