"""Tasks of the benchmarks of Avalanche, which need not be installed to import this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hypermask_fast.errors import ConfigError, shown
from hypermask_fast.fields import check_value
from hypermask_fast.scenarios.loaded import DatasetSource
from hypermask_fast.scenarios.own import make_task, numbered_on
from hypermask_fast.scenarios.scenario import Scenario
from hypermask_fast.scenarios.sources import Split
from hypermask_fast.scenarios.task import Task


class Items(Dataset[tuple[Any, int]]):
    """The items (input, label) of an experience of Avalanche.

    Args:
        experience: The experience.
        training: With the transforms of training, not those of evaluation.
    """

    def __init__(self, experience: Any, *, training: bool) -> None:
        dataset = experience.dataset
        self._dataset = dataset.train() if training else dataset.eval()
        self.targets: Tensor = torch.tensor([int(label) for label in dataset.targets])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: int) -> tuple[Any, int]:
        inputs, label, *_ = self._dataset[place]
        return inputs, int(label)


def from_avalanche(
    benchmark: Any,
    *,
    validation: int | float | None = None,
    name: str = "avalanche",
    distinct_classes: bool = False,
    workers: int = 0,
) -> Scenario:
    """Make a scenario of a benchmark of Avalanche: a task of each training experience.

    Items are read as they are needed, with the benchmark's transforms: those of training for
    training data, those of evaluation for all other. A task is called by its task label where no
    other has it, else by its place; the stream "test" has an experience for each, or one for all.

    Args:
        benchmark: Such as ``SplitCIFAR100(10, return_task_id=True)`` or that of
            ``nc_benchmark(...)``, with the streams "train" and "test", and "valid" where
            ``benchmark_with_validation_stream`` made one.
        validation: Training examples of each task to hold out, or their share below 1. Default: the
            stream "valid", or nothing.
        name: Of the scenario. Default "avalanche".
        distinct_classes, workers: As for :func:`from_data`.

    Raises:
        TypeError: It is no such benchmark.
        ConfigError: The streams do not fit each other, or :func:`make_task` refuses a task.
        DataError: As :func:`make_task`.
    """
    streams: Any = getattr(benchmark, "streams", None)
    if not hasattr(streams, "keys") or not {"train", "test"} <= set(streams.keys()):
        raise TypeError(
            f"benchmark is {shown(benchmark)}; give a benchmark of Avalanche (pip install "
            "avalanche-lib) with the streams 'train' and 'test'"
        )
    check_value("distinct_classes", bool, distinct_classes)
    given = {part: list(streams[part]) for part in ("train", "test", "valid") if part in streams}
    if validation is not None:
        given.pop("valid", None)
    train = given["train"]
    others = {part: _aligned(part, given[part], len(train)) for part in given if part != "train"}
    labels = [getattr(experience, "task_label", None) for experience in train]
    are_names = None not in labels and len(set(labels)) == len(labels)
    tasks = [
        _task(
            f"task {labels[number]}" if are_names else f"experience {number}",
            experience,
            {part: some[number] for part, some in others.items()},
            validation or 0,
            workers,
        )
        for number, experience in enumerate(train)
    ]
    return Scenario(name, numbered_on(tasks) if distinct_classes else tasks)


def _aligned(part: str, experiences: Sequence[Any], count: int) -> list[Any]:
    """Return the experience for each of ``count`` training experiences."""
    if len(experiences) == count:
        return list(experiences)
    if len(experiences) == 1:
        return list(experiences) * count
    raise ConfigError(
        f"the stream {part!r} has {len(experiences)} experiences and 'train' has {count}; give one "
        "for each, or one for all"
    )


def _task(
    name: str, train: Any, others: dict[str, Any], validation: int | float, workers: int
) -> Task:
    data = {part: Items(experience, training=False) for part, experience in others.items()}
    task = make_task(
        name,
        Items(train, training=True),
        data["test"],
        validation=data.get("valid", validation),
        workers=workers,
    )
    if "valid" in data or not len(task.validation):
        return task
    held, plain = task.validation, Items(train, training=False)
    source = DatasetSource(plain, plain.targets, workers=workers)
    return replace(task, validation=Split(source, held.index, held.labels))
