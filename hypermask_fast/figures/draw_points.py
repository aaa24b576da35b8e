"""Points in SVG."""

from __future__ import annotations

import math

import numpy as np

from hypermask_fast.figures.charts import Points
from hypermask_fast.figures.colors import shade
from hypermask_fast.figures.scales import log_ticks, padded, text_width, ticks
from hypermask_fast.figures.scales import number as tick_number
from hypermask_fast.figures.svg import Drawing, number

Box = tuple[float, float, float, float]


def points(chart: Points) -> Drawing:
    """Return the drawing of points; a name that would cover another is left to the pointer."""
    drawing = Drawing(chart.title)
    left, right, top, bottom = 62.0, drawing.width - 18.0, 8.0, 348.0
    scale = math.log10 if chart.log_x else float
    x_low, x_high = padded(scale(chart.x.min()), scale(chart.x.max()), 0.1)
    bars = np.empty((2, 0)) if chart.bars is None else chart.bars
    ends = np.append(chart.y, bars[~np.isnan(bars)])
    y_low, y_high = padded(float(ends.min()), float(ends.max()), 0.1)

    def x_of(value: float) -> float:
        return left + (scale(value) - x_low) / (x_high - x_low) * (right - left)

    def y_of(value: float) -> float:
        return bottom - (value - y_low) / (y_high - y_low) * (bottom - top)

    for value in log_ticks(10**x_low, 10**x_high) if chart.log_x else ticks(x_low, x_high):
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
    if len(chart.joined) > 1:
        steps = (f"{number(places[i][0])} {number(places[i][1])}" for i in chart.joined)
        drawing.path("M" + "L".join(steps), kind="axis", dash="5 3")
    for (x, _), low, high in zip(places, *bars, strict=bars.size > 0):
        if high > low:
            drawing.line(x, y_of(low), x, y_of(high), "axis")
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
