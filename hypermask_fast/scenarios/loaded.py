"""Examples that a Dataset reads one by one: batches of them, loaded ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from hypermask_fast.counters import AUGMENT, counter_randint
from hypermask_fast.errors import DataError, shown
from hypermask_fast.fields import check_value
from hypermask_fast.scenarios.seeding import seeded
from hypermask_fast.scenarios.sources import Source, check_labels, check_tensors
from hypermask_fast.scenarios.stream import BatchStream

# The first three purposes of AUGMENT are a Preprocess's.
_SEED_OF_EXAMPLE = 3
_Keys = Sequence[tuple[int, int]]


class _Seeded(Dataset[Any]):
    """A dataset by pairs of place and seed: random transforms are a function of them."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        place, seed = key
        with seeded(seed):
            return self.dataset[place]


class DatasetSource(Source):
    """The examples of a map-style Dataset, which are read when they are needed.

    Random transforms of the dataset draw from Python's, NumPy's and torch's generators, which are
    seeded for each example: by the step and its place in the batch while training, so that a run
    that continues sees the same images, and by its place in the dataset otherwise.

    Args:
        dataset: Its item i is (input, label, ...), the input a tensor of one shape.
        labels: int64 (n,), the label of each item; batches are checked against them.
        workers: Processes that load batches ahead. Default 0: none.
        collate: Makes a batch (inputs, labels, ...) of a list of items. Default: torch's.
        device: Where batches go. Default: the CPU.

    Raises:
        TypeError: The dataset has no length or no items by number, or the labels are no tensor.
        ValueError: The labels do not fit.
        ConfigError: ``workers`` is no integer, or negative.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        labels: Tensor,
        *,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] = default_collate,
        device: torch.device | str = "cpu",
    ) -> None:
        count = check_sized(dataset)
        check_tensors(labels=labels)
        check_labels(labels, count, "item")
        self.dataset, self.collate = dataset, collate
        self.workers = check_value("workers", int, workers, low=0)
        self._device = torch.empty(0, device=device).device
        self.labels = labels.to(self._device)
        self._labels = labels.cpu()
        self._shape: tuple[int, ...] | None = None

    @property
    def device(self) -> torch.device:
        """The device that batches go to."""
        return self._device

    @property
    def shape(self) -> tuple[int, ...]:
        if self._shape is None:
            self._shape = tuple(self.take(torch.zeros(1, dtype=torch.int64)).shape[1:])
        return self._shape

    def take(self, places: Tensor) -> Tensor:
        return next(self.load([[(place, place) for place in places.tolist()]], workers=0))

    def batches(self, places: Iterable[Tensor]) -> Iterator[Tensor]:
        return self.load([(place, place) for place in some.tolist()] for some in places)

    def load(self, keys: Iterable[_Keys], *, workers: int | None = None) -> Iterator[Tensor]:
        """Return an iterator over batches of inputs on the device.

        Args:
            keys: For each batch the places of its items, each with a seed.
            workers: In place of the source's.

        Raises:
            DataError: An item is not as described, or has another label than was given for it.
        """
        asked: deque[list[int]] = deque()

        def remembered() -> Iterator[_Keys]:
            for some in keys:
                asked.append([place for place, _ in some])
                yield some

        loader: DataLoader[Any] = DataLoader(
            _Seeded(self.dataset),
            batch_sampler=remembered(),  # type: ignore[arg-type]
            num_workers=self.workers if workers is None else workers,
            collate_fn=self.collate,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # the global one belongs to the run
        )
        for batch in loader:
            yield self._inputs(batch, asked.popleft())

    def _inputs(self, batch: Any, places: list[int]) -> Tensor:
        if not isinstance(batch, Sequence) or len(batch) < 2 or not isinstance(batch[0], Tensor):
            raise DataError(
                f"items of {type(self.dataset).__name__} give batches of {shown(batch)}; make them "
                "(input, label), the input a tensor: transforms.ToTensor() makes one of an image"
            )
        labels, expected = torch.as_tensor(batch[1]), self._labels[places]
        if labels.shape != expected.shape:
            raise DataError(
                f"{len(places)} items of {type(self.dataset).__name__} give labels of shape "
                f"{tuple(labels.shape)}; make them (input, label), the label an integer"
            )
        wrong = (labels != expected).nonzero().flatten().tolist()
        if wrong:
            raise DataError(
                f"item {places[wrong[0]]} has the label {labels[wrong[0]].item()} in "
                f"{type(self.dataset).__name__}, and {expected[wrong[0]].item()} was expected; "
                "give the labels that its items have: labels= where the dataset's function takes "
                "them, or `targets` of the dataset"
            )
        return batch[0].to(self._device, non_blocking=True)

    def same_examples(self, other: Source) -> bool:
        return self is other or (isinstance(other, DatasetSource) and self.dataset is other.dataset)

    def _moved(self, device: torch.device) -> DatasetSource:
        return DatasetSource(
            self.dataset, self._labels, workers=self.workers, collate=self.collate, device=device
        )


def check_sized(dataset: Dataset[Any]) -> int:
    """Return the length of a dataset; raise TypeError where it has none or no items."""
    try:
        count = len(dataset)  # type: ignore[arg-type]
    except TypeError:
        count = None
    if count is None or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}, which has no length or no items by number; "
            "give a map-style Dataset, or take its batches to learner.losses() in your own loop"
        )
    return count


class LoadedStream(BatchStream):
    """Batches of a :class:`DatasetSource`, in the order of :class:`BatchStream`, loaded ahead.

    A batch that does not follow the one before makes the loader start anew at it.
    """

    _loaded: Iterator[Tensor] | None = None
    _next = -1

    @property
    def is_resident(self) -> bool:
        return False

    def gather(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        number = self._number(step)
        if self._loaded is None or number != self._next:
            self._asked: deque[Tensor] = deque()
            self._loaded = self._source.load(self._keys(number))
        inputs = next(self._loaded)
        self._next = number + 1
        return self._preprocess(inputs), self._asked.popleft()

    @property
    def _source(self) -> DatasetSource:
        source = self._split.source
        assert isinstance(source, DatasetSource)
        return source

    def _keys(self, step: int) -> Iterator[_Keys]:
        place = torch.arange(self.batch_size)[self.part]
        while True:
            self.prepare(step)
            rows = self._rows(step)
            self._asked.append(rows[:, 1].contiguous())
            seeds = counter_randint(
                1 << 31, self.seed, self.task_id, AUGMENT, _SEED_OF_EXAMPLE, step, place
            )
            yield list(zip(rows[:, 0].tolist(), seeds.tolist(), strict=True))
            step += 1
