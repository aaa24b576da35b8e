"""Tasks over shared images, and sequences of tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.scenarios.datasets import ImageSet
from hypermask_fast.scenarios.moving import Movable
from hypermask_fast.scenarios.preprocess import Preprocess
from hypermask_fast.scenarios.stream import BatchStream

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split(Movable):
    """Some images of an image set, with the labels they have within a task.

    Attributes:
        source: The image set; its storage is shared, never copied.
        index: int64 (n,), the images' places in ``source``.
        labels: int64 (n,), local labels.
    """

    source: ImageSet = field(repr=False)
    index: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        if self.index.shape != self.labels.shape or self.index.dim() != 1:
            raise ValueError(
                f"index has shape {tuple(self.index.shape)} and labels {tuple(self.labels.shape)}; "
                "both must be (n,)"
            )

    @property
    def images(self) -> Tensor:
        """uint8 (all images of the source, C, H, W)."""
        return self.source.images

    def __len__(self) -> int:
        return self.index.shape[0]

    @property
    def device(self) -> torch.device:
        """The device that holds the images."""
        return self.source.device

    def _moved(self, device: torch.device) -> Split:
        return Split(self.source.to(device), self.index.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a scenario.

    Attributes:
        name: Shown in reports.
        classes: Global class ids; the place in the tuple is the local label.
        class_names: Names in the same order.
        train, validation, test: Splits; only ``validation`` may be empty.
        train_preprocess, eval_preprocess: With and without random transforms.
    """

    name: str
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    train_preprocess: Preprocess
    eval_preprocess: Preprocess

    @property
    def num_classes(self) -> int:
        """Number of classes, which is the number of local labels."""
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the network's input."""
        return self.eval_preprocess.output_shape(self.train.source.shape)

    @property
    def device(self) -> torch.device:
        """The device that holds the images."""
        return self.train.device

    def to(self, device: torch.device | str) -> Task:
        """Return the task with all tensors on ``device``.

        Images that another living task has there already are shared with it, not copied again.
        """
        same = self.train_preprocess is self.eval_preprocess
        evaluation = self.eval_preprocess.to(device)
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
            train_preprocess=evaluation if same else self.train_preprocess.to(device),
            eval_preprocess=evaluation,
        )

    def split(self, name: str) -> Split:
        """Return the split called "train", "validation" or "test".

        Raises:
            ConfigError: there is no split of this name.
        """
        if name not in _SPLITS:
            raise ConfigError(
                f"there is no split {name!r}{nearest(name, _SPLITS)}; use one of {list(_SPLITS)}"
            )
        split: Split = getattr(self, name)
        return split

    def evaluation_batches(
        self, split_name: str, batch_size: int = 1000
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Return an iterator over a split in data set order, without random transforms.

        Args:
            split_name: "train", "validation" or "test".
            batch_size: Samples in a batch; the last batch may be smaller. Default 1000.

        Returns:
            Iterator of inputs float32 (b, C, H, W) and local labels int64 (b,).
        """
        split = self.split(split_name)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
        return (
            (self.eval_preprocess(split.images.index_select(0, index)), labels)
            for index, labels in zip(
                split.index.split(batch_size), split.labels.split(batch_size), strict=True
            )
            if len(index)
        )

    def stream(self, batch_size: int, seed: int = 0, task_id: int = 0) -> BatchStream:
        """Return the infinite stream of shuffled training batches; see :class:`BatchStream`."""
        return BatchStream(self, batch_size, seed, task_id)


class Scenario(Sequence[Task]):
    """A sequence of tasks with one input shape.

    Args:
        name: Shown in reports.
        tasks: At least one task.

    Raises:
        ConfigError: there is no task, or the tasks' input shapes differ.
    """

    def __init__(self, name: str, tasks: Sequence[Task]) -> None:
        shapes = {task.input_shape for task in tasks}
        if len(shapes) != 1:
            raise ConfigError(
                f"scenario {name!r} has the input shapes {sorted(shapes)}; "
                "give at least one task, and tasks of one shape"
            )
        self.name = name
        self.tasks = tuple(tasks)
        (self.input_shape,) = shapes

    @property
    def num_classes(self) -> int:
        """Width of the output head that serves every task: the largest number of classes."""
        return max(task.num_classes for task in self.tasks)

    def to(self, device: torch.device | str) -> Scenario:
        """Return the scenario with all tensors on ``device``; shared images move once."""
        return Scenario(self.name, [task.to(device) for task in self.tasks])

    def describe(self) -> str:
        """Return a plain-text table of the tasks: classes, local labels and sizes."""
        header = ("task", "name", "global classes", "local labels", "train", "val", "test")
        rows = [
            (
                str(number),
                task.name,
                _ranges(task.classes),
                _ranges(range(task.num_classes)),
                str(len(task.train)),
                str(len(task.validation)),
                str(len(task.test)),
            )
            for number, task in enumerate(self.tasks)
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        numeric = {0, 4, 5, 6}
        lines = [
            "  ".join(
                cell.rjust(width) if place in numeric else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (header, *rows)
        ]
        shape = " x ".join(map(str, self.input_shape))
        title = f"{self.name}: {len(self)} tasks, input {shape}, head {self.num_classes}"
        return "\n".join([title, *lines])

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, place: int) -> Task: ...

    @overload
    def __getitem__(self, place: slice) -> Scenario: ...

    def __getitem__(self, place: int | slice) -> Task | Scenario:
        if isinstance(place, slice):
            return Scenario(self.name, self.tasks[place])
        return self.tasks[place]

    def __repr__(self) -> str:
        return (
            f"Scenario({self.name!r}, {len(self)} tasks, input_shape={self.input_shape}, "
            f"num_classes={self.num_classes})"
        )


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending neighbours as a range: (0, 1, 2, 7) becomes "0-2, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
