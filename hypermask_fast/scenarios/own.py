"""Tasks of one's own data: tensors, Datasets, DataLoaders, folders of images."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from hypermask_fast.errors import ConfigError, DataError, nearest, shown
from hypermask_fast.fields import check_value
from hypermask_fast.scenarios.hold_out import hold_out
from hypermask_fast.scenarios.loaded import DatasetSource, check_sized
from hypermask_fast.scenarios.scenario import Scenario
from hypermask_fast.scenarios.sources import Source, Split, TensorSet
from hypermask_fast.scenarios.task import Task, check_task
from hypermask_fast.scenarios.transform import Transform

Data: TypeAlias = "tuple[Any, Any] | Dataset[Any] | DataLoader[Any]"


def make_task(
    name: str,
    train: Data,
    test: Data,
    *,
    validation: int | float | Data = 0,
    class_names: Mapping[int, str] | None = None,
    workers: int = 0,
) -> Task:
    """Make a task of one's own data.

    The classes of the task are the labels of its training data in ascending order; the place in
    that order is the local label, the network's output. Labels of several tasks that mean different
    classes must be different numbers where tasks are to be inferred.

    Args:
        name: Of the task.
        train: A pair (inputs, labels) of tensors or arrays: inputs (n, ...) of any dtype, which the
            network gets as they are, floating-point numbers from a Trainer in the network's type,
            and integer labels (n,). Or a Dataset of items (input, label), read as they are needed,
            with its random transforms (a TensorDataset is a pair). Or a DataLoader, of which
            dataset, workers and collate function are taken: the batch size and the order are the
            trainer's.
        test: Likewise.
        validation: Likewise; or a number of training examples to hold out, or their share below 1,
            of each class in proportion. Default 0.
        class_names: Names by label. Default: the labels.
        workers: Processes that load the items of Datasets ahead. Default 0.

    Raises:
        TypeError: Data are of another type, or ``class_names`` no dict.
        ConfigError: A class has no training examples, or a test label is not among the classes.
        DataError: Labels are no integers, or the items of a dataset have none.
    """
    check_value("name", str, name)
    check_value("workers", int, workers, low=0)
    if class_names is not None and not isinstance(class_names, Mapping):
        raise TypeError(f"class_names are {shown(class_names)}; give a dict of names by label")
    everything = _source(train, f"train of task {name!r}", workers)
    if not len(everything):
        raise ConfigError(f"task {name!r} has no training examples; give at least one")
    classes = tuple(everything.labels.unique().tolist())
    names = dict(class_names or {})
    split = _split(everything, classes, name, "train")
    if isinstance(validation, int | float):
        count = _count(validation, len(split))
        split, held_out = hold_out(split, count, False, True, f"task {name!r}")
    else:
        source = _source(validation, f"validation of task {name!r}", workers)
        held_out = _split(source, classes, name, "validation")
    return Task(
        name=name,
        classes=classes,
        class_names=tuple(str(names.get(label, label)) for label in classes),
        train=split,
        validation=held_out,
        test=_split(_source(test, f"test of task {name!r}", workers), classes, name, "test"),
        train_preprocess=_AS_THEY_ARE,
        eval_preprocess=_AS_THEY_ARE,
    )


_AS_THEY_ARE = Transform()


def as_task(task: Task | Data, data: Mapping[str, Any]) -> Task:
    """Return a task, or :func:`make_task` of training data and what else is given with it.

    Raises:
        TypeError: There is more than a task, no name or no test data, or as :func:`make_task`.
        ConfigError, DataError: As :func:`make_task`.
    """
    if isinstance(task, Task):
        if data:
            raise TypeError(
                f"{sorted(data)} are given with a Task, which has its own; leave it out"
            )
        return task
    if not isinstance(task, tuple | Dataset | DataLoader):
        check_task(task)
    if missing := {"name", "test"} - data.keys():
        raise TypeError(
            f"task is {shown(task)}, training data without {' and '.join(sorted(missing))}; beside "
            "them give name=, and test=, a pair of tensors or a Dataset"
        )
    known = inspect.signature(make_task).parameters.keys() - {"train"}
    if unknown := sorted(data.keys() - known):
        raise TypeError(
            f"{unknown[0]}= is none of what a task takes{nearest(unknown[0], known)}; give some of "
            f"{', '.join(sorted(known))}"
        )
    return make_task(train=task, **data)


def from_data(
    tasks: Mapping[str, tuple[Data, Data]] | Sequence[tuple[Data, Data]],
    *,
    name: str = "own",
    validation: int | float = 0,
    distinct_classes: bool = False,
    workers: int = 0,
) -> Scenario:
    """Make a scenario of tasks of one's own data: tensors, Datasets or DataLoaders.

    Args:
        tasks: (train, test) by the tasks' names, each as for :func:`make_task`; or a list of them,
            which are then called "task 0", "task 1" and so on.
        name: Of the scenario. Default "own".
        validation, workers: As for :func:`make_task`.
        distinct_classes: A label of one task is another class than the same label of another, as
            where each Dataset counts its labels from 0: the classes are numbered on from task to
            task. Default False: a label is one class, in whatever task.

    Raises:
        TypeError: ``tasks`` are no pairs, or :func:`make_task` refuses one.
        ConfigError: There are no tasks, their inputs differ in shape, or a task is refused.
        DataError: As :func:`make_task`.
    """
    check_value("distinct_classes", bool, distinct_classes)
    if isinstance(tasks, Sequence) and not isinstance(tasks, str):
        tasks = {f"task {number}": pair for number, pair in enumerate(tasks)}
    if not isinstance(tasks, Mapping):
        raise TypeError(f"tasks are {shown(tasks)}; give a dict of (train, test) by task name")
    for key, pair in tasks.items():
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise TypeError(f"task {key!r} is {shown(pair)}; give (train, test)")
    made = [
        make_task(key, train, test, validation=validation, workers=workers)
        for key, (train, test) in tasks.items()
    ]
    return Scenario(name, numbered_on(made) if distinct_classes else made)


def numbered_on(tasks: Iterable[Task]) -> list[Task]:
    """Return tasks whose classes are numbered from 0 on through all of them."""
    result: list[Task] = []
    for task in tasks:
        first = result[-1].classes[-1] + 1 if result else 0
        result.append(replace(task, classes=tuple(range(first, first + task.num_classes))))
    return result


def _count(validation: float, available: int) -> int:
    if isinstance(validation, int) and not isinstance(validation, bool):
        return check_value("validation", int, validation, low=0)
    share = check_value("validation", float, validation)
    if not 0 <= share < 1:
        raise ConfigError(
            f"validation is {validation}; give a number of examples, or a share from 0 to below 1"
        )
    return round(share * available)


def _split(source: Source, classes: Sequence[int], task: str, part: str) -> Split:
    known = torch.tensor(classes, device=source.device)
    local = torch.searchsorted(known, source.labels).clamp(max=len(classes) - 1)
    strange = source.labels[known[local] != source.labels].unique().tolist()
    if strange:
        raise ConfigError(
            f"the {part} data of task {task!r} have the labels {strange}, of which there are no "
            f"training examples; its classes are {list(classes)}"
        )
    return Split(source, torch.arange(len(source), device=source.device), local)


def _source(data: Data, what: str, workers: int) -> Source:
    if isinstance(data, DataLoader):
        _check_loader(data, what)
        labels = labels_of(data.dataset, what)
        return DatasetSource(
            data.dataset, labels, workers=data.num_workers, collate=data.collate_fn
        )
    if type(data) is TensorDataset:
        if len(data.tensors) != 2:
            raise TypeError(
                f"{what} is a TensorDataset of {len(data.tensors)} tensors; give (inputs, labels)"
            )
        data = (data.tensors[0], data.tensors[1])
    if isinstance(data, Dataset):
        return DatasetSource(data, labels_of(data, what), workers=workers)
    if isinstance(data, tuple | list) and len(data) == 2:
        inputs, labels = (_tensor(value, what) for value in data)
        return TensorSet(inputs, _integers(labels, what))
    raise TypeError(
        f"{what} is {shown(data)}; give (inputs, labels), a Dataset or a DataLoader of them"
    )


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray | list | tuple):
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{what} has {shown(value)} ({error}); give tensors") from error
    raise TypeError(f"{what} has {shown(value)}; give tensors or arrays (inputs, labels)")


def _integers(labels: Tensor, what: str) -> Tensor:
    exact = labels.to(torch.int64)
    if labels.dim() != 1 or labels.is_complex() or not bool((exact == labels).all()):
        raise DataError(
            f"the labels of {what} are {labels.dtype} {tuple(labels.shape)}; give integers (n,)"
        )
    return exact


def _check_loader(loader: DataLoader[Any], what: str) -> None:
    sampler = loader.sampler if loader.batch_size is not None else loader.batch_sampler
    if type(sampler) not in {RandomSampler, SequentialSampler} or getattr(
        sampler, "replacement", False
    ):
        raise TypeError(
            f"the loader of {what} draws by a {type(sampler).__name__}, and the order of examples "
            "is the trainer's; give its dataset, or take its batches to learner.losses()"
        )


def labels_of(dataset: Dataset[Any], what: str = "the dataset") -> Tensor:
    """Return the labels of a dataset's items, int64 (n,).

    They are read from ``targets`` or ``labels`` where it has them and no ``target_transform``, and
    from its items otherwise, all of which are loaded once.

    Raises:
        TypeError: The dataset has no length or no items by number.
        DataError: An item has no label, or labels are no integers.
    """
    check_sized(dataset)
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset, what)[torch.as_tensor(list(dataset.indices)).long()]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([labels_of(part, what) for part in dataset.datasets])
    listed = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if listed is not None and getattr(dataset, "target_transform", None) is None:
        return _integers(_tensor(listed, what), what).cpu()
    return _integers(torch.as_tensor(list(_read_labels(dataset, what))), what)


def _read_labels(dataset: Dataset[Any], what: str) -> Iterable[float]:
    for place in range(check_sized(dataset)):
        item = dataset[place]
        if not isinstance(item, Sequence) or len(item) < 2:
            raise DataError(f"item {place} of {what} is {shown(item)}; make it (input, label)")
        try:
            yield int(item[1]) if int(item[1]) == item[1] else float("nan")
        except (TypeError, ValueError) as error:
            raise DataError(
                f"item {place} of {what} has the label {shown(item[1])}; give an integer"
            ) from error
