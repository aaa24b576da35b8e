"""What is said to people: widths, names cut in the middle, colours, and how much of it there is."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

MODES = ("auto", "plain", "quiet")
_WIDTH = 80
_COLORS = {"red": 31, "green": 32, "yellow": 33, "bold": 1}

_mode: ContextVar[str] = ContextVar("mode", default="auto")
_open: list[Screen] = []


@contextmanager
def shown_as(mode: str) -> Iterator[None]:
    """Say as much, in a ``with`` block, as a mode has.

    Args:
        mode: "auto": a status in a terminal, lines elsewhere. "plain": lines everywhere. "quiet":
            results and errors alone.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown; choose one of {', '.join(MODES)}")
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def is_quiet() -> bool:
    """Return whether results and errors are all that is to be said."""
    return _mode.get() == "quiet"


def _is_tty(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # the latter of a stream that was closed
        return False


def width_of(stream: TextIO | None) -> int | None:
    """Return the columns of a terminal, as it is now; None for what is no terminal."""
    if stream is None or not _is_tty(stream):
        return None
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        columns = 0
    if columns > 0:
        return columns
    told = os.environ.get("COLUMNS", "")
    return int(told) if told.isdecimal() and int(told) > 0 else _WIDTH


def colored(text: str, color: str, stream: TextIO | None) -> str:
    """Return a text in a colour, where the stream is a terminal and ``NO_COLOR`` is not set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or _mode.get() == "plain" or not _is_tty(stream):
        return text
    return f"\033[{_COLORS[color]}m{text}\033[0m"


def printable(text: str) -> str:
    """Return a text of one line that moves no cursor: what would is written with a backslash."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cells(text: str) -> int:
    """Return the columns that a text takes in a terminal."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) != 0 for letter in text)


def shortened(text: str, width: int, mark: str = "..") -> str:
    """Return a text in at most ``width`` columns, cut in the middle: names differ at their ends."""
    if cells(text) <= width:
        return text
    if width <= len(mark) + 1:
        mark = ""
    room = max(0, width - len(mark))
    end = _cut(text[::-1], (room + 1) // 2)[::-1]
    return f"{_cut(text, room - cells(end))}{mark}{end}"


def _cut(text: str, width: int) -> str:
    while cells(text) > width:
        text = text[:-1]
    return text


class Screen:
    """A stream that in a terminal shows a status on its last line; a context manager.

    A stream that cannot be printed on any more takes no more, and nothing is raised.

    Args:
        stream: Where to print; None: nowhere.

    Attributes:
        has_status: Whether it shows a status: in a terminal, unless it or the mode is a plain one.
        works: Whether it prints still.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._shown = False
        self.works = stream is not None
        is_dumb = os.environ.get("TERM") == "dumb" or _mode.get() == "plain"
        self.has_status = _is_tty(stream) and not is_dumb

    def __enter__(self) -> Screen:
        _open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        _open.remove(self)

    @property
    def width(self) -> int:
        """Columns that a line may take so that it does not wrap; it is asked anew each time."""
        return max(1, (width_of(self._stream) or _WIDTH) - 1)

    @property
    def takes_blocks(self) -> bool:
        """Whether the stream has letters that draw a bar."""
        try:
            "\u2588\u2591\u2026".encode(self._encoding)
        except (UnicodeError, LookupError):
            return False
        return True

    @property
    def _encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def colored(self, text: str, color: str) -> str:
        """As the function, for this stream."""
        return colored(text, color, self._stream)

    def _write(self, text: str) -> None:
        if not self.works or self._stream is None:
            return
        try:
            encoding = self._encoding
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError):  # the latter of a stream that was closed
            self.works = False

    def status(self, text: str) -> None:
        """Show a text of one line in place of the last status; elsewhere than in a terminal: no."""
        if self.has_status:
            self._write(f"\r{text}\033[K")
            self._shown = True

    def clear(self) -> None:
        """Show no status."""
        if self._shown:
            self._write("\r\033[K")
            self._shown = False

    def keep(self) -> None:
        """Leave the status where it is, and go to the next line."""
        if self._shown:
            self._write("\n")
            self._shown = False

    def line(self, text: str) -> None:
        """Print a text on lines of its own, above what the status will be."""
        self.clear()
        self._write(text + "\n")


def say(text: str) -> None:
    """Print lines on standard error, not into the status of the screen that is open."""
    screen = _open[-1] if _open else Screen(sys.stderr)
    screen.line(text)
