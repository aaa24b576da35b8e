"""Bars in SVG."""

from __future__ import annotations

import numpy as np

from hypermask_fast.figures.charts import Bars
from hypermask_fast.figures.scales import number as tick_number
from hypermask_fast.figures.scales import text_width, ticks
from hypermask_fast.figures.svg import Drawing

_RIGHT = 56.0
_BAR = 9.0


def bars(chart: Bars) -> Drawing:
    """Return the drawing of horizontal bars in groups."""
    drawing = Drawing(chart.title)
    left = max((text_width(label, 12) for label in chart.labels), default=0.0) + 18
    right = drawing.width - _RIGHT
    values = np.concatenate([*chart.series.values(), np.zeros(1)])
    high = chart.high if chart.high is not None else float(np.nanmax(values)) * 1.05 or 1.0
    x, y = left, 14.0
    for place, name in enumerate(chart.series):
        drawing.rect(x, y - 9, 12, 10, f"var(--s{place % 7})")
        drawing.text(x + 17, y, name)
        x += 17 + text_width(name, 12) + 22
    top = 30.0
    thick = _BAR if len(chart.groups) <= 24 else 5.0
    step = thick * len(chart.series) + (9 if len(chart.groups) <= 24 else 6)
    bottom = top + step * len(chart.groups)

    def x_of(value: float) -> float:
        return left + value / high * (right - left)

    for value in ticks(0.0, high):
        drawing.line(x_of(value), top - 4, x_of(value), bottom)
        drawing.text(x_of(value), bottom + 16, tick_number(value), anchor="middle", muted=True)
    for i, label in enumerate(chart.labels):
        begin = top + i * step
        middle = begin + thick * len(chart.series) / 2
        drawing.text(left - 8, middle + 4, label, anchor="end")
        for place, (name, column) in enumerate(chart.series.items()):
            if np.isnan(column[i]):
                continue
            at, end = begin + place * thick, x_of(float(column[i]))
            title = f"{chart.groups[i]}, {name}: {column[i]:.2f}"
            color = f"var(--s{place % 7})"
            drawing.rect(left, at, max(end - left, 0.5), thick - 1.5, color, title)
            if thick == _BAR:
                drawing.text(end + 4, at + 8, f"{column[i]:.1f}", size=10, muted=True)
    drawing.line(left, top - 4, left, bottom, "axis")
    middle = (left + right) / 2
    drawing.text(middle, bottom + 36, chart.value_title, anchor="middle", muted=True)
    drawing.height = bottom + 44
    return drawing
