"""What a run amounts to, in one file: metrics by definition, accuracies, times and memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hypermask_fast.errors import DataError
from hypermask_fast.metrics import continual
from hypermask_fast.records.timing import StepClock
from hypermask_fast.training.trainer import Trainer

_LASTING = ("tasks", "tasks_learned", "steps", "total_steps", "metrics", "accuracy")


def example_counts(trainer: Trainer) -> list[int] | None:
    """Return the number of test examples of each column's task; None where one is not known."""
    known = trainer.tasks
    if not all(task in known for task in trainer.columns):
        return None
    return [len(known[task].test) for task in trainer.columns]


def summary(
    trainer: Trainer, names: Sequence[str], clock: StepClock, steps: int, total_steps: int
) -> dict[str, Any]:
    """Return the summary of a run, for JSON; what is not known is None.

    Args:
        trainer: Its trainer, with a task learned.
        names: Of the columns of its accuracies.
        clock: That of its steps, whose file was written.
        steps: Taken so far.
        total_steps: Of the whole run.
    """
    matrix, counts = trainer.accuracy, example_counts(trainer)
    done = trainer.tasks_done
    ms = clock.median_ms
    found = continual.summary(matrix, counts) if matrix.size else {}
    return {
        "tasks": len(names),
        "tasks_learned": done,
        "steps": steps,
        "total_steps": total_steps,
        "seconds": round(clock.seconds, 3),
        "ms_a_step": _or_none(ms),
        "steps_per_second": None if math.isnan(ms) or not ms else round(1e3 / ms, 2),
        "peak_bytes": clock.peak_bytes,
        "unit": "percent",
        "metrics": {name: _or_none(value) for name, value in found.items()},
        "definitions": {k: v for k, v in continual.definitions().items() if k in found},
        "task_names": list(names),
        "accuracy": [_or_none(value) for value in matrix[done]] if done else [],
        "test_examples": counts,
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def is_recorded(path: Path, written: Mapping[str, Any]) -> bool:
    """Return whether the file there says the same, but for times and memory."""
    try:
        found = read(path)
    except DataError:
        return False
    return all(found.get(name) == written[name] for name in _LASTING)


def read(path: Path) -> dict[str, Any]:
    """Return the summary in a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
        reason = "it holds no object"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise DataError(
        f"{path} cannot be read as a summary ({reason}); give the folder of a run that has learned "
        "a task with this version"
    )
