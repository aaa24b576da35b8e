"""What stands between the examples of a source and a network: nothing, or a subclass's work."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor


class Transform:
    """Base of what makes network inputs of examples; it gives them as they are."""

    @property
    def random(self) -> bool:
        """Whether samples are changed at random, so that a call needs ``draws``."""
        return False

    def draws(self, seed: int, task_id: int, step: int | Tensor, position: Tensor) -> Tensor:
        """Draw what random changes need, int64 (n, k), as a function of the counters alone."""
        return torch.empty(len(position), 0, dtype=torch.int64, device=position.device)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that examples of a shape come out with."""
        return shape

    def to(self, device: torch.device | str) -> Self:
        """Return the same transform with its tensors on ``device``."""
        return self

    def __call__(self, inputs: Tensor, draws: Tensor | None = None) -> Tensor:
        """Turn examples (b, ...) into network inputs."""
        return inputs
