"""What a figure shows, as data: lines, a heat map, bars or points, and their rows in a csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Row = Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What all figures have.

    Attributes:
        name: Of the files, without an ending.
        title: Above the figure.
        note: What is to be known of it, in a sentence or two; "" for nothing.
    """

    name: str
    title: str
    note: str = ""

    def rows(self) -> list[Row]:
        """Return the data that are drawn as the rows of a table, of which the first has names."""
        raise NotImplementedError

    def csv_text(self) -> str:
        """Return the rows as csv; numbers have all their digits, and what is missing is empty."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows([_cell(value) for value in row] for row in self.rows())
        return buffer.getvalue()


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: In the legend and the csv.
        x, y: Its points; NaN interrupts it.
        low, high: A band around it, of as many points; None: no band.
        shade: A place in 0 to 1 on a scale of colours, of a line among many in an order; None: a
            colour of its own.
        strong: Drawn thick, over the others.
    """

    name: str
    x: Array
    y: Array
    low: Array | None = None
    high: Array | None = None
    shade: float | None = None
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Lines(Chart):
    """Lines over one axis.

    Attributes:
        series: The lines.
        x_title, y_title: Of the axes.
        x_labels: Names of the places 1, 2, ... of the x axis; none: numbers.
        log_y: The y axis is logarithmic; what is not positive is not drawn.
        y_range: Ends of the y axis; None: those of the data.
        marks: Places on the x axis with a line, and its name.
    """

    series: Sequence[Series]
    x_title: str
    y_title: str
    x_labels: Sequence[str] = ()
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    marks: Sequence[tuple[float, str]] = ()

    def rows(self) -> list[Row]:
        has_band = any(each.low is not None for each in self.series)
        found: list[Row] = [
            ["series", self.x_title, self.y_title, *(["low", "high"] if has_band else [])]
        ]
        for each in self.series:
            nan = np.full(len(each.x), np.nan)
            low = nan if each.low is None else each.low
            high = nan if each.high is None else each.high
            for x, y, a, b in zip(each.x, each.y, low, high, strict=True):
                place = int(x) if float(x).is_integer() else float(x)
                band = [float(a), float(b)] if has_band else []
                found.append([each.name, place, float(y), *band])
        return found


@dataclass(frozen=True, kw_only=True)
class Heat(Chart):
    """A heat map.

    Attributes:
        values: (rows, columns); NaN is blank.
        row_names, column_names: Whole names, which stand in the csv.
        row_labels, column_labels: Short ones, which are drawn.
        row_title, column_title: Of the axes.
        value_title: Of the colours.
        low, high: Ends of the scale of colours.
        digits: Of the numbers in the cells.
    """

    values: Array
    row_names: Sequence[str]
    column_names: Sequence[str]
    row_labels: Sequence[str]
    column_labels: Sequence[str]
    row_title: str
    column_title: str
    value_title: str
    low: float = 0.0
    high: float = 100.0
    digits: int = 1

    def rows(self) -> list[Row]:
        head = [self.row_title, *self.column_names]
        values = self.values.tolist()
        return [head, *([name, *row] for name, row in zip(self.row_names, values, strict=True))]


@dataclass(frozen=True, kw_only=True)
class Bars(Chart):
    """Horizontal bars in groups.

    Attributes:
        groups: Whole names of the groups, from the top.
        labels: Short ones, which are drawn.
        series: By name, a value for each group; NaN has no bar.
        value_title: Of the axis.
        high: The end of the axis, which begins at 0; None: that of the data.
    """

    groups: Sequence[str]
    labels: Sequence[str]
    series: dict[str, Array] = field(default_factory=dict)
    group_title: str = "group"
    value_title: str = ""
    high: float | None = None

    def rows(self) -> list[Row]:
        columns = [each.tolist() for each in self.series.values()]
        found: list[Row] = [[self.group_title, *self.series]]
        return [*found, *([name, *row] for name, *row in zip(self.groups, *columns, strict=True))]


@dataclass(frozen=True, kw_only=True)
class Points(Chart):
    """Points with names.

    Attributes:
        names: Whole names.
        labels: Short ones, which are drawn.
        x, y: The places.
        x_title, y_title: Of the axes.
        bars: (2, n): from where and to where a bar goes at each point, NaN for none; None: no bars.
        joined: Places of the points that a line joins, in its order.
        log_x: The x axis is logarithmic; all ``x`` are positive.
    """

    names: Sequence[str]
    labels: Sequence[str]
    x: Array
    y: Array
    x_title: str
    y_title: str
    bars: Array | None = None
    joined: Sequence[int] = ()
    log_x: bool = False

    def rows(self) -> list[Row]:
        columns: dict[str, Sequence[Any]] = {
            "name": self.names,
            self.x_title: self.x.tolist(),
            self.y_title: self.y.tolist(),
        }
        if self.bars is not None:
            columns |= {"low": self.bars[0].tolist(), "high": self.bars[1].tolist()}
        if self.joined:
            columns["joined"] = [int(i in self.joined) for i in range(len(self.names))]
        return [list(columns), *([*row] for row in zip(*columns.values(), strict=True))]
