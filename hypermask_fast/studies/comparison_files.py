"""The tables of a comparison as text, csv, Markdown and LaTeX, and its figures' files."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hypermask_fast.console.columns import aligned
from hypermask_fast.figures.draw import drawing
from hypermask_fast.files.atomic import write_text_atomic
from hypermask_fast.metrics.statistics import Interval
from hypermask_fast.studies.comparison_charts import BY_TASK, PARETO, charts
from hypermask_fast.studies.comparison_result import FEWEST_PAIRS, Column, Comparison

_TABLES = tuple(f"compare.{ending}" for ending in ("txt", "csv", "md", "tex", "json"))
FILES = (*_TABLES, *(f"{name}.{ending}" for name in (PARETO, BY_TASK) for ending in ("svg", "csv")))
"""The names of the files that :func:`write` makes beside ``runs.csv``."""
RUNS = "runs.csv"

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}
_NUMBER = re.compile(r"-?[\d,.]+(e-\d+)?( ± [\d,.]+)?")
_EXPONENT = re.compile(r"e([-+]\d+)")
_MARKDOWN = frozenset("\\`*_{}[]<>#|~")


def latex(text: str) -> str:
    """Return a text as LaTeX shows it: letters with a meaning of their own are escaped."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _latex_cell(text: str) -> str:
    """Return a cell, a number as a formula, whose minus is none without."""
    if not _NUMBER.fullmatch(text):
        return latex(text)
    text = _EXPONENT.sub(lambda found: rf" \cdot 10^{{{int(found[1])}}}", text)
    text = text.replace(",", "{,}").replace("±", r"\pm")
    return f"${text}$"


def markdown(text: str) -> str:
    """Return a text as Markdown shows it, also in a table's cell."""
    return "".join(f"\\{letter}" if letter in _MARKDOWN else letter for letter in text)


def _number(value: float, digits: int | None) -> str:
    """Return a number with so many decimals, or with three significant digits."""
    if digits is None:
        size = 0 if value == 0 else math.floor(math.log10(abs(value)))
        digits = max(0, 2 - size)
    return f"{value:,.{digits}f}"


def _cell(found: Interval, column: Column, plus_minus: str) -> str:
    if math.isnan(found.mean):
        return "-"
    text = _number(found.mean, column.digits)
    if math.isnan(found.half) or not column.varies:
        return text
    # As many decimals as the mean has.
    digits = len(text.partition(".")[2])
    return f"{text}{plus_minus}{found.half:,.{digits}f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}" if value >= 5e-5 else f"{value:.1e}"


def _of_methods(found: Comparison, plus_minus: str) -> list[list[str]]:
    """Return the table of methods, its header first."""
    rows = [["method", *(column.title for column in found.columns), "runs"]]
    for method in found.config.runs:
        cells = [_cell(found.figure(method, c.key), c, plus_minus) for c in found.columns]
        rows.append([method, *cells, f"{len(found.ended(method))} of {found.config.seeds}"])
    return rows


def _of_pairs(found: Comparison, plus_minus: str) -> list[list[str]]:
    """Return the table of pairs of methods, its header first; nothing for too few seeds."""
    if found.config.seeds < FEWEST_PAIRS or len(found.config.runs) < 2:
        return []
    columns = {column.key: column for column in found.columns}
    rows = [["paired by seed", "column", "difference"]]
    rows[0] += ["p (t)", "p (t, Holm)", "p (flips)", "p (flips, Holm)"]
    for pair in found.pairs():
        column = columns[pair.key]
        p_values = pair.t, pair.t_holm, pair.flips, pair.flips_holm
        difference = _cell(pair.difference, column, plus_minus)
        names = f"{pair.first} - {pair.second}"
        rows.append([names, column.title, difference, *map(_p, p_values)])
    return rows


