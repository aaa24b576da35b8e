"""Training batches of examples that stay on the host, made ready one step ahead."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from hypermask_fast.fields import check_value
from hypermask_fast.scenarios.sources import HostSet, Split
from hypermask_fast.scenarios.stream import BatchStream
from hypermask_fast.scenarios.transform import Transform


class HostStream(BatchStream):
    """The batches of :class:`BatchStream`, of the examples of a :class:`HostSet`.

    While a step runs, a thread gathers the next batch into pinned memory. A batch that does not
    follow the one before is gathered when it is asked for.

    Args:
        split, preprocess, batch_size, seed, task_id, name: As for :class:`BatchStream`.
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
        source = split.source
        assert isinstance(source, HostSet)
        on_host = Split(source.held, split.index.cpu(), split.labels.cpu())
        super().__init__(on_host, preprocess, batch_size, seed, task_id, name=name)
        self._source = source
        self._worker = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[tuple[Tensor, Tensor]]] | None = None

    @property
    def is_resident(self) -> bool:
        return False

    def prepare(self, step: int) -> None:
        """Do nothing: the table is the thread's alone."""
        check_value("step", int, step, low=0)

    def gather(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        number, device = self._number(step), self._source.device
        found = self._ahead
        loaded = found[1] if found and found[0] == number else self._load(number)
        inputs, rows = loaded.result()
        self._ahead = number + 1, self._load(number + 1)
        moved = (value.to(device, non_blocking=True) for value in (inputs, rows))
        return self._preprocessed(*moved)

    def _load(self, step: int) -> Future[tuple[Tensor, Tensor]]:
        return self._worker.submit(self._read, step)

    def _read(self, step: int) -> tuple[Tensor, Tensor]:
        super().prepare(step)
        rows = self._rows(step)
        return self._source.read(rows[:, 0]), rows
