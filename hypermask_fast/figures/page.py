"""A report of a run: one page for a browser that needs nothing beside itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

from hypermask_fast.figures.charts import Chart
from hypermask_fast.figures.draw import drawing
from hypermask_fast.figures.labels import well_formed
from hypermask_fast.figures.page_style import PAGE_STYLE
from hypermask_fast.figures.svg import WIDTH


class Expected(NamedTuple):
    """A figure that a preset is known to reach.

    Attributes:
        name: What it is of.
        expected: In words.
        found: In words.
        holds: Whether it was reached; None: it cannot be told yet.
        source: Where it is from.
    """

    name: str
    expected: str
    found: str
    holds: bool | None
    source: str = ""


class Setting(NamedTuple):
    """A setting of a run.

    Attributes:
        table: The table that it stands in.
        name: Its name.
        value: Its value.
        base: That of the preset or the default, where it is another one; else None.
    """

    table: str
    name: str
    value: str
    base: str | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a page says; all of it is plain text.

    Attributes:
        title: Of the page.
        subtitle: What was done, in a line.
        tiles: Names and values of what matters most.
        notes: What was left out, or changed on the way.
        expected: Figures of the preset.
        tasks: Rows of the table of tasks; the first one has the names of its columns.
        tasks_title: What they are.
        metrics: Names, values and definitions.
        charts: The figures.
        settings: The settings.
        machine: Names and values of versions, hardware and times.
        command: The command line.
    """

    title: str
    subtitle: str
    tiles: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    expected: Sequence[Expected] = ()
    tasks: Sequence[Sequence[str]] = ()
    tasks_title: str = "Tasks"
    metrics: Sequence[tuple[str, str, str]] = ()
    charts: Sequence[Chart] = ()
    settings: Sequence[Setting] = ()
    machine: Sequence[tuple[str, str]] = ()
    command: str = ""
    made_by: str = field(default="hypermask_fast")


def page(report: Report) -> str:
    """Return a report as HTML, which refers to nothing outside of itself."""
    sections = [
        ("Expected figures", "expected", _expected(report.expected)),
        ("Figures", "figures", "".join(map(_figure, report.charts))),
        (report.tasks_title, "tasks", _tasks(report.tasks)),
        ("Metrics", "metrics", _metrics(report.metrics)),
        ("Settings", "settings", _settings(report.settings)),
        ("Machine and versions", "machine", _machine(report)),
    ]
    sections = [each for each in sections if each[2]]
    links = "".join(f'<a href="#{place}">{escape(name)}</a>' for name, place, _ in sections)
    body = "".join(
        f'<section id="{place}"><h2>{escape(name)}</h2><div class="cards">{inner}</div></section>'
        for name, place, inner in sections
    )
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in report.tiles
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return well_formed(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(report.title)}</title><style>{PAGE_STYLE}</style></head><body>"
        f'<header><h1>{escape(report.title)}</h1><p class="sub">{escape(report.subtitle)}</p>'
        f"<nav>{links}</nav></header><main>"
        + (f'<dl class="tiles">{tiles}</dl>' if tiles else "")
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + f"{body}</main><footer>Made by {escape(report.made_by)}.</footer></body></html>\n"
    )


def _table(rows: Sequence[Sequence[str]], *, kind: str, texts: Sequence[int] = (0,)) -> str:
    """Return a table whose first row has names; ``texts`` are its columns that are no numbers."""

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = ("" if i in texts else ' class="n"' for i in range(len(row)))
        pairs = zip(kinds, row, strict=True)
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in pairs)

    head, *rest = rows
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rest)
    return (
        f'<div class="card scroll {kind}"><table><thead><tr>{cells(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _expected(found: Sequence[Expected]) -> str:
    if not found:
        return ""
    rows = []
    for each in found:
        mark, word = {True: ("✓", "good"), False: ("✗", "bad"), None: ("-", "open")}[each.holds]
        cells = "".join(f"<td>{escape(c)}</td>" for c in (each.name, each.expected, each.found))
        rows.append(
            f'<tr>{cells}<td class="{word}" title="{word}">{mark}</td>'
            f"<td>{escape(each.source)}</td></tr>"
        )
    heads = "".join(f"<th>{name}</th>" for name in ("", "expected", "this run", "", "source"))
    return (
        f'<div class="card scroll wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _tasks(rows: Sequence[Sequence[str]]) -> str:
    return _table(rows, kind="tall", texts=(1,)) if len(rows) > 1 else ""


def _metrics(rows: Sequence[tuple[str, str, str]]) -> str:
    head = ("metric", "percent", "definition")
    return _table([head, *rows], kind="wide", texts=(0, 2)) if rows else ""


def _figure(chart: Chart) -> str:
    made = drawing(chart)
    data = base64.b64encode(chart.csv_text().encode()).decode()
    name = escape(f"{chart.name}.csv")
    link = f'<a class="data" download="{name}" href="data:text/csv;base64,{data}">csv</a>'
    wide = " wide" if made.width > WIDTH else ""
    note = f"<figcaption>{escape(chart.note)}</figcaption>" if chart.note else ""
    return (
        f'<figure class="card{wide}" id="{escape(chart.name)}"><h3>{escape(chart.title)}{link}</h3>'
        f"{made.markup()}{note}</figure>"
    )


def _settings(settings: Sequence[Setting]) -> str:
    tables = dict.fromkeys(each.table for each in settings)
    parts = []
    for table in tables:
        rows = []
        for each in settings:
            if each.table != table:
                continue
            base = "" if each.base is None else f" <small>instead of {escape(each.base)}</small>"
            mark = "" if each.base is None else ' class="changed"'
            name = f"<td><code>{escape(each.name)}</code></td>"
            rows.append(f"<tr{mark}>{name}<td>{escape(each.value)}{base}</td></tr>")
        title = f"[{escape(table)}]" if table else "preset"
        parts.append(
            f'<div class="card settings"><h3><code>{title}</code></h3>'
            f"<table><tbody>{''.join(rows)}</tbody></table></div>"
        )
    return "".join(parts)


def _machine(report: Report) -> str:
    if not report.machine and not report.command:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in report.machine
    )
    command = f"<pre>{escape(report.command)}</pre>" if report.command else ""
    return f'<div class="card wide">{command}<table><tbody>{rows}</tbody></table></div>'
