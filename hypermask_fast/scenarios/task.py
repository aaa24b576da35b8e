"""One task of a scenario: its classes, its examples and how they are fed to a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError, nearest, shown
from hypermask_fast.fields import check_value
from hypermask_fast.scenarios.host import HostStream
from hypermask_fast.scenarios.loaded import DatasetSource, LoadedStream
from hypermask_fast.scenarios.preprocess import Preprocess
from hypermask_fast.scenarios.sources import HostSet, Split, TensorSet, check_names, check_types
from hypermask_fast.scenarios.stream import BatchStream
from hypermask_fast.scenarios.transform import Cast, Transform

_SPLITS = ("train", "validation", "test")


def check_task(task: Task) -> None:
    """Raise TypeError where a task is none."""
    if isinstance(task, Task):
        return
    fix = "give a Task, as scenarios.make_task(), split() and permuted() make them"
    if isinstance(task, Sequence) and len(task) and all(isinstance(item, Task) for item in task):
        fix = "give its tasks one by one"
    raise TypeError(f"task is {shown(task)}, a {type(task).__name__}; {fix}")


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a scenario.

    Attributes:
        name: Shown in reports.
        classes: Global class ids; the place in the tuple is the local label.
        class_names: Names in the same order.
        train, validation, test: Splits; only ``validation`` may be empty.
        train_preprocess, eval_preprocess: With and without random transforms.

    Raises:
        ConfigError: A class has no training examples, there are no test examples, or a label is
            not
            that of a class.
        TypeError: A part has another type.
    """

    name: str
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    train_preprocess: Transform
    eval_preprocess: Transform

    def __post_init__(self) -> None:
        parts: dict[str, type] = {"name": str, **dict.fromkeys(_SPLITS, Split)}
        parts |= {"train_preprocess": Transform, "eval_preprocess": Transform}
        check_types(**{part: (getattr(self, part), cls) for part, cls in parts.items()})
        check_names("class_names", self.class_names)
        classes = check_value("classes", tuple, self.classes)
        if len(set(classes)) < len(classes) or len(classes) != len(self.class_names):
            raise ConfigError(
                f"task {self.name!r} has the classes {classes} and the class_names "
                f"{self.class_names}; give different ids, and a name for each"
            )
        for part in _SPLITS:
            labels = self.split(part).labels
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise ConfigError(
                    f"task {self.name!r} has {part} labels from {int(labels.min())} to "
                    f"{int(labels.max())}; its {self.num_classes} classes are counted from 0"
                )
        counts = self.train.labels.bincount(minlength=self.num_classes).tolist()
        missing = [name for name, n in zip(self.class_names, counts, strict=True) if not n]
        if missing:
            raise ConfigError(
                f"task {self.name!r} has no training examples of {', '.join(missing)}; hold out "
                "fewer for validation, or leave the class out"
            )
        if not len(self.test):
            raise ConfigError(f"task {self.name!r} has no test examples; give at least one")

    @property
    def num_classes(self) -> int:
        """Number of classes, which is the number of local labels."""
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one of the network's inputs; (C, H, W) of images."""
        return self.eval_preprocess.output_shape(self.train.source.shape)

    @property
    def device(self) -> torch.device:
        """The device that holds the examples."""
        return self.train.device

    def to(self, device: torch.device | str) -> Task:
        """Return the task with all tensors on ``device``.

        Examples that another living task has there already are shared with it, not copied again.
        """
        same = self.train_preprocess is self.eval_preprocess
        evaluation = self.eval_preprocess.to(device)
        moved = copy(self)  # checked already, and a device would have to wait
        vars(moved).update(
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
            train_preprocess=evaluation if same else self.train_preprocess.to(device),
            eval_preprocess=evaluation,
        )
        return moved

    def cast(self, dtype: torch.dtype) -> Task:
        """Return the task with inputs of another floating-point type; others stay as they are."""
        source = self.train.source
        inputs = source.inputs if isinstance(source, TensorSet) else None
        if inputs is not None and (inputs.dtype == dtype or not inputs.is_floating_point()):
            return self
        if isinstance(self.eval_preprocess, Preprocess) and dtype == torch.float32:
            return self
        cast = copy(self)  # checked already
        parts = ("train_preprocess", "eval_preprocess")
        vars(cast).update({part: Cast(getattr(self, part), dtype) for part in parts})
        return cast

    def called(self, name: str) -> Task:
        """Return the task with another name."""
        renamed = copy(self)  # checked already
        vars(renamed).update(name=check_value("name", str, name))
        return renamed

    def has_same_examples(self, other: Task) -> bool:
        """Return whether another task on this device has equal inputs and labels, in one order."""
        if any(len(self.split(part)) != len(other.split(part)) for part in _SPLITS):
            return False
        shares_data = all(self.split(part).same_examples(other.split(part)) for part in _SPLITS)
        if shares_data and self.eval_preprocess == other.eval_preprocess:
            return True
        return self.input_shape == other.input_shape and all(
            torch.equal(x, other_x) and torch.equal(y, other_y)
            for part in _SPLITS
            for (x, y), (other_x, other_y) in zip(
                self.evaluation_batches(part), other.evaluation_batches(part), strict=True
            )
        )

    def split(self, name: str) -> Split:
        """Return the split called "train", "validation" or "test".

        Raises:
            ConfigError: there is no split of this name.
        """
        if name not in _SPLITS:
            raise ConfigError(
                f"there is no split {shown(name)}{nearest(name, _SPLITS)}; use one of "
                f"{list(_SPLITS)}"
            )
        split: Split = getattr(self, name)
        return split

    def evaluation_batches(
        self, split_name: str, batch_size: int = 1000, *, which: slice = slice(None)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Return an iterator over a split in data set order, without random transforms.

        Args:
            split_name: "train", "validation" or "test".
            batch_size: Samples in a batch; the last batch may be smaller. Default 1000.
            which: Of the batches. Default: all.

        Returns:
            Iterator of inputs (b, ...), of images float32 (b, C, H, W), and local labels int64
            (b,).

        Raises:
            ConfigError: There is no split of this name, or the batch size is no integer above 0.
        """
        split = self.split(split_name)
        check_value("batch_size", int, batch_size, low=1)
        if not len(split):
            return iter(())
        batches = split.source.batches(split.index.split(batch_size)[which])
        return (
            (self.eval_preprocess(inputs), labels)
            for inputs, labels in zip(batches, split.labels.split(batch_size)[which], strict=True)
        )

    def stream(self, batch_size: int, seed: int = 0, task_id: int = 0) -> BatchStream:
        """Return the infinite stream of shuffled training batches; see :class:`BatchStream`."""
        kinds = {DatasetSource: LoadedStream, HostSet: HostStream}
        return kinds.get(type(self.train.source), BatchStream)(
            self.train, self.train_preprocess, batch_size, seed, task_id, name=f"task {self.name!r}"
        )
