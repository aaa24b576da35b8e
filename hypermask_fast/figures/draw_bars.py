"""Bars and points in SVG."""

from __future__ import annotations

import numpy as np

from hypermask_fast.figures.charts import Bars, Points
from hypermask_fast.figures.colors import shade
from hypermask_fast.figures.scales import number as tick_number
from hypermask_fast.figures.scales import padded, text_width, ticks
from hypermask_fast.figures.svg import Drawing

_RIGHT = 56.0
_BAR = 9.0
Box = tuple[float, float, float, float]


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


def points(chart: Points) -> Drawing:
    """Return the drawing of points; a name that would cover another is left to the pointer."""
    drawing = Drawing(chart.title)
    left, right, top, bottom = 62.0, drawing.width - 18.0, 8.0, 348.0
    x_low, x_high = padded(float(chart.x.min()), float(chart.x.max()), 0.1)
    y_low, y_high = padded(float(chart.y.min()), float(chart.y.max()), 0.1)

    def x_of(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * (right - left)

    def y_of(value: float) -> float:
        return bottom - (value - y_low) / (y_high - y_low) * (bottom - top)

    for value in ticks(x_low, x_high):
        drawing.line(x_of(value), top, x_of(value), bottom)
        drawing.text(x_of(value), bottom + 18, tick_number(value), anchor="middle", muted=True)
    for value in ticks(y_low, y_high):
        drawing.line(left, y_of(value), right, y_of(value))
        drawing.text(left - 8, y_of(value) + 4, tick_number(value), anchor="end", muted=True)
    drawing.line(left, bottom, right, bottom, "axis")
    drawing.line(left, top, left, bottom, "axis")
    places = [(x_of(x), y_of(y)) for x, y in zip(chart.x, chart.y, strict=True)]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    last = max(len(places) - 1, 1)
    for i, (x, y) in enumerate(places):
        drawing.circle(x, y, 5, shade(i / last), chart.names[i], "shade")
    for i, (x, y) in enumerate(places):
        wide = text_width(chart.labels[i], 12)
        beside = (x + 8, y + 4, "start"), (x - 8, y + 4, "end"), (x, y - 9, "middle")
        for at_x, at_y, anchor in (*beside, (x, y + 17, "middle")):
            begin = at_x - {"start": 0.0, "end": wide, "middle": wide / 2}[anchor]
            box = begin, at_y - 10, begin + wide, at_y + 3
            inside = begin >= left and begin + wide <= right and box[1] >= 0
            if inside and not any(_overlap(box, other) for other in taken):
                drawing.text(at_x, at_y, chart.labels[i], anchor=anchor)
                taken.append(box)
                break
    drawing.text((left + right) / 2, bottom + 38, chart.x_title, anchor="middle", muted=True)
    middle = (top + bottom) / 2
    drawing.text(12, middle, chart.y_title, anchor="middle", turn=-90, muted=True)
    drawing.height = bottom + 46
    return drawing


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
