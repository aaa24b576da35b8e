"""The standard streams of a command: closed, gone, full or of few letters, they stop no run."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

_READER_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENXIO, errno.EBADF)


def _fill_descriptors() -> None:
    """Open the null device as the standard descriptors that are closed.

    Else the next files would get their numbers, and what libraries print would be written to them.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is given, and this is it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


class _Stream:
    """A stream to which writing never raises; after an error it takes no more.

    Attributes:
        failure: The error, unless it was only that nobody reads any more.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        # Not every object that stands in for a stream has all of its methods.
        self._takes_more = not getattr(stream, "closed", False)
        self._is_terminal = self._takes_more and getattr(stream, "isatty", bool)()
        self.failure: OSError | None = None
        if isinstance(stream, io.TextIOWrapper) and self._takes_more:
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        if self._takes_more:
            with self._watched():
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._takes_more:
            with self._watched():
                self._stream.flush()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            self._takes_more = False
            number = error.errno if isinstance(error, OSError) else errno.EBADF
            is_gone = number in _READER_GONE or (number == errno.EIO and self._is_terminal)
            if isinstance(error, OSError) and not is_gone:
                self.failure = error
            self._drop()

    def _drop(self) -> None:
        """Let what the stream has buffered go nowhere, or the interpreter's end would raise."""
        with contextlib.suppress(OSError, ValueError):
            descriptor = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_streams() -> Iterator[_Stream]:
    """Replace the standard streams, in a ``with`` block, by some to which writing never raises.

    Letters that a stream does not have are written with a backslash.

    Yields:
        That of standard output; its ``failure``, once it is flushed, tells what could not be
        printed.
    """
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        made = [
            _Stream(stack.enter_context(open(os.devnull, "w")) if stream is None else stream)
            for stream in before
        ]
        sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in made)
        try:
            yield made[0]
        finally:
            for stream in made:
                stream.flush()
            sys.stdout, sys.stderr = before
