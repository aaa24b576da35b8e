"""A drawing in SVG, whose colours come from the style sheet of what holds it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hypermask_fast.figures.colors import DARK, LIGHT

WIDTH, WIDE = 520.0, 1076.0
"""Of a drawing that stands beside another one, and of one that does not."""


def _rules(colors: Sequence[str], text: str, muted: str, grid: str) -> str:
    series = "".join(f"--s{place}:{color};" for place, color in enumerate(colors))
    return f"{series}--text:{text};--muted:{muted};--grid:{grid};"


LIGHT_RULES = _rules(LIGHT, "#1c2430", "#5b6675", "#e2e6ec")
DARK_RULES = _rules(DARK, "#e6eaf0", "#9aa6b6", "#2f3946")
"""Colours by name, of both grounds."""

FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"
STYLE = (
    f"svg.figure{{font-family:{FONT};font-size:12px;max-width:100%;height:auto;display:block}}"
    "svg.figure text{fill:var(--text)}svg.figure text.m{fill:var(--muted)}"
    "svg.figure .grid{stroke:var(--grid);stroke-width:1;fill:none}"
    "svg.figure .axis{stroke:var(--muted);stroke-width:1;fill:none}"
    "svg.figure .line{fill:none;stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}"
    "svg.figure .strong{stroke-width:2.6;stroke:var(--text)}"
    "svg.figure .band{stroke:none;opacity:.18}"
    "@media screen and (prefers-color-scheme:dark){svg.figure .shade{filter:brightness(1.55)}}"
)
"""Of all drawings."""


def number(value: float) -> str:
    """Return a coordinate, with a tenth of a pixel."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")


class Drawing:
    """Elements of an SVG, which grow from the top to the bottom.

    Args:
        label: What it shows, for those who do not see it.
        width: In pixels.
    """

    def __init__(self, label: str, width: float = WIDTH) -> None:
        self.label, self.width, self.height = label, width, 0.0
        self._parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: str = "start",
        turn: float = 0,
        muted: bool = False,
        size: float | None = None,
        fill: str | None = None,
        bold: bool = False,
    ) -> None:
        """Add a text whose base line is at ``y``; ``turn`` in degrees, about its anchor."""
        more = ' class="m"' if muted else ""
        more += f' text-anchor="{anchor}"' if anchor != "start" else ""
        more += f' transform="rotate({turn:g} {number(x)} {number(y)})"' if turn else ""
        more += f' font-size="{size:g}"' if size else ""
        more += f' style="fill:{fill}"' if fill else ""
        more += ' font-weight="600"' if bold else ""
        self._parts.append(f'<text x="{number(x)}" y="{number(y)}"{more}>{escape(text)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> None:
        """Add a straight line of a class."""
        places = f'x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
        self._parts.append(f'<line class="{kind}" {places}/>')

    def rect(
        self, x: float, y: float, width: float, height: float, color: str, title: str = ""
    ) -> None:
        """Add a filled rectangle, with a text that a pointer shows."""
        places = f'x="{number(x)}" y="{number(y)}" width="{number(width)}"'
        inner = f"<title>{escape(title)}</title>" if title else ""
        self._parts.append(
            f'<rect {places} height="{number(height)}" style="fill:{color}">{inner}</rect>'
        )

    def path(
        self,
        data: str,
        *,
        kind: str = "",
        stroke: str = "",
        fill: str = "",
        title: str = "",
        dash: str = "",
    ) -> None:
        """Add a path of a class, with its colours and a text that a pointer shows."""
        style = f"stroke:{stroke};" if stroke else ""
        style += f"fill:{fill};" if fill else ""
        style += f"stroke-dasharray:{dash};" if dash else ""
        inner = f"<title>{escape(title)}</title>" if title else ""
        attributes = f' class="{kind}"' if kind else ""
        attributes += f' style="{style}"' if style else ""
        self._parts.append(f'<path{attributes} d="{data}">{inner}</path>')

    def circle(
        self, x: float, y: float, radius: float, color: str, title: str = "", kind: str = ""
    ) -> None:
        """Add a filled circle, with a text that a pointer shows."""
        inner = f"<title>{escape(title)}</title>" if title else ""
        places = f'cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"'
        places += f' class="{kind}"' if kind else ""
        self._parts.append(f'<circle {places} style="fill:{color}">{inner}</circle>')

    def markup(self, *, alone: bool = False) -> str:
        """Return the element.

        Args:
            alone: For a file of its own, with its style sheet. Default False: within a page.
        """
        size = f'width="{number(self.width)}" height="{number(self.height)}"'
        box = f'viewBox="0 0 {number(self.width)} {number(self.height)}"'
        name = ' xmlns="http://www.w3.org/2000/svg"' if alone else ""
        style = ""
        if alone:
            dark = f"@media (prefers-color-scheme:dark){{svg.figure{{{DARK_RULES}}}}}"
            style = f"<style>svg.figure{{{LIGHT_RULES}}}{dark}{STYLE}</style>"
        opening = f'<svg{name} class="figure" {size} {box} role="img"'
        body = "".join(self._parts)
        return f'{opening} aria-label="{escape(self.label)}">{style}{body}</svg>'
