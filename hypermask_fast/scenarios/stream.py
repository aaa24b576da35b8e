"""Training batches as a function of the step number."""

from __future__ import annotations

import torch
from torch import Tensor

from hypermask_fast.counters import ORDER, counter_permutation
from hypermask_fast.fields import check_value
from hypermask_fast.scenarios import gather
from hypermask_fast.scenarios.sources import Split, check_types
from hypermask_fast.scenarios.transform import Transform


class BatchStream:
    """An infinite shuffled stream over training examples, on the device that holds them.

    Pass e runs through the n examples in the order of ``counter_permutation(n, seed, task_id,
    ORDER, e)``. Sample b of step s is number ``s * batch_size + b`` of the stream, so a batch may
    straddle passes, and its crop and flip are drawn from (seed, task_id, s, b). Nothing is
    consumed: ``batch(step)`` may be called in any order, and gives the same after a restart.

    The orders and draws of the passes that a batch can touch lie in one table at a fixed address.
    To capture a CUDA graph, call :meth:`gather` with a 0-d device tensor while capturing, and
    :meth:`prepare` with the step number before each replay.

    Args:
        split: The examples and labels; must not be empty.
        preprocess: What makes network inputs of them, on the same device.
        batch_size: Samples in a batch; may be larger than the split.
        seed, task_id: Integers that select the random numbers. Default 0.
        name: Whose examples they are, for messages. Default "the split".

    Attributes:
        part: Which rows of a batch are given. Default: all.

    Raises:
        ConfigError: the batch size is below 1, or a number no integer.
        ValueError: there are no examples.
        TypeError: ``split`` or ``preprocess`` has another type.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Transform,
        batch_size: int,
        seed: int = 0,
        task_id: int = 0,
        *,
        name: str = "the split",
    ) -> None:
        check_types(split=(split, Split), preprocess=(preprocess, Transform))
        check_value("batch_size", int, batch_size, low=1)
        check_value("seed", int, seed)
        check_value("task_id", int, task_id)
        n = len(split)
        if n == 0:
            raise ValueError(f"{name} has no training examples to draw batches from; give some")
        self.batch_size = batch_size
        self.part = slice(None)
        self.seed = seed
        self.task_id = task_id
        self._n = n
        self._split = split
        self._preprocess = preprocess
        self._device = split.device
        self._slots = (batch_size + n - 2) // n + 1
        self._pass_in_slot = [-1] * self._slots
        # A row a stream position: example, label and, for random transforms, the draws.
        width = 5 if self._preprocess.random else 2
        self._table = torch.zeros(self._slots * n, width, dtype=torch.int64, device=self._device)

    @property
    def is_resident(self) -> bool:
        """Whether :meth:`gather` runs on the device alone, so that a CUDA graph can hold it."""
        return True

    @property
    def steps_per_epoch(self) -> int:
        """Steps that cover the training examples once, rounded up."""
        return -(-self._n // self.batch_size)

    def prepare(self, step: int) -> None:
        """Make the table hold the passes that batch ``step`` touches; free if it does already.

        Raises:
            ConfigError: the step is no integer, or negative.
        """
        check_value("step", int, step, low=0)
        first = step * self.batch_size // self._n
        last = ((step + 1) * self.batch_size - 1) // self._n
        for number in range(first, last + 1):
            slot = number % self._slots
            if self._pass_in_slot[slot] != number:
                self._fill(slot, number)
                self._pass_in_slot[slot] = number

    def _fill(self, slot: int, number: int) -> None:
        n = self._n
        order = counter_permutation(n, self.seed, self.task_id, ORDER, number, device=self._device)
        rows = self._table[slot * n : (slot + 1) * n]
        rows[:, 0] = self._split.index[order]
        rows[:, 1] = self._split.labels[order]
        if self._preprocess.random:
            position = torch.arange(number * n, (number + 1) * n, device=self._device)
            rows[:, 2:] = self._preprocess.draws(
                self.seed, self.task_id, position // self.batch_size, position % self.batch_size
            )

    def gather(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return batch ``step`` from the table, which :meth:`prepare` must have made ready.

        Runs on the device alone: no synchronisation, no change of state.

        Args:
            step: An integer or a 0-d int64 tensor.

        Returns:
            As :meth:`batch`.
        """
        source = self._split.source
        if gather.runs(source, self._preprocess):
            x, y = gather.batch(source, self._preprocess, self._table, step, self.batch_size)
            return x[self.part], y[self.part]
        rows = self._rows(step)
        return self._preprocessed(source.take(rows[:, 0]), rows)

    def _preprocessed(self, inputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch of examples and their rows of the table as what a network learns from."""
        draws = rows[:, 2:] if self._preprocess.random else None
        return self._preprocess(inputs, draws), rows[:, 1].contiguous()

    def _rows(self, step: int | Tensor) -> Tensor:
        # A product of an int32 step would overflow.
        first = (step.to(torch.int64) if isinstance(step, Tensor) else step) * self.batch_size
        position = first + torch.arange(self.batch_size, device=self._device)[self.part]
        return self._table[position % (self._slots * self._n)]

    def batch(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return batch ``step``: :meth:`prepare` and :meth:`gather`.

        Args:
            step: An integer, or a 0-d int64 tensor, which is read back to the host (on a CUDA
                device that waits for it; use the two parts to avoid this).

        Returns:
            Inputs (batch_size, ...), of images float32 (batch_size, C, H, W), and local labels
            int64 (batch_size,).
        """
        number = self._number(step)
        self.prepare(number)
        return self.gather(step)

    @staticmethod
    def _number(step: int | Tensor) -> int:
        if not isinstance(step, Tensor):
            return check_value("step", int, step, low=0)
        if step.dim() or step.is_floating_point() or step.is_complex():
            raise TypeError(
                f"step is {step.dtype} of shape {tuple(step.shape)}; give an integer, or a 0-d "
                "tensor of one"
            )
        return int(step)
