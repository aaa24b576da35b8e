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


class Cast(Transform):
    """Another transform, whose inputs come out in another floating-point type.

    What it gives that is no real floating-point number, such as tokens, stays as it is.

    Args:
        before: The other transform.
        dtype: The type.
    """

    def __init__(self, before: Transform, dtype: torch.dtype) -> None:
        self.before, self.dtype = before, dtype

    @property
    def random(self) -> bool:
        return self.before.random

    def draws(self, seed: int, task_id: int, step: int | Tensor, position: Tensor) -> Tensor:
        return self.before.draws(seed, task_id, step, position)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.before.output_shape(shape)

    def to(self, device: torch.device | str) -> Cast:
        return Cast(self.before.to(device), self.dtype)

    def __call__(self, inputs: Tensor, draws: Tensor | None = None) -> Tensor:
        made = self.before(inputs, draws)
        return made.to(self.dtype) if made.is_floating_point() else made

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Cast) and self.before == other.before
        return same and self.dtype == other.dtype  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((self.before, self.dtype))

    def __repr__(self) -> str:
        return f"Cast({self.before!r}, {self.dtype})"