def text_table(found: Comparison) -> str:
    """Return the comparison for a terminal."""
    lines = [found.title, "", *aligned(_of_methods(found, " +/- "))]
    if pairs := _of_pairs(found, " +/- "):
        lines += ["", *aligned(pairs)]
    if troubles := found.troubles():
        lines += ["", *troubles]
    return "\n".join([*lines, "", *found.sources(), "", *found.definitions()])


def markdown_tables(found: Comparison) -> str:
    """Return the comparison as Markdown."""

    def table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
        lines = [f"| {' | '.join(map(markdown, row))} |" for row in rows]
        return [lines[0], f"| --- |{' ---: |' * (len(rows[0]) - 1)}", *lines[1:], ""]

    lines = [markdown(found.title), "", *table(_of_methods(found, " ± "))]
    if pairs := _of_pairs(found, " ± "):
        lines += table(pairs)
    for chart in charts(found):
        lines += [f"![{chart.title}]({chart.name}.svg)", "", chart.note, ""]
    notes = [*found.troubles(), *found.sources(), *found.definitions()]
    return "\n".join([*lines, *(f"- {markdown(note)}" for note in notes)]) + "\n"


def latex_tables(found: Comparison) -> str:
    """Return the comparison as LaTeX: a table without packages, and one of the pairs."""

    def table(rows: Sequence[Sequence[str]], caption: Sequence[str]) -> Iterable[str]:
        lines = [" & ".join(map(_latex_cell, row)) + r" \\" for row in rows]
        begin = [r"\begin{table}", r"\centering", f"\\caption{{{'. '.join(map(latex, caption))}.}}"]
        begin += [f"\\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\hline"]
        return [
            *begin,
            lines[0],
            r"\hline",
            *lines[1:],
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
        ]

    notes = [*found.sources(), *found.troubles()]
    lines = [*table(_of_methods(found, " ± "), [found.title, *notes])]
    if pairs := _of_pairs(found, " ± "):
        lines += ["", *table(pairs, [f"{found.title}: the methods in pairs"])]
    # A comment ends with its line.
    return "\n".join([*(f"% {' '.join(d.split())}" for d in found.definitions()), *lines]) + "\n"


def _csv(rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _plain(value: float) -> object:
    return "" if math.isnan(value) else value


def methods_csv(found: Comparison) -> str:
    """Return a row for each method: means, and half their intervals as ``..._half_interval``."""
    keys = [column.key for column in found.columns]
    header = ["method", "settings", "seeds", "ended"]
    rows: list[list[object]] = [
        [*header, *(name for key in keys for name in (key, f"{key}_half_interval"))]
    ]
    for method in found.config.runs:
        figures = [found.figure(method, key) for key in keys]
        begin = [method, found.config.source(method), found.config.seeds, len(found.ended(method))]
        rows.append([*begin, *(_plain(v) for f in figures for v in (f.mean, f.half))])
    return _csv(rows)


def runs_csv(found: Comparison) -> str:
    """Return a row for each run, with its accuracy on each task at the end."""
    keys, tasks = [column.key for column in found.columns], found.task_names
    rows: list[list[object]] = [["method", "seed", "failure", *keys, *tasks]]
    for run in found.runs:
        values = [_plain(run.values.get(key, math.nan)) for key in keys]
        rows.append([run.method, run.seed, run.failure, *values, *run.by_task])
    return _csv(rows)


def write(folder: Path, found: Comparison) -> None:
    """Write all files of a comparison, each atomically.

    Args:
        folder: An existing folder.
        found: The comparison.

    Raises:
        ConfigError: A file cannot be written.
    """
    texts = (
        text_table(found) + "\n",
        methods_csv(found),
        markdown_tables(found),
        latex_tables(found),
        json.dumps(found.to_json(), indent=1) + "\n",
    )
    for name, text in zip(_TABLES, texts, strict=True):
        write_text_atomic(folder / name, text)
    write_text_atomic(folder / RUNS, runs_csv(found))
    for chart in charts(found):
        write_text_atomic(folder / f"{chart.name}.svg", drawing(chart).markup(alone=True))
        write_text_atomic(folder / f"{chart.name}.csv", chart.csv_text())
