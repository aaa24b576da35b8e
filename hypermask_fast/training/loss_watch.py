"""Watches the losses of a run without waiting for a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hypermask_fast.errors import TrainingError
from hypermask_fast.methods.protocol import Losses


class Copy(NamedTuple):
    """Numbers on their way to the host."""

    values: Tensor
    is_done: Callable[[], bool]
    wait: Callable[[], None]


def copy_to_host(values: Tensor) -> Copy:
    """Start copying a small tensor; nothing waits for it."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(values.device))
    return Copy(host, arrived.query, arrived.synchronize)


class LossWatch:
    """Reads losses back and raises where they are not finite.

    On a CPU it looks at every step. Elsewhere it copies the losses of every ``every``-th step and
    looks when they have arrived, at the latest ``every`` steps later; only :meth:`flush` waits.

    Args:
        task: Name of the task, for the error.
        device: That of the losses.
        every: See above.
        copy: Starts a copy; replaced in tests.

    Attributes:
        latest: The losses that were read last, by name; on a CPU the tensors of the last step.
    """

    def __init__(
        self,
        task: str,
        device: torch.device,
        *,
        every: int,
        copy: Callable[[Tensor], Copy] = copy_to_host,
    ) -> None:
        self._task, self._on_cpu, self._every, self._copy = task, device.type == "cpu", every, copy
        self._pending: tuple[int, list[str], Copy] | None = None
        self._newest: tuple[int, Losses] | None = None
        self.latest: dict[str, float | Tensor] = {}

    def see(self, step: int, losses: Losses) -> None:
        """Take note of a step.

        Raises:
            TrainingError: Losses that were read are not finite.
        """
        if self._on_cpu:
            # One number is read, not all, where all is well.
            if not math.isfinite(float(losses.total)):
                self._check(step, {k: float(v) for k, v in losses.scalars().items()})
            self.latest = dict(losses.scalars())
            return
        self._newest = (step, losses)
        if self._pending is not None and self._pending[2].is_done():
            self._read()
        if step % self._every == 0:
            if self._pending is not None:
                self._read()
            self._start(step, losses)

    def flush(self) -> None:
        """Read the losses of the last step, and wait for them.

        Raises:
            TrainingError: They are not finite.
        """
        if self._pending is not None:
            self._read()
        if self._newest is not None:
            self._start(*self._newest)
            self._read()

    def _start(self, step: int, losses: Losses) -> None:
        scalars = losses.scalars()
        self._pending = (step, list(scalars), self._copy(torch.stack(list(scalars.values()))))
        self._newest = None

    def _read(self) -> None:
        assert self._pending is not None
        step, names, copy = self._pending
        self._pending = None
        copy.wait()
        values = dict(zip(names, copy.values.tolist(), strict=True))
        self._check(step, values)
        self.latest = dict(values)

    def _check(self, step: int, values: Mapping[str, float]) -> None:
        if all(math.isfinite(value) for value in values.values()):
            return
        parts = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise TrainingError(
            f"the loss of task {self._task!r} is not finite at step {step} ({parts}); lower the "
            "learning rate or check the data"
        )
