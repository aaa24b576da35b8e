"""The drawing of any figure by matplotlib, for what needs pixels or PDF."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from hypermask_fast.figures.charts import Bars, Chart, Heat, Lines, Points
from hypermask_fast.figures.colors import LIGHT, contrast, hexadecimal, shade
from hypermask_fast.figures.draw_lines import has_few, style_of, y_range


def paint(chart: Chart, kind: str) -> bytes:
    """Return a figure as the bytes of a file.

    Args:
        chart: The figure.
        kind: "png" or "pdf".
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=_size(chart), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_plain(chart.title), fontsize=11, loc="left")
    if isinstance(chart, Heat):
        _heat(figure, axes, chart)
    elif isinstance(chart, Lines):
        _lines(axes, chart)
    elif isinstance(chart, Bars):
        _bars(axes, chart)
    elif isinstance(chart, Points):
        _points(axes, chart)
    buffer = io.BytesIO()
    # Without the time of making, which would make each file another one.
    metadata = {"CreationDate": None} if kind == "pdf" else {}
    figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # which would start a formula


def _size(chart: Chart) -> tuple[float, float]:
    if isinstance(chart, Heat):
        rows, columns = chart.values.shape
        width = min(max(0.5 * columns, 2.4), 11.0)
        return width + 3.0, min(max(0.32 * rows, 1.6), 11.0) + 1.6
    if isinstance(chart, Bars):
        return 7.0, 1.4 + 0.11 * len(chart.groups) * (len(chart.series) + 1)
    return 7.0, 4.2


def _heat(figure: Any, axes: Any, chart: Heat) -> None:
    from matplotlib.colors import ListedColormap

    colors = ListedColormap([hexadecimal(k / 255) for k in range(256)])
    values = np.ma.masked_invalid(chart.values)
    image = axes.imshow(values, cmap=colors, vmin=chart.low, vmax=chart.high, aspect="auto")
    rows, columns = chart.values.shape
    for set_ticks, labels, turn in (
        (axes.set_xticks, chart.column_labels, 40),
        (axes.set_yticks, chart.row_labels, 0),
    ):
        every = math.ceil(len(labels) / 40)
        alike = {"rotation": turn, "ha": "right"} if turn and max(map(len, labels)) > 4 else {}
        set_ticks(range(0, len(labels), every), list(map(_plain, labels[::every])), **alike)
    axes.set_xlabel(chart.column_title)
    axes.set_ylabel(chart.row_title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if rows <= 24 and columns <= 20:
        span = (chart.high - chart.low) or 1.0
        for (i, j), value in np.ndenumerate(chart.values):
            if not math.isnan(value):
                color = contrast((float(value) - chart.low) / span)
                text = f"{value:.{chart.digits}f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color=color)
    bar = figure.colorbar(image, ax=axes, label=chart.value_title, shrink=0.9)
    bar.outline.set_visible(False)


def _lines(axes: Any, chart: Lines) -> None:
    named = has_few(chart.series)
    for place, each in enumerate(chart.series):
        color, dash = style_of(place)
        how: dict[str, Any] = {
            "color": LIGHT[color] if each.shade is None or named else shade(each.shade)
        }
        if each.strong:
            how = {"color": "black", "linewidth": 2.4, "zorder": 3}
        elif dash and (each.shade is None or named):
            how["linestyle"] = (0, tuple(map(float, dash.split())))
        y = np.where(each.y > 0, each.y, np.nan) if chart.log_y else each.y
        marker = {"marker": "o", "markersize": 3} if len(each.x) <= 30 and not each.strong else {}
        label = _plain(each.name) if named or each.shade is None else None
        axes.plot(each.x, y, label=label, **how, **marker)
        if each.low is not None and each.high is not None:
            axes.fill_between(each.x, each.low, each.high, color=how["color"], alpha=0.18, lw=0)
    for at, label in chart.marks:
        axes.axvline(at, color="#d5d9df", linewidth=0.8, zorder=0)
        if len(chart.marks) <= 12:
            where = axes.get_xaxis_transform()
            axes.text(at, 1.0, f" {_plain(label)}", fontsize=7, transform=where, va="top")
    if chart.log_y:
        axes.set_yscale("log")
    axes.set_ylim(*y_range(chart))
    if chart.x_labels and len(chart.x_labels) <= 12:
        places = range(1, len(chart.x_labels) + 1)
        axes.set_xticks(places, list(map(_plain, chart.x_labels)), rotation=30, ha="right")
    axes.set_xlabel(chart.x_title)
    axes.set_ylabel(chart.y_title)
    _grid(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def _bars(axes: Any, chart: Bars) -> None:
    count = len(chart.series)
    for place, (name, values) in enumerate(chart.series.items()):
        at = np.arange(len(values)) + (place - (count - 1) / 2) * 0.8 / count
        axes.barh(at, np.nan_to_num(values), 0.74 / count, label=_plain(name), color=LIGHT[place])
    axes.set_yticks(range(len(chart.labels)), list(map(_plain, chart.labels)), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, chart.high)
    axes.set_xlabel(chart.value_title)
    _grid(axes)
    axes.legend(fontsize=8, frameon=False)


def _points(axes: Any, chart: Points) -> None:
    last = max(len(chart.x) - 1, 1)
    axes.scatter(chart.x, chart.y, c=[shade(i / last) for i in range(len(chart.x))], s=30)
    if len(chart.labels) <= 40:
        for x, y, label in zip(chart.x, chart.y, chart.labels, strict=True):
            place = {"textcoords": "offset points", "xytext": (5, 3)}
            axes.annotate(_plain(label), (x, y), fontsize=8, **place)
    if chart.bars is not None:
        axes.vlines(chart.x, *chart.bars, color="#5b6675", lw=1, zorder=0)
    if chart.joined:
        at = list(chart.joined)
        axes.plot(chart.x[at], chart.y[at], "--", color="#5b6675", lw=1, zorder=0)
    if chart.log_x:
        axes.set_xscale("log")
    axes.margins(0.12)
    axes.set_xlabel(chart.x_title)
    axes.set_ylabel(chart.y_title)
    _grid(axes)


def _grid(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
