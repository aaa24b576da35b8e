"""Losses over the steps of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hypermask_fast.figures.charts import Array, Lines, Series
from hypermask_fast.figures.labels import shortened

MOST_POINTS = 1200
# What a row of the log has beside losses.
_OTHER = ("task", "task_name", "step", "lr", "time", "steps_per_second")


def _steps(rows: Sequence[Mapping[str, Any]]) -> tuple[Array, list[tuple[float, str]]]:
    """Return the step of each row, counted over all tasks, and where tasks begin."""
    begin, last, task = 0, 0, None
    steps, marks = [], []
    for row in rows:
        if row["task"] != task:
            begin, task = begin + last, row["task"]
            marks.append((float(begin), str(row.get("task_name", row["task"]))))
        last = int(row["step"])
        steps.append(begin + last)
    return np.array(steps, dtype=np.float64), marks


def _thinned(count: int) -> Array:
    """Return the places of at most `MOST_POINTS` of some rows, evenly, with the last one."""
    every = -(-count // MOST_POINTS)
    return np.unique(np.append(np.arange(0, count, every), count - 1))


def losses(rows: Sequence[Mapping[str, Any]]) -> Lines:
    """Return the figure of a run's losses.

    Args:
        rows: Of its log, those of steps.
    """
    steps, marks = _steps(rows)
    kept = _thinned(len(rows))
    names = [name for name in dict.fromkeys(k for row in rows for k in row) if name not in _OTHER]
    series = []
    for name in names:
        values = np.array([float(row.get(name, np.nan)) for row in rows])
        series.append(Series(name.replace("_", " "), steps[kept], values[kept]))
    tasks = shortened([name for _, name in marks])
    return Lines(
        name="losses",
        title="Losses",
        note="Terms are without their factors; a term of exactly 0 has no place on the axis."
        + _left_out(len(rows), len(kept)),
        series=series,
        x_title="step",
        y_title="loss",
        log_y=True,
        marks=[(place, label) for (place, _), label in zip(marks, tasks, strict=True)],
    )


def _left_out(count: int, kept: int) -> str:
    return f" {kept} of {count} rows are drawn." if kept < count else ""


def compared(groups: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> Lines:
    """Return the figure of the tasks' losses of several runs.

    Args:
        groups: By label, the rows of one run, or of one for each seed: their mean is drawn where
            all have a row, with a band from the least to the largest.
    """
    series = []
    for label, runs in groups.items():
        by_step = [
            dict(zip(_steps(rows)[0].tolist(), (r["task_loss"] for r in rows), strict=True))
            for rows in runs
        ]
        common = sorted(set.intersection(*(set(each) for each in by_step)))
        if not common:
            continue
        values = np.array([[float(each[step]) for step in common] for each in by_step])
        kept = _thinned(len(common))
        values, x = values[:, kept], np.array(common)[kept]
        band = (values.min(0), values.max(0)) if len(runs) > 1 else (None, None)
        series.append(Series(label, x, values.mean(0), *band))
    return Lines(
        name="losses",
        title="Loss of the current task",
        series=series,
        x_title="step",
        y_title="task loss",
        log_y=True,
    )
