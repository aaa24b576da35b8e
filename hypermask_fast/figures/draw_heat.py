"""Heat maps in SVG."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np

from hypermask_fast.figures.charts import Heat
from hypermask_fast.figures.colors import contrast, hexadecimal
from hypermask_fast.figures.scales import number as tick_number
from hypermask_fast.figures.scales import text_width, ticks
from hypermask_fast.figures.svg import WIDE, WIDTH, Drawing, number

_SIZE = 12.0
_MOST_BESIDE = 10
_BAR = 86.0
_MOST_TITLES = 900
_COLORS = 48


def _share(value: float, heat: Heat) -> float:
    return (value - heat.low) / ((heat.high - heat.low) or 1.0)


def heat_map(heat: Heat) -> Drawing:
    """Return the drawing of a heat map."""
    rows, columns = heat.values.shape
    drawing = Drawing(heat.title, WIDE if columns > _MOST_BESIDE else WIDTH)
    left = max((text_width(label, _SIZE) for label in heat.row_labels), default=0.0) + 30
    room = drawing.width - left - _BAR
    width = min(72.0, room / columns)
    height = min(34.0, max(width, 20.0)) if rows <= 24 else max(3.0, min(width, 620 / rows))
    across, down = width * columns, height * rows
    top = 6.0

    _cells(drawing, heat, left, top, width, height)
    every = max(1, math.ceil(13 / height))
    for i in range(0, rows, every):
        y = top + (i + 0.5) * height + 4
        drawing.text(left - 8, y, heat.row_labels[i], anchor="end")
    middle = top + down / 2
    drawing.text(11, middle, heat.row_title, anchor="middle", turn=-90, muted=True)
    bottom = _column_labels(drawing, heat, left, top + down, width)
    drawing.text(left + across / 2, bottom + 14, heat.column_title, anchor="middle", muted=True)
    _color_bar(drawing, heat, left + across + 20, top, min(max(down, 70.0), 260.0))
    drawing.height = max(bottom + 22, top + max(down, 70.0) + 20)
    drawing.width = min(drawing.width, left + across + _BAR)
    return drawing


def _cells(
    drawing: Drawing, heat: Heat, left: float, top: float, width: float, height: float
) -> None:
    values = heat.values
    gap = 1.0 if min(width, height) > 8 else 0.0
    grouped: dict[int, list[str]] = defaultdict(list)
    many = values.size > _MOST_TITLES
    written = [f"{v:.{heat.digits}f}" for v in values.ravel() if not np.isnan(v)]
    widest = max((text_width(text, 11) for text in written), default=0.0)
    shows_values = widest + 5 <= width and height >= 15
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        x, y = left + j * width, top + i * height
        share = _share(float(value), heat)
        if many:
            corner = f"M{number(x)} {number(y)}h{number(width - gap)}"
            place = round(min(max(share, 0.0), 1.0) * _COLORS)
            grouped[place].append(f"{corner}v{number(height - gap)}h-{number(width - gap)}z")
        else:
            where = f"{heat.column_names[j]}, {heat.row_names[i]}"
            title = f"{where}: {value:.2f}"
            drawing.rect(x, y, width - gap, height - gap, hexadecimal(share), title)
        if shows_values:
            text = f"{value:.{heat.digits}f}"
            at = x + (width - gap) / 2, y + (height - gap) / 2 + 4
            drawing.text(*at, text, anchor="middle", size=11, fill=contrast(share))
    for place, corners in sorted(grouped.items()):
        drawing.path("".join(corners), fill=hexadecimal(place / _COLORS))


def _column_labels(drawing: Drawing, heat: Heat, left: float, bottom: float, width: float) -> float:
    """Write the labels below a map; return where they end."""
    labels = heat.column_labels
    longest = max((text_width(label, _SIZE) for label in labels), default=0.0)
    if longest + 6 <= width or all(label.isdecimal() for label in labels):
        every = max(1, math.ceil((longest + 6) / width))
        for j in range(0, len(labels), every):
            drawing.text(left + (j + 0.5) * width, bottom + 16, labels[j], anchor="middle")
        return bottom + 18
    every = max(1, math.ceil(19 / width))
    for j in range(0, len(labels), every):
        x = left + (j + 0.5) * width + 4
        drawing.text(x, bottom + 12, labels[j], anchor="end", turn=-40)
    return bottom + 14 + longest * math.sin(math.radians(40))


def _color_bar(drawing: Drawing, heat: Heat, x: float, top: float, height: float) -> None:
    pieces = 40
    for k in range(pieces):
        y = top + height * (1 - (k + 1) / pieces)
        drawing.rect(x, y, 11, height / pieces + 0.6, hexadecimal((k + 0.5) / pieces))
    for value in ticks(heat.low, heat.high, 5):
        y = top + height * (1 - _share(value, heat))
        drawing.line(x + 11, y, x + 15, y, "axis")
        drawing.text(x + 18, y + 4, tick_number(value), size=11, muted=True)
    middle = top + height / 2
    drawing.text(x + 54, middle, heat.value_title, anchor="middle", turn=-90, muted=True, size=11)
