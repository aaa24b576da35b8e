"""Scenarios from any data set: classes split over tasks, or images changed in each task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from hypermask_fast.counters import PERMUTATION, counter_permutation
from hypermask_fast.errors import ConfigError, shown
from hypermask_fast.fields import check_value
from hypermask_fast.scenarios.hold_out import hold_out
from hypermask_fast.scenarios.images import ImageDataset
from hypermask_fast.scenarios.preprocess import Preprocess
from hypermask_fast.scenarios.rotations import rotation
from hypermask_fast.scenarios.scenario import Scenario
from hypermask_fast.scenarios.sources import Source, Split
from hypermask_fast.scenarios.task import Task


def _blocks(
    dataset: ImageDataset,
    classes_per_task: int | Sequence[int] | None,
    class_order: Sequence[int] | None,
) -> list[tuple[int, ...]]:
    total = dataset.num_classes
    order = list(range(total))
    if class_order is not None:
        order = list(check_value("class_order", tuple, class_order))
    wrong = [c for c in order if not 0 <= c < total or order.count(c) > 1]
    if wrong or not order:
        raise ConfigError(
            f"class_order has {wrong or 'no class'}; give different class ids of {dataset.name}, "
            f"0 to {total - 1}"
        )
    if classes_per_task is None:
        return [tuple(order)]
    if not isinstance(classes_per_task, Iterable) or isinstance(classes_per_task, str):
        check_value("classes_per_task", int, classes_per_task)
        if classes_per_task < 1 or len(order) % classes_per_task:
            raise ConfigError(
                f"classes_per_task is {classes_per_task}; it must divide the number of classes, "
                f"{len(order)}"
            )
        classes_per_task = [classes_per_task] * (len(order) // classes_per_task)
    sizes: tuple[int, ...] = check_value("classes_per_task", tuple, classes_per_task)
    if min(sizes, default=0) < 1 or sum(sizes) != len(order):
        raise ConfigError(
            f"classes_per_task is {list(sizes)}; its entries must be 1 or more and add up to the "
            f"number of classes, {len(order)}"
        )
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [tuple(order[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def _select(source: Source, classes: Sequence[int], num_classes: int) -> Split:
    local = torch.full((num_classes,), -1, device=source.device)
    local[list(classes)] = torch.arange(len(classes), device=source.device)
    labels = local[source.labels]
    index = torch.nonzero(labels >= 0).flatten()
    return Split(source, index, labels[index])


def _check_options(
    dataset: ImageDataset, name: str | None, numbers: Mapping[str, Any], **flags: bool
) -> None:
    """Raise TypeError where there is no data set, ConfigError where an option has another type."""
    if not isinstance(dataset, ImageDataset):
        raise TypeError(
            f"dataset is {shown(dataset)}; give an ImageDataset, such as that of "
            "scenarios.load_digits(), or one made of two ImageSets"
        )
    check_value("name", str, name, None)
    for key, number in numbers.items():
        check_value(key, int, number)
    for key, flag in flags.items():
        check_value(key, bool, flag)


def _check_tasks(tasks: int, most: int | None) -> None:
    if tasks < 1 or (most is not None and tasks > most):
        limit = "1 or more" if most is None else f"1 to {most}"
        raise ConfigError(f"tasks is {tasks}; it must be {limit}")


def split(
    dataset: ImageDataset,
    classes_per_task: int | Sequence[int] | None = None,
    *,
    class_order: Sequence[int] | None = None,
    tasks: int | None = None,
    validation: int = 0,
    validation_per_class: bool = False,
    stratified: bool = True,
    crop: int = 0,
    flip: bool = False,
    pad: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    name: str | None = None,
) -> Scenario:
    """Split the classes of a data set over tasks.

    Args:
        dataset: The data set; all tasks share its images.
        classes_per_task: Classes in each task, one number or one for each task. Default: all
            classes in one task.
        class_order: Global class ids in the order in which tasks take them; a class's place within
            its task is its local label. Default: 0, 1, 2, ...
        tasks: Keep only the first tasks. Default: all.
        validation: Training images of each task that are held out. Default 0.
        validation_per_class: Hold out that number of each class instead. Default False.
        stratified: Hold out of each class its share, the first in data set order; False: the first
            of the task, whatever their classes. Default True.
        crop, flip: Random transforms of training images, as for :class:`Preprocess`.
        pad, mean, std: Transforms of all images, as for :class:`Preprocess`.
        name: Name of the scenario. Default: "split-" and the data set's name.

    Raises:
        ConfigError: a setting has another type or is out of range, or a class is left without
            training images.
        TypeError: ``dataset`` is none.
    """
    flags = {"stratified": stratified, "validation_per_class": validation_per_class}
    _check_options(dataset, name, {"validation": validation}, **flags)
    check_value("tasks", int, tasks, None)
    blocks = _blocks(dataset, classes_per_task, class_order)
    if tasks is not None:
        _check_tasks(tasks, len(blocks))
        blocks = blocks[:tasks]
    evaluation = Preprocess(pad=pad, mean=mean, std=std)
    training = evaluation
    if check_value("crop", int, crop) or check_value("flip", bool, flip):
        training = Preprocess(pad=pad, mean=mean, std=std, crop=crop, flip=flip)
    result = []
    for classes in blocks:
        class_names = tuple(dataset.class_names[c] for c in classes)
        span = "/".join(class_names) if len(classes) < 3 else f"{class_names[0]}..{class_names[-1]}"
        title = f"{dataset.name} {span}"
        everything = _select(dataset.train, classes, dataset.num_classes)
        train, held_out = hold_out(everything, validation, validation_per_class, stratified, title)
        test = _select(dataset.test, classes, dataset.num_classes)
        result.append(
            Task(title, classes, class_names, train, held_out, test, training, evaluation)
        )
    return Scenario(name or f"split-{dataset.name}", result).to(dataset.train.device)


def permuted(
    dataset: ImageDataset,
    tasks: int,
    *,
    pad: int = 0,
    seed: int = 0,
    validation: int = 0,
    stratified: bool = True,
    identity_first: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    name: str | None = None,
) -> Scenario:
    """Give each task all classes and a pixel permutation of its own.

    The global class ids of task t are ``t * C + c``, since the same digit under two permutations
    counts as two classes when the task is to be inferred.

    Args:
        dataset: The data set; all tasks share its images and splits.
        tasks: Number of tasks. The first tasks do not depend on how many follow.
        pad: Zeros added on all four sides before the permutation. Default 0.
        seed: Selects the permutations. Default 0.
        validation: Training images that are held out. Default 0.
        stratified: As in :func:`split`. Default True.
        identity_first: Leave the pixels of task 0 in place (HNET's protocol). Default False.
        mean, std: Transforms of all images, as for :class:`Preprocess`.
        name: Name of the scenario. Default: "permuted-" and the data set's name.

    Raises:
        ConfigError: a setting has another type or is out of range.
        TypeError: ``dataset`` is none.
    """
    numbers = {"tasks": tasks, "seed": seed, "validation": validation}
    _check_options(dataset, name, numbers, stratified=stratified, identity_first=identity_first)
    channels, height, width = Preprocess(pad=pad).output_shape(dataset.train.shape)
    preprocesses = []
    _check_tasks(tasks, None)
    for number in range(tasks):
        permutation = None
        if number or not identity_first:
            permutation = counter_permutation(channels * height * width, seed, number, PERMUTATION)
        preprocesses.append(Preprocess(pad=pad, permutation=permutation, mean=mean, std=std))
    return _of_all_classes(
        dataset, "permutation", "permuted", preprocesses, validation, stratified, name
    )


def rotated(
    dataset: ImageDataset,
    tasks: int,
    *,
    degrees: float = 10.0,
    validation: int = 0,
    stratified: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    name: str | None = None,
) -> Scenario:
    """Give each task all classes, and images rotated by ``task * degrees`` counter-clockwise.

    The global class ids of task t are ``t * C + c``; see :func:`permuted`.

    Args:
        dataset: The data set; all tasks share its images and splits.
        tasks: Number of tasks.
        degrees: Between two tasks. Default 10.
        validation: Training images that are held out. Default 0.
        stratified: As in :func:`split`. Default True.
        mean, std: Transforms of all images, as for :class:`Preprocess`.
        name: Name of the scenario. Default: "rotated-" and the data set's name.

    Raises:
        ConfigError: a setting has another type or is out of range.
        TypeError: ``dataset`` is none.
    """
    _check_options(dataset, name, {"tasks": tasks, "validation": validation}, stratified=stratified)
    check_value("degrees", float, degrees)
    channels, height, width = dataset.train.shape
    first = torch.arange(channels)[:, None] * (height * width)
    preprocesses = []
    _check_tasks(tasks, None)
    for number in range(tasks):
        places = rotation(height, width, number * degrees)
        source = torch.where(places < 0, -1, first + places).flatten()
        preprocesses.append(Preprocess(source=source, mean=mean, std=std))
    return _of_all_classes(
        dataset, "rotation", "rotated", preprocesses, validation, stratified, name
    )


def _of_all_classes(
    dataset: ImageDataset,
    change: str,
    changed: str,
    preprocesses: Sequence[Preprocess],
    validation: int,
    stratified: bool,
    name: str | None,
) -> Scenario:
    """Return tasks of all classes that differ in what is done to their images."""
    classes = range(dataset.num_classes)
    everything = _select(dataset.train, classes, len(classes))
    train, held_out = hold_out(everything, validation, False, stratified, dataset.name)
    test = _select(dataset.test, classes, len(classes))
    result = [
        Task(
            f"{dataset.name} {change} {number}",
            tuple(number * len(classes) + c for c in classes),
            dataset.class_names,
            train,
            held_out,
            test,
            preprocess,
            preprocess,
        )
        for number, preprocess in enumerate(preprocesses)
    ]
    return Scenario(name or f"{changed}-{dataset.name}", result).to(dataset.train.device)
