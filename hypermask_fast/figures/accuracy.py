"""Accuracies over the tasks learned: the matrix, a curve for each task, and their means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hypermask_fast.figures.charts import Array, Heat, Lines, Series
from hypermask_fast.figures.labels import shortened
from hypermask_fast.metrics.continual import acc_final, forgetting_max, learned

BEFORE = "before training"


def matrix_of(accuracy: Array, names: Sequence[str], *, name: str = "accuracy-matrix") -> Heat:
    """Return the figure of an accuracy matrix, with the rows that were measured.

    Args:
        accuracy: R (T + 1, T), percent.
        names: Of the tasks.
        name: Of the files.
    """
    measured = np.flatnonzero(~np.isnan(accuracy).all(axis=1))
    rows, labels = [BEFORE, *names], ["untrained", *shortened(names)]
    return Heat(
        name=name,
        title="Accuracy on each task after each task",
        note="A row after each task that was learned; blank where nothing was measured.",
        values=accuracy[measured],
        row_names=[rows[i] for i in measured],
        column_names=list(names),
        row_labels=[labels[i] for i in measured],
        column_labels=shortened(names),
        row_title="after training on",
        column_title="accuracy on task",
        value_title="accuracy (%)",
    )


def curves(accuracy: Array, names: Sequence[str]) -> Lines:
    """Return the figure of each task's accuracy from when it was learned on, and of their mean.

    Args:
        accuracy: R (T + 1, T), percent.
        names: Of the tasks.
    """
    _, count = learned(accuracy)
    x = np.arange(1, count + 1, dtype=np.float64)
    series = [
        Series(names[j], x[j:], accuracy[j + 1 : count + 1, j], shade=j / max(count - 1, 1))
        for j in range(count)
    ]
    series.append(Series("mean of the learned", x, so_far(accuracy), strong=True))
    return Lines(
        name="forgetting",
        title="Accuracy of each task while later ones are learned",
        note="A line begins where its task is learned; where it falls the task is forgotten.",
        series=series,
        x_title="tasks learned",
        y_title="accuracy (%)",
        x_labels=shortened(names)[:count],
    )


def so_far(accuracy: Array) -> Array:
    """Return the mean accuracy of the tasks learned so far after each of them, (t,)."""
    return _after_each(acc_final, accuracy)


def forgotten(accuracy: Array) -> Array:
    """Return the mean loss since the best time of the tasks learned before, after each task, (t,).

    The first value is 0, for there was nothing to forget.
    """
    values = _after_each(forgetting_max, accuracy)
    values[:1] = 0.0
    return values


def _after_each(metric: Callable[[Array], float], accuracy: Array) -> Array:
    _, count = learned(accuracy)
    return np.array([metric(accuracy[: t + 1, :t]) for t in range(1, count + 1)])


def compared(groups: Mapping[str, Sequence[Array]]) -> list[Lines]:
    """Return figures of the means of several runs: accuracy so far, and what was forgotten.

    Args:
        groups: By label, the accuracy matrices of one run, or of one for each seed: their mean is
            drawn, with a band from the least to the largest.
    """
    note = _BAND if any(len(each) > 1 for each in groups.values()) else ""
    return [
        Lines(
            name="accuracy-so-far",
            title="Mean accuracy of the tasks learned so far",
            note=note,
            series=[_band(label, [so_far(r) for r in each]) for label, each in groups.items()],
            x_title="tasks learned",
            y_title="accuracy (%)",
        ),
        Lines(
            name="forgetting-compared",
            title="Mean loss since the best time of each task",
            note=note,
            series=[_band(label, [forgotten(r) for r in each]) for label, each in groups.items()],
            x_title="tasks learned",
            y_title="forgetting (percent points)",
        ),
    ]


_BAND = "Lines are means over seeds; bands reach from the least to the largest."


def _band(label: str, values: Sequence[Array]) -> Series:
    count = min(len(each) for each in values)
    stacked = np.stack([each[:count] for each in values])
    x = np.arange(1, count + 1, dtype=np.float64)
    band = (stacked.min(0), stacked.max(0)) if len(values) > 1 else (None, None)
    return Series(label, x, stacked.mean(0), *band)
