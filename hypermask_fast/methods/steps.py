"""The steps of a task, counted on the host and on the device."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from hypermask_fast.modes import is_transformed


class Steps(nn.Module):
    """How many steps of the current task were taken, and the ramp of the sparsity over them.

    On a GPU a step reads its number from a tensor, so that a CUDA graph of it counts by itself.

    Attributes:
        taken: Steps of the task, on the host. A CUDA graph counts on the device alone.
        ramp: Steps over which the sparsity rises; 0 for none.
    """

    _taken: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.taken = self.ramp = 0
        number = torch.zeros((), dtype=torch.int64, device=device)
        self.register_buffer("_taken", number, persistent=False)

    def start(self, ramp: int, taken: int = 0) -> None:
        """Begin a task, or continue it after a number of steps."""
        self.ramp, self.taken = ramp, taken
        self._taken.fill_(taken)

    def next(self) -> int | Tensor:
        """Return the number of the step that begins, from 1: an int on a CPU, else a 0-d tensor."""
        return self.taken + 1 if self._taken.device.type == "cpu" else self._taken + 1

    def count(self, *, on_device: bool = True) -> None:
        """Note that a step was taken.

        Args:
            on_device: Whether :meth:`next` is asked for numbers in this task. Default True.
        """
        if on_device or self._taken.device.type == "cpu":
            # A transform of torch.func refuses writes to what it did not make.
            with torch._C._DisableFuncTorch() if is_transformed() else nullcontext():
                self._taken += 1
        self.taken += 1

    def sparsity(self, final: float, step: int | Tensor) -> float | Tensor:
        """Return the sparsity of a step, in the unit of the final one."""
        if not self.ramp:
            return final
        if not isinstance(step, Tensor):
            return final * step / self.ramp if step < self.ramp else final
        return torch.where(step < self.ramp, final * step.double() / self.ramp, final)
