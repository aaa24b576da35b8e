"""Accuracy by class, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hypermask_fast.figures.charts import Heat
from hypermask_fast.figures.labels import shortened

MOST_CLASSES = 60


class Counts(NamedTuple):
    """The predictions for a task.

    Attributes:
        name: Of the task.
        classes: Its classes, as the data set numbers them.
        counts: (classes, classes): examples of a row's class that were taken for a column's.
    """

    name: str
    classes: Sequence[int]
    counts: npt.NDArray[np.int64]


def by_class(tasks: Sequence[Counts]) -> Heat:
    """Return the figure of each class's accuracy, in percent, by task."""
    shared = {tuple(each.classes) for each in tasks}
    width = max(len(each.classes) for each in tasks)
    values = np.full((len(tasks), width), np.nan)
    for i, each in enumerate(tasks):
        totals = each.counts.sum(1)
        for j, total in enumerate(totals):
            values[i, j] = 100.0 * each.counts[j, j] / total if total else np.nan
    same = len(shared) == 1
    columns = [str(label) for label in (next(iter(shared)) if same else range(width))]
    names = [each.name for each in tasks]
    return Heat(
        name="accuracy-by-class",
        title="Accuracy by class, at the end",
        note="The task of each example was known.",
        values=values,
        row_names=names,
        column_names=columns,
        row_labels=shortened(names),
        column_labels=columns,
        row_title="task",
        column_title="class" if same else "class of the task",
        value_title="accuracy (%)",
    )


def confusions(tasks: Sequence[Counts]) -> Heat | None:
    """Return the figure of the shares of each class's examples that were taken for others.

    Where tasks have classes in common, of all of them together; blank where no task has both. More
    than 60 classes are those of all tasks by their place in the task.

    Returns:
        None where these are more than 60 too, or tasks have more classes than others.
    """
    if len({label for each in tasks for label in each.classes}) > MOST_CLASSES:
        if len({len(each.classes) for each in tasks}) > 1:
            return None
        tasks = [each._replace(classes=range(len(each.classes))) for each in tasks]
    labels = sorted({label for each in tasks for label in each.classes})
    if len(labels) > MOST_CLASSES:
        return None
    place = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)))
    seen = np.zeros(counts.shape, dtype=bool)
    for each in tasks:
        where = np.ix_(*[[place[label] for label in each.classes]] * 2)
        counts[where] += each.counts
        seen[where] = True
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(100.0 * counts, totals, out=np.zeros_like(counts), where=totals > 0)
    names = [str(label) for label in labels]
    return Heat(
        name="confusion",
        title="Which class is taken for which, at the end",
        note="Shares of a row's examples, within their tasks, where a label is one class in all of "
        "them; blank: no task has both classes.",
        values=np.where(seen, shares, np.nan),
        row_names=names,
        column_names=names,
        row_labels=names,
        column_labels=names,
        row_title="class",
        column_title="taken for",
        value_title="share (%)",
    )
