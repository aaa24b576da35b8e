"""Append-only log of metrics, one JSON object a line, cut back to the checkpoint on resume."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

from hypermask_fast.errors import CheckpointError, DataError
from hypermask_fast.runs.plain_json import plain_json, restore_nonfinite

_TAIL_BLOCK = 64 * 2**10


def _end_of_last_line(file: BinaryIO, size: int) -> int:
    """Return the number of bytes up to and including the last newline of ``file``."""
    end = size
    while end > 0:
        start = max(0, end - _TAIL_BLOCK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the records of a metrics file; ``"nan"``, ``"inf"``, ``"-inf"`` become floats again.

    A last line without its newline was being written when the process ended, and is left out.

    Raises:
        DataError: The file cannot be read, or a complete line is not a JSON object.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise DataError(
            f"cannot read the metrics file {path}: {error.strerror}; "
            "check the path of the run folder"
        ) from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:  # covers broken JSON and broken UTF-8
            record = None
        if not isinstance(record, dict):
            raise DataError(
                f"line {number} of {path} is {line[:60]!r}, expected a JSON object; "
                "remove that line or restore the file"
            )
        records.append(restore_nonfinite(record))
    return records


class MetricsLog:
    """Writer of a metrics file. Use it as a context manager, or call `close`.

    Lines are buffered until `flush`, `position`, `truncate` or `close`. A half-written last line
    that a killed process left behind is cut off on opening.

    Args:
        path: The file; created if missing, otherwise appended to.

    Raises:
        CheckpointError: The file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = open(self.path, "a+b")  # noqa: SIM115 (open for the life of the object)
            size = self._file.seek(0, os.SEEK_END)
            complete = _end_of_last_line(self._file, size)
            if complete < size:
                self._file.truncate(complete)
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            self._fail("open", error)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _fail(self, action: str, error: OSError) -> NoReturn:
        raise CheckpointError(
            f"cannot {action} the metrics file {self.path}: {error.strerror or error}; "
            "free space or correct the permissions, then resume"
        ) from error

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; NaN and infinities are stored as ``"nan"``, ``"inf"``, ``"-inf"``.

        Raises:
            TypeError: A value is not JSON, such as a tensor.
            CheckpointError: The disk refused the data.
        """
        plain = plain_json(record, "record", nonfinite_as_text=True)
        if not isinstance(plain, dict):
            raise TypeError(f"record is a {type(record).__name__}, expected a dict of metrics")
        try:
            self._file.write(json.dumps(plain, allow_nan=False).encode() + b"\n")
        except OSError as error:
            self._fail("write", error)

    def flush(self) -> None:
        """Bring every written record to the disk (flush and fsync).

        Raises:
            CheckpointError: The disk refused the data.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._fail("write", error)

    def position(self) -> int:
        """Flush; return the size of the file in bytes, which a checkpoint stores for `truncate`."""
        self.flush()
        return self._file.seek(0, os.SEEK_END)

    def truncate(self, position: int) -> None:
        """Cut the file back to ``position`` bytes, dropping what was logged after the checkpoint.

        Args:
            position: A value that `position` returned; 0 empties the file.

        Raises:
            CheckpointError: The file is shorter than ``position`` or has no line end there.
        """
        size = self.position()
        if not 0 <= position <= size:
            raise CheckpointError(
                f"the metrics file {self.path} has {size} bytes, the checkpoint expects at least "
                f"{position}; restore the file, or start a new run"
            )
        self._file.seek(max(0, position - 1))
        if position and self._file.read(1) != b"\n":
            raise CheckpointError(
                f"the metrics file {self.path} has no line end at byte {position} where the "
                "checkpoint was made, so it was altered since; restore the file, or start a new run"
            )
        try:
            self._file.truncate(position)
        except OSError as error:
            self._fail("truncate", error)
        self.position()

    def close(self) -> None:
        """Flush and close the file; calling it again does nothing."""
        if not self._file.closed:
            try:
                self.flush()
            finally:
                with contextlib.suppress(OSError):  # the flush has reported it
                    self._file.close()
