"""Which classes a run's learned tasks take for which, at the end: counts of test examples."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from hypermask_fast.errors import DataError
from hypermask_fast.files.atomic import write_bytes_atomic, write_text_atomic
from hypermask_fast.training.accuracy import accuracy_of
from hypermask_fast.training.trainer import Trainer

FILE = "confusion.npz"


class Confusion(NamedTuple):
    """The predictions for a task's test examples, whose task was known.

    Attributes:
        name: Of the task.
        classes: The task's classes, as the data set numbers them.
        counts: int64 (classes, classes): examples of a row's class that were taken for a column's.
    """

    name: str
    classes: Sequence[int]
    counts: npt.NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """In percent."""
        return accuracy_of(self.counts)

    @property
    def by_class(self) -> npt.NDArray[np.float64]:
        """Accuracy in percent of each class; NaN of one without examples."""
        totals = self.counts.sum(1)
        shares = np.full(len(totals), np.nan)
        return np.divide(100.0 * self.counts.diagonal(), totals, out=shares, where=totals > 0)


def _learned(trainer: Trainer) -> list[int]:
    """Return the learned tasks that the trainer has the examples of."""
    tasks, learned = trainer.tasks, trainer.learner.learned
    return [task for task in dict.fromkeys(trainer.columns) if task in learned and task in tasks]


def is_written(folder: Path, trainer: Trainer) -> bool:
    """Return whether the file there has the accuracies that the trainer has now."""
    last = dict(zip(trainer.columns, trainer.accuracy[trainer.tasks_done], strict=True))
    tasks = trainer.tasks
    expected = {tasks[task].name: float(last[task]) for task in _learned(trainer)}
    try:
        return {each.name: each.accuracy for each in read(folder / FILE)} == expected
    except DataError:
        return not expected


def confusions(trainer: Trainer) -> list[Confusion]:
    """Return the predictions for the learned tasks; those that it has not yet are made now.

    Several processes call it together. The global random state stays as it is.
    """
    device = next(trainer.learner.parameters()).device
    tasks, measured, found = trainer.tasks, trainer.confusions, []
    with torch.random.fork_rng([device] if device.type == "cuda" else ()):
        for task_id in _learned(trainer):
            task, counts = tasks[task_id], measured.get(task_id)
            counts = trainer.confusion(task_id) if counts is None else counts
            found.append(Confusion(task.name, tuple(task.classes), counts))
    return found


def write(folder: Path, found: Sequence[Confusion]) -> None:
    """Write ``confusion.npz``, ``confusion.csv`` and ``classes.csv``.

    The npz holds ``task_names``, and ``counts-i`` and ``classes-i`` of the i-th task. confusion.csv
    has a row for each pair of classes that occurs, classes.csv one for each class.
    """
    arrays: dict[str, Any] = {"task_names": np.array([each.name for each in found], dtype=np.str_)}
    pairs, rows = io.StringIO(), io.StringIO()
    of_pairs, of_rows = (csv.writer(file, lineterminator="\n") for file in (pairs, rows))
    of_pairs.writerow(["task", "class", "predicted", "count"])
    of_rows.writerow(["task", "class", "examples", "correct", "accuracy"])
    for place, each in enumerate(found):
        arrays[f"counts-{place}"] = each.counts
        arrays[f"classes-{place}"] = np.array(each.classes, dtype=np.int64)
        for i, j in np.argwhere(each.counts):
            row = each.name, each.classes[i], each.classes[j], each.counts[i, j]
            of_pairs.writerow(row)
        shares = each.by_class
        for i, label in enumerate(each.classes):
            share = "" if np.isnan(shares[i]) else f"{shares[i]:.2f}"
            of_rows.writerow([each.name, label, each.counts[i].sum(), each.counts[i, i], share])
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_text_atomic(folder / "confusion.csv", pairs.getvalue())
    write_text_atomic(folder / "classes.csv", rows.getvalue())
    write_bytes_atomic(folder / FILE, buffer.getvalue())


def read(path: Path) -> list[Confusion]:
    """Return what :func:`write` wrote into an npz.

    Raises:
        DataError: There is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [
                Confusion(name, arrays[f"classes-{i}"].tolist(), arrays[f"counts-{i}"])
                for i, name in enumerate(arrays["task_names"].tolist())
            ]
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as a confusion matrix ({error}); give that of a run"
        ) from error
