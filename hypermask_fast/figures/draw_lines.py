"""Lines in SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from hypermask_fast.figures.charts import Array, Lines, Series
from hypermask_fast.figures.colors import LIGHT, shade
from hypermask_fast.figures.labels import shortened
from hypermask_fast.figures.scales import log_ticks, padded, text_width, ticks
from hypermask_fast.figures.scales import number as tick_number
from hypermask_fast.figures.svg import WIDE, WIDTH, Drawing, number

_LEFT, _RIGHT, _HEIGHT = 62.0, 18.0, 250.0
_MOST_NAMES = 7
_MOST_BESIDE = 6
_DASHES = ("", "7 3", "2 3", "9 3 2 3")

Place = Callable[[float], float]


def style_of(place: int) -> tuple[int, str]:
    """Return the number of the colour and the dashes of a series by its place."""
    return place % len(LIGHT), _DASHES[place // len(LIGHT) % len(_DASHES)]


def lines(chart: Lines) -> Drawing:
    """Return the drawing of lines."""
    drawing = Drawing(chart.title, WIDE if len(chart.marks) > _MOST_BESIDE else WIDTH)
    top = _legend(drawing, chart.series) + (22 if chart.marks else 10)
    bottom = top + _HEIGHT
    right = drawing.width - _RIGHT
    y_low, y_high = y_range(chart)
    x_low, x_high = x_range(chart)

    def x_of(value: float) -> float:
        return _LEFT + (value - x_low) / (x_high - x_low) * (right - _LEFT)

    def y_of(value: float) -> float:
        if chart.log_y:
            share = math.log(value / y_low) / math.log(y_high / y_low)
        else:
            share = (value - y_low) / (y_high - y_low)
        return bottom - share * _HEIGHT

    for value in log_ticks(y_low, y_high) if chart.log_y else ticks(y_low, y_high):
        y = y_of(value)
        drawing.line(_LEFT, y, right, y)
        drawing.text(_LEFT - 8, y + 4, tick_number(value), anchor="end", muted=True)
    end = _x_axis(drawing, chart, x_of, (x_low, x_high), bottom)
    _marks(drawing, chart, x_of, top, bottom)
    drawing.line(_LEFT, bottom, right, bottom, "axis")
    middle = top + _HEIGHT / 2
    drawing.text(12, middle, chart.y_title, anchor="middle", turn=-90, muted=True)
    for place, series in enumerate(chart.series):
        ink = _ink(series, place, has_few(chart.series))
        _one(drawing, series, ink, x_of, y_of, chart.log_y)
    drawing.height = end + 8
    return drawing


def y_range(chart: Lines) -> tuple[float, float]:
    """Return the ends of the y axis: those given, or those of the data with some room."""
    if chart.y_range is not None:
        return chart.y_range
    found = [a for each in chart.series for a in (each.y, each.low, each.high) if a is not None]
    values = np.concatenate([*found, np.zeros(0)])
    values = values[np.isfinite(values) & ((values > 0) | (not chart.log_y))]
    if not len(values):
        return (0.1, 1.0) if chart.log_y else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if chart.log_y:
        room = max((high / low) ** 0.04, 1.15)
        return low / room, high * room
    # A share of what is good or bad never leaves 0 to 100.
    begin, end = padded(low, high)
    return max(begin, 0.0) if low >= 0 else begin, min(end, 101.0) if high <= 100 else end


def x_range(chart: Lines) -> tuple[float, float]:
    """Return the ends of the x axis."""
    values = np.concatenate([*(each.x for each in chart.series), np.zeros(0)])
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    low = min([low, *(at for at, _ in chart.marks)])
    return (low, high) if high > low else padded(low, high)


def _x_axis(
    drawing: Drawing, chart: Lines, x_of: Place, ends: tuple[float, float], bottom: float
) -> float:
    """Write ticks and title of the x axis; return where they end."""
    if chart.x_labels:
        count = len(chart.x_labels)
        widest = max(text_width(label, 12) for label in chart.x_labels)
        step = x_of(2) - x_of(1) if count > 1 else drawing.width
        if widest + 8 <= step:
            for place, label in enumerate(chart.x_labels, start=1):
                anchor = (
                    "end" if place == count > 1 else "start" if place == 1 < count else "middle"
                )
                x = x_of(place) + (14 if anchor == "end" else -14 if anchor == "start" else 0)
                drawing.text(x, bottom + 18, label, anchor=anchor, muted=True)
            drawing.text(_center(drawing), bottom + 38, chart.x_title, anchor="middle", muted=True)
            return bottom + 42
    found = ticks(*ends, 9)
    if chart.x_labels or all(float(v).is_integer() for each in chart.series for v in each.x):
        found = [value for value in found if float(value).is_integer()]
    for value in found:
        anchor = "end" if x_of(value) > drawing.width - 30 else "middle"
        drawing.text(x_of(value), bottom + 18, tick_number(value), anchor=anchor, muted=True)
        drawing.line(x_of(value), bottom, x_of(value), bottom + 4, "axis")
    drawing.text(_center(drawing), bottom + 38, chart.x_title, anchor="middle", muted=True)
    return bottom + 42


def _center(drawing: Drawing) -> float:
    return (_LEFT + drawing.width - _RIGHT) / 2


def _marks(drawing: Drawing, chart: Lines, x_of: Place, top: float, bottom: float) -> None:
    """Draw lines where tasks begin, and their names where there is room."""
    free = -math.inf
    places = [x_of(at) for at, _ in chart.marks] + [drawing.width - _RIGHT]
    for (_, label), x, following in zip(chart.marks, places, places[1:], strict=False):
        drawing.line(x, top, x, bottom)
        wide = text_width(label, 11)
        has_room = wide + 6 <= following - x or len(chart.marks) <= 12
        if x >= free and has_room and x + 4 + wide <= drawing.width:
            drawing.text(x + 2, top - 4, label, size=11, muted=True)
            free = x + wide + 10


def has_few(series: Sequence[Series]) -> bool:
    """Return whether lines in an order are so few that each gets a colour and a name."""
    return sum(each.shade is not None for each in series) <= _MOST_NAMES


def _ink(series: Series, place: int, few: bool) -> tuple[str, str, str]:
    """Return the classes, the colour and the dashes of a line."""
    if series.strong:
        return "line strong", "", ""
    if series.shade is not None and not few:
        return "line shade", shade(series.shade), ""
    color, dash = style_of(place)
    return "line", f"var(--s{color})", dash


def _one(
    drawing: Drawing,
    series: Series,
    ink: tuple[str, str, str],
    x_of: Place,
    y_of: Place,
    log_y: bool,
) -> None:
    kind, stroke, dash = ink
    if series.low is not None and series.high is not None:
        _band(drawing, series.x, series.low, series.high, stroke, x_of, y_of, log_y)
    pieces, pen = [], "M"
    for x, y in zip(series.x, series.y, strict=True):
        if not math.isfinite(y) or (log_y and y <= 0):
            pen = "M"
            continue
        pieces.append(f"{pen}{number(x_of(x))} {number(y_of(y))}")
        pen = "L"
    if pieces:
        drawing.path("".join(pieces), kind=kind, stroke=stroke, title=series.name, dash=dash)
    if len(series.x) <= 30 and not series.strong:
        for x, y in zip(series.x, series.y, strict=True):
            if math.isfinite(y) and not (log_y and y <= 0):
                title = f"{series.name}: {y:.4g}"
                drawing.circle(x_of(x), y_of(y), 2.6, stroke, title, kind.removeprefix("line "))


def _band(
    drawing: Drawing,
    x: Array,
    low: Array,
    high: Array,
    fill: str,
    x_of: Place,
    y_of: Place,
    log_y: bool,
) -> None:
    kept = np.isfinite(low) & np.isfinite(high) & ((low > 0) | (not log_y))
    if kept.sum() < 2:
        return
    there = [
        f"{number(x_of(a))} {number(y_of(b))}" for a, b in zip(x[kept], high[kept], strict=True)
    ]
    back = [f"{number(x_of(a))} {number(y_of(b))}" for a, b in zip(x[kept], low[kept], strict=True)]
    drawing.path("M" + "L".join(there + back[::-1]) + "z", kind="band", fill=fill)


def _legend(drawing: Drawing, series: Sequence[Series]) -> float:
    """Write the legend from the top on; return where it ends."""
    shades = [each for each in series if each.shade is not None]
    entries = [(place, each) for place, each in enumerate(series) if each.shade is None]
    few = has_few(series)
    if few:
        entries = list(enumerate(series))
        shades = []
    if len(entries) == 1 and not shades:
        return 0.0
    x, y = _LEFT, 14.0
    if shades:
        for k in range(40):
            drawing.rect(x + k * 2, y - 9, 2.4, 9, shade(k / 39))
        label = f"first to last of {len(shades)} tasks"
        drawing.text(x + 86, y, label)
        x += 86 + text_width(label, 12) + 24
    names = shortened([each.name for _, each in entries], 60)
    for (place, each), name in zip(entries, names, strict=True):
        wide = 30 + text_width(name, 12) + 20
        if x + wide > drawing.width and x > _LEFT:
            x, y = _LEFT, y + 18
        kind, stroke, dash = _ink(each, place, few)
        drawing.path(f"M{number(x)} {number(y - 4)}h22", kind=kind, stroke=stroke, dash=dash)
        drawing.text(x + 28, y, name)
        x += wide
    return y + 6
