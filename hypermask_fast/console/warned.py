"""Warnings as a command shows them: each once, in one line, without the place in the code."""

from __future__ import annotations

import hashlib
import mmap
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from hypermask_fast.console.terminal import colored, is_quiet, printable, say

_SIZE, _SLOTS = 16, 512
# What PyTorch adds of its own sources, and Python of its traces.
_PLACE = re.compile(r"\s*\(Triggered internally at [^)]*\)\.?|\s*\(function \w+\)")


class _Seen:
    """Texts that were said, here or in a process that was forked from this one."""

    def __init__(self) -> None:
        self._table = mmap.mmap(-1, _SIZE * _SLOTS)

    def add(self, text: str) -> bool:
        """Note a text, and return whether it is new; two processes at once may both be told so."""
        digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=_SIZE).digest()
        for begin in range(0, len(self._table), _SIZE):
            held = self._table[begin : begin + _SIZE]
            if held == digest:
                return False
            if held == bytes(_SIZE):
                self._table[begin : begin + _SIZE] = digest
                return True
        return True


def in_a_line(message: object) -> str:
    """Return a warning's message in one line, without the place in PyTorch's sources."""
    return printable(" ".join(_PLACE.sub("", str(message)).split()))


@contextmanager
def plain_warnings(prefix: str = "hypermask: warning") -> Iterator[None]:
    """Show warnings, in a ``with`` block, as lines of the command on standard error, each once.

    Args:
        prefix: Before each.
    """
    seen = _Seen()

    def show(message: object, *_: object, **__: object) -> None:
        text = in_a_line(message)
        if not is_quiet() and seen.add(text):
            say(f"{colored(prefix, 'yellow', sys.stderr)}: {text}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
