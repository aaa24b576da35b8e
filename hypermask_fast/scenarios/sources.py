"""Where the inputs of examples come from, and what a task takes of them."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hypermask_fast.errors import shown
from hypermask_fast.modes import has_values
from hypermask_fast.scenarios.moving import Movable


def check_tensors(**values: Tensor) -> None:
    """Raise TypeError where a value is no tensor."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} are {shown(value)}; give a tensor: torch.as_tensor makes one of an array "
                "or a list"
            )


def check_types(**values: tuple[object, type]) -> None:
    """Raise TypeError where a value is no object of its class."""
    for name, (value, cls) in values.items():
        if not isinstance(value, cls):
            raise TypeError(f"{name} is {shown(value)}; give a {cls.__name__}")


def check_names(name: str, values: Sequence[str]) -> None:
    """Raise TypeError where names are no list of strings."""
    if (
        isinstance(values, str)
        or not isinstance(values, Sequence)
        or not all(isinstance(value, str) for value in values)
    ):
        raise TypeError(f"{name} are {shown(values)}; give a tuple of strings")


def check_labels(labels: Tensor, count: int, what: str) -> None:
    """Raise ValueError where labels are not int64, one for each of ``count`` examples."""
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(
            f"labels are {labels.dtype} {tuple(labels.shape)}; "
            f"give torch.int64 ({count},), one for each {what}"
        )


class Source(Movable):
    """Base of what holds the inputs of labelled examples.

    Attributes:
        labels: int64 (n,), global labels.
    """

    labels: Tensor

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one example, before it is preprocessed."""

    @abstractmethod
    def take(self, places: Tensor) -> Tensor:
        """Return the examples (b, *shape) at int64 places (b,), on the device."""

    def batches(self, places: Iterable[Tensor]) -> Iterator[Tensor]:
        """Return an iterator over :meth:`take` of each of ``places``."""
        return map(self.take, places)

    def same_examples(self, other: Source) -> bool:
        """Return whether another source is known to hold these examples, without reading them."""
        return self is other

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class TensorSet(Source):
    """Examples of any type and shape, which networks take as they are: features, tokens, images.

    Attributes:
        inputs: (n, ...), of any dtype.
        labels: int64 (n,).

    Raises:
        ValueError: The labels have another type or shape.
        TypeError: One is no tensor.
    """

    inputs: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        check_tensors(inputs=self.inputs, labels=self.labels)
        if not self.inputs.dim():
            raise ValueError(f"inputs are {shown(self.inputs)}, of no axis; give (n, ...)")
        check_labels(self.labels, len(self.inputs), "input")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.inputs.shape[1:])

    @property
    def device(self) -> torch.device:
        """The device that holds the examples."""
        return self.inputs.device

    def take(self, places: Tensor) -> Tensor:
        return self.inputs.index_select(0, places)

    def _moved(self, device: torch.device) -> Any:
        if not fits(self.inputs.nbytes, device):
            return HostSet(self, device)
        return TensorSet(self.inputs.to(device), self.labels.to(device))


RESIDENT_SHARE = 0.5
"""Of a GPU's free memory that the examples of a source may take."""


def fits(size: int, device: torch.device) -> bool:
    """Return whether examples of so many bytes are held on a device, not on the host."""
    return device.type != "cuda" or size <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]


class HostSet(Source):
    """Examples on the host, whose batches go to a device: those that do not fit there.

    Args:
        held: The source on the host.
        device: Where batches and labels go.
    """

    def __init__(self, held: Source, device: torch.device) -> None:
        self.held, self._device = held, device
        self.labels = held.labels.to(device)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.held.shape

    @property
    def device(self) -> torch.device:
        """The device that batches go to."""
        return self._device

    def read(self, places: Tensor) -> Tensor:
        """Return examples on the host, in pinned memory where they go to a GPU."""
        batch = self.held.take(places.to(self.held.device))
        return batch.pin_memory() if self._device.type == "cuda" else batch

    def take(self, places: Tensor) -> Tensor:
        return self.read(places).to(self._device, non_blocking=True)

    def batches(self, places: Iterable[Tensor]) -> Iterator[Tensor]:
        with ThreadPoolExecutor(1) as ahead:
            waiting: deque[Future[Tensor]] = deque()
            for some in places:
                waiting.append(ahead.submit(self.read, some))
                if len(waiting) > 1:
                    yield waiting.popleft().result().to(self._device, non_blocking=True)
            while waiting:
                yield waiting.popleft().result().to(self._device, non_blocking=True)

    def same_examples(self, other: Source) -> bool:
        return self is other or (isinstance(other, HostSet) and self.held is other.held)

    def _moved(self, device: torch.device) -> Any:
        return self.held.to(device)


@dataclass(frozen=True, eq=False)
class Split(Movable):
    """Some examples of a source, with the labels they have within a task.

    Attributes:
        source: Its storage is shared, never copied.
        index: int64 (n,), the examples' places in ``source``.
        labels: int64 (n,), local labels.

    Raises:
        ValueError: A tensor has another type or shape, or an index is no place in the source.
        TypeError: The source is no Source, or one of the others no tensor.
    """

    source: Source = field(repr=False)
    index: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        check_types(source=(self.source, Source))
        check_tensors(index=self.index, labels=self.labels)
        for name, value in (("index", self.index), ("labels", self.labels)):
            if value.dtype != torch.int64:
                raise ValueError(
                    f"{name} is {value.dtype} of shape {tuple(value.shape)}; give torch.int64"
                )
        if self.index.shape != self.labels.shape or self.index.dim() != 1:
            raise ValueError(
                f"index has shape {tuple(self.index.shape)} and labels {tuple(self.labels.shape)}; "
                "both must be (n,)"
            )
        if len(self.index) and has_values(self.index):
            low, high = (int(place) for place in self.index.aminmax())
            if low < 0 or high >= len(self.source):
                raise ValueError(
                    f"index of shape {tuple(self.index.shape)} reaches from {low} to {high}; give "
                    f"places in the source, 0 to {len(self.source) - 1}"
                )

    def same_examples(self, other: Split) -> bool:
        """Return whether another split is known to hold these examples, without reading them."""
        return self is other or (
            self.source.same_examples(other.source)
            and torch.equal(self.index, other.index)
            and torch.equal(self.labels, other.labels)
        )

    def __len__(self) -> int:
        return self.index.shape[0]

    @property
    def device(self) -> torch.device:
        """The device that holds the examples."""
        return self.source.device

    def _moved(self, device: torch.device) -> Split:
        return Split(self.source.to(device), self.index.to(device), self.labels.to(device))
