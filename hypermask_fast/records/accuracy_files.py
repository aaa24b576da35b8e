"""Files and tables of a run's accuracy matrix, whose layout `metrics` gives."""

from __future__ import annotations

import csv
import io
import math
import textwrap
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hypermask_fast.console.columns import aligned
from hypermask_fast.console.terminal import shortened as cut
from hypermask_fast.console.words import percent
from hypermask_fast.errors import DataError
from hypermask_fast.figures.accuracy import matrix_of
from hypermask_fast.figures.draw import drawing
from hypermask_fast.figures.labels import shortened
from hypermask_fast.files.atomic import write_bytes_atomic, write_text_atomic
from hypermask_fast.metrics.continual import summary
from hypermask_fast.settings.changes import described

_Array = NDArray[np.float64]
_BEFORE = "before training"
_MAX_NAME = 16
_MAX_CELLS_WITH_VALUES = 20
_SUMMARY_LABELS = {
    "acc_final": "ACC",
    "aia": "AIA",
    "learning_acc": "learning",
    "bwt_gem": "BWT",
    "fwt_gem": "FWT",
    "forgetting_max": "forgetting",
}


def _table(accuracy: ArrayLike, task_names: Sequence[str]) -> tuple[_Array, list[str], list[str]]:
    """Return R as float64, the labels of its rows and of its columns."""
    matrix = np.asarray(accuracy, dtype=np.float64)
    columns = [str(name) for name in task_names]
    if matrix.shape != (len(columns) + 1, len(columns)) or not columns:
        raise ValueError(
            f"accuracy has the shape {matrix.shape} for {len(columns)} task names; give (T + 1, T) "
            "and T names"
        )
    return matrix, [_BEFORE, *columns], columns


def _measured_rows(matrix: _Array) -> list[int]:
    return np.flatnonzero(~np.isnan(matrix).all(axis=1)).tolist()


def _cell(value: float, digits: int = 2) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _csv_text(matrix: _Array, rows: Sequence[str], columns: Sequence[str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["after_task", *columns])
    for i in _measured_rows(matrix):
        writer.writerow([rows[i], *map(_cell, matrix[i])])
    return buffer.getvalue()


def read_accuracy(path: str | Path) -> tuple[_Array, list[str]]:
    """Return R (T + 1, T) in percent and the T task names of an ``accuracy.npz``.

    Raises:
        DataError: The file is missing or is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            matrix, _, names = _table(data["accuracy"], data["task_names"].tolist())
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as an accuracy matrix ({error}); give the accuracy.npz of a run"
        ) from error
    return matrix, names


def format_matrix(
    accuracy: ArrayLike, task_names: Sequence[str], *, width: int | None = None
) -> str:
    """Return R as a table for the terminal, and a line with its metrics.

    The columns are numbered like the rows. With more than 20 tasks there is a row for each task
    instead: its accuracy before it was learned, just after, and now.

    Args:
        accuracy: R, (T + 1, T), percent; rows without a value are left out.
        task_names: Names of the T tasks; long ones are shortened to what tells them
            apart.
        width: Columns that there are. A table that takes more has a row for each task, as that of
            more than 20 tasks. Default None: as many as it takes.

    Raises:
        ValueError: The shape and the names do not fit.
    """
    matrix, _, columns = _table(accuracy, task_names)
    names = [f"{i} {name}" for i, name in enumerate(shortened(columns, _MAX_NAME), start=1)]
    measured = _measured_rows(matrix)
    needed = max(map(len, [_BEFORE, *names])) + 8 * len(columns)
    if len(columns) <= _MAX_CELLS_WITH_VALUES and (width is None or needed <= width):
        labels = [_BEFORE, *names]
        table = [["after task", *(str(i) for i in range(1, len(columns) + 1))]]
        table += [[labels[i], *(_cell(value) or "-" for value in matrix[i])] for i in measured]
    else:
        last = max(measured, default=0)
        table = [["task", "before", "learned", "now"]]
        for j in range(last):
            values = matrix[j, j], matrix[j + 1, j], matrix[last, j]
            name = names[j] if width is None else cut(names[j], max(6, width - 26))
            table.append([name, *(_cell(value) or "-" for value in values)])
    metrics = summary(matrix)
    parts = [
        f"{label} {_cell(metrics[name])}"
        for name, label in _SUMMARY_LABELS.items()
        if not math.isnan(metrics[name])
    ]
    figures = f"{', '.join(parts)} (percent)" if parts else ""
    wrapped = [figures] if figures and width is None else textwrap.wrap(figures, width or 80)
    return "\n".join([*aligned(table), *wrapped])


def format_changes(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each time that something was changed within a run.

    Args:
        changes: For each time the step and, by name, the values before and after of ``settings`` or
            of the ``environment``.
    """
    return [
        f"changed after step {change['step']}, {kind}: {described(change[kind])}"
        for change in changes
        for kind in ("settings", "environment")
        if kind in change
    ]


def write_heatmap(path: str | Path, accuracy: ArrayLike, task_names: Sequence[str]) -> None:
    """Draw R as an SVG: a row after each task, a column for each task, blank where not measured.

    Rows without a value are left out.

    Args:
        path: The SVG file.
        accuracy: R, (T + 1, T), percent.
        task_names: Names of the T tasks.

    Raises:
        ValueError: The shape and the names do not fit.
    """
    matrix, _, columns = _table(accuracy, task_names)
    chart = matrix_of(matrix, columns)
    final = summary(matrix)
    shown = [("ACC", final["acc_final"]), ("BWT", final["bwt_gem"])]
    known = [(name, value) for name, value in shown if not math.isnan(value)]
    title = "   ".join(f"{name} {percent(value)} %" for name, value in known)
    write_text_atomic(Path(path), drawing(replace(chart, title=title)).markup(alone=True))


def write_accuracy(
    folder: str | Path, accuracy: ArrayLike, task_names: Sequence[str]
) -> tuple[Path, Path]:
    """Write R to ``accuracy.npz`` and ``accuracy.csv`` in ``folder``, each atomically.

    The npz holds ``accuracy`` (T + 1, T) float64 and ``task_names`` (T,) and loads without pickle.
    The csv has two decimals, and leaves out rows without a value.

    Args:
        folder: An existing folder.
        accuracy: R, (T + 1, T), percent.
        task_names: Names of the T tasks.

    Returns:
        The paths of the npz and of the csv.

    Raises:
        ValueError: The shape and the names do not fit.
    """
    matrix, rows, columns = _table(accuracy, task_names)
    npz_path, csv_path = Path(folder) / "accuracy.npz", Path(folder) / "accuracy.csv"
    buffer = io.BytesIO()
    np.savez(buffer, accuracy=matrix, task_names=np.array(columns, dtype=np.str_))
    write_bytes_atomic(npz_path, buffer.getvalue())
    write_text_atomic(csv_path, _csv_text(matrix, rows, columns))
    return npz_path, csv_path
