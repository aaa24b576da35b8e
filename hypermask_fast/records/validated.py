"""Validation accuracy of a run after each task, in a file of its folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hypermask_fast.errors import ConfigError
from hypermask_fast.files.atomic import write_text_atomic
from hypermask_fast.training.trainer import Trainer

FILE = "validation.json"


def measure(folder: Path, trainer: Trainer) -> int:
    """Measure the validation accuracy of each learned task, write it, and return their number.

    Before the checkpoint that ends a task: a run that goes on from it does not come back here.

    Args:
        folder: Of the run.
        trainer: Just after a task.

    Raises:
        ConfigError: A task has no validation data, or the file cannot be written.
    """
    done = trainer.tasks_done
    accuracies = []
    for task in trainer.columns[:done]:
        if not len(trainer.tasks[task].validation):
            raise ConfigError(
                f"the task {trainer.tasks[task].name!r} has no validation data to measure on; hold "
                "some out"
            )
        accuracies.append(trainer.evaluate(task, "validation"))
    rows = [*read(folder)[: done - 1], accuracies]
    write_text_atomic(folder / FILE, json.dumps({"after_task": rows}) + "\n")
    return done


def read(folder: Path) -> list[list[float]]:
    """Return the validation accuracies of the learned tasks in percent, after each of them.

    Those that were measured; none where there is no such file.
    """
    try:
        found = json.loads((folder / FILE).read_bytes())["after_task"]
        return [[float(value) for value in row] for row in found]
    except (KeyError, OSError, TypeError, ValueError):
        return []


def means(folder: Path) -> list[float]:
    """Return the mean validation accuracy of the learned tasks, after each task."""
    return [float(np.mean(row)) for row in read(folder)]
