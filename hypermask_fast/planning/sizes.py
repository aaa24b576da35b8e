"""What a plan must know of a scenario: from the catalogue, without data, or of tasks themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError
from hypermask_fast.planning.simulation import ScenarioSize
from hypermask_fast.scenarios import Scenario, Split, Task
from hypermask_fast.scenarios.catalogue import SCENARIOS
from hypermask_fast.settings.build import make_scenario
from hypermask_fast.settings.config import RunConfig


def scenario_size(config: RunConfig, scenario: Scenario | None = None) -> ScenarioSize:
    """Return what a plan must know of the scenario of a run; no file of the catalogue's is read.

    Args:
        config: The settings.
        scenario: What a function of one's own made. Default: it is called.

    Raises:
        ConfigError: The scenario has fewer tasks, or a function of one's own makes none.
        DataError: A data file is missing or damaged.
    """
    batch_size = config.training.batch_size
    if config.scenario.is_own:
        return size_of(make_scenario(config) if scenario is None else scenario, batch_size)
    chosen = config.scenario
    entry = SCENARIOS[chosen.name]
    train, test, (channels, height, width), all_classes = entry.data_set
    tasks = entry.tasks if chosen.tasks is None else chosen.tasks
    classes = entry.classes or all_classes
    if entry.classes and tasks > all_classes // classes:
        raise ConfigError(f"tasks is {tasks}; it must be 1 to {all_classes // classes}")
    validation = entry.validation if chosen.validation is None else chosen.validation
    validation *= classes if entry.validation_per_class else 1
    of_tasks = all_classes // classes
    each = (int(train / of_tasks), int(test / of_tasks))
    first, later = each, sum(each)
    if entry.first is not None:
        first = entry.first
        later = (train + test - sum(first)) // (of_tasks - 1)
    shape = (channels, height + 2 * entry.pad, width + 2 * entry.pad)
    # uint8 pixels; int64 labels, indices, local labels, permutations.
    data = (train + test) * (channels * height * width + 8)
    data += 16 * (sum(first) + (tasks - 1) * later if entry.classes else train + test)
    data += 0 if entry.classes else 8 * tasks * shape[0] * shape[1] * shape[2]
    data += _orders(max(1, first[0] - validation), batch_size)
    return ScenarioSize(tasks, classes, shape, validation, first[1], data)


def size_of(tasks: Iterable[Task], batch_size: int) -> ScenarioSize:
    """Return what a plan must know of tasks, whose examples were made.

    Args:
        tasks: At least one.
        batch_size: Examples in a training step.
    """
    given = list(tasks)
    first = next(given[0].evaluation_batches("test", 1))[0]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(given)}
    examples = max(len(task.train) for task in given)
    return ScenarioSize(
        tasks=len(given),
        classes=max(task.num_classes for task in given),
        input_shape=tuple(first.shape[1:]),
        validation=max(len(task.validation) for task in given),
        test=max(len(task.test) for task in given),
        data=sum(held.values()) + _orders(examples, batch_size),
        dtype=first.dtype,
    )


def _orders(examples: int, batch_size: int) -> int:
    """Return the bytes of a stream's orders and draws, int64."""
    return examples * ((batch_size + examples - 2) // examples + 1) * 5 * 8


def _tensors(tasks: Iterable[Task]) -> Iterator[Tensor]:
    """Return the tensors that tasks hold, those of several more than once."""
    for task in tasks:
        parts: list[Any] = [task.train_preprocess, task.eval_preprocess]
        splits: list[Split] = [task.train, task.validation, task.test]
        parts += [*splits, *(split.source for split in splits)]
        for part in parts:
            for value in getattr(part, "__dict__", {}).values():
                if isinstance(value, torch.Tensor):
                    yield value
