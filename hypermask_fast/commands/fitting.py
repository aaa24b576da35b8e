"""Tables and sentences in a terminal that is narrower than they are."""

from __future__ import annotations

import itertools
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence

from hypermask_fast.console.terminal import cells, width_of

_BETWEEN = re.compile(r"(?<=\S) {2,}(?=\S)")
_FEWEST = 12


def print_fitted(text: str) -> None:
    """Print text on standard output, whose tables and sentences take the columns it has."""
    print(fitted(text, width_of(sys.stdout)))


def fitted(text: str, width: int | None) -> str:
    """Return text whose lines take at most ``width`` columns, where words are not longer.

    Lines with two spaces or more between words are rows of a table, whose first one is its header
    where there are more than two columns: a table that is too wide becomes a paragraph for each
    row. Other lines wrap.

    Args:
        text: The text.
        width: Columns; None: as many as it takes, nothing changes.
    """
    if width is None or all(cells(line) <= width for line in text.splitlines()):
        return text
    lines: list[str] = []
    for is_table, group in itertools.groupby(text.splitlines(), lambda x: bool(_BETWEEN.search(x))):
        found = list(group)
        if all(cells(line) <= width for line in found):
            lines += found
        elif is_table:
            lines += _table([_BETWEEN.split(line.strip()) for line in found], width)
        else:
            lines += itertools.chain.from_iterable(_wrapped(line, width) for line in found)
    return "\n".join(lines)


def _wrapped(line: str, width: int, indent: str = "") -> list[str]:
    made = textwrap.wrap(
        line,
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return made or [""]


def _table(rows: Sequence[Sequence[str]], width: int) -> Iterable[str]:
    counts = {len(row) for row in rows}
    if counts == {2}:
        for name, value in rows:
            yield from _pair(name, value, width)
    elif len(counts) == 1:
        header = rows[0]
        for row in rows[1:]:
            yield from _wrapped(row[0], width)
            for name, value in zip(header[1:], row[1:], strict=True):
                yield from _pair(f"  {name}", value, width)
    else:
        for row in rows:
            yield from _wrapped("  ".join(row), width)


def _pair(name: str, value: str, width: int) -> Iterable[str]:
    """Yield a name, and its value at the right; below each other where they have no room."""
    room = width - cells(value) - 2
    indent = name[: len(name) - len(name.lstrip())]
    if room < _FEWEST + len(indent):
        yield from _wrapped(name.strip(), width, indent)
        yield from _wrapped(value, width, f"{indent}  ")
        return
    *before, last = _wrapped(name.strip(), room, indent)
    yield from before
    yield f"{last}{' ' * max(2, width - cells(last) - cells(value))}{value}"
