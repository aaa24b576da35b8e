"""The drawing of any figure in SVG."""

from __future__ import annotations

from hypermask_fast.figures.charts import Bars, Chart, Heat, Lines, Points
from hypermask_fast.figures.draw_bars import bars
from hypermask_fast.figures.draw_heat import heat_map
from hypermask_fast.figures.draw_lines import lines
from hypermask_fast.figures.draw_points import points
from hypermask_fast.figures.svg import Drawing


def drawing(chart: Chart) -> Drawing:
    """Return the drawing of a figure.

    Raises:
        TypeError: There is none of its kind.
    """
    if isinstance(chart, Heat):
        return heat_map(chart)
    if isinstance(chart, Lines):
        return lines(chart)
    if isinstance(chart, Bars):
        return bars(chart)
    if isinstance(chart, Points):
        return points(chart)
    raise TypeError(f"a {type(chart).__name__} has no drawing; give a figure of this room")
