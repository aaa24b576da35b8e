"""Append-only log of metrics, one JSON object a line, cut back to the checkpoint on resume."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hypermask_fast.errors import CheckpointError, DataError
from hypermask_fast.files.closing import Closing
from hypermask_fast.files.plain_json import plain_json, restore_nonfinite

_BLOCK = 2**20


class Position(NamedTuple):
    """How far a log was when a checkpoint was made.

    Attributes:
        size: Bytes of the file.
        sha256: Of these bytes, in hexadecimal; None of a checkpoint that did not keep it.
    """

    size: int
    sha256: str | None


START = Position(0, None)
"""That of a log without a line."""

TIMED = ("time", "steps_per_second")
"""Fields that tell a time: what is not the same in two runs of the same bits."""


def untimed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without what tells a time."""
    return {name: value for name, value in record.items() if name not in TIMED}


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


def _digest(path: Path, at: Position) -> hashlib._Hash:
    """Return the SHA-256 of the first bytes of a log, which are those it had at a position.

    Raises:
        CheckpointError: They are not.
    """
    digest = hashlib.sha256()
    if not at.size:
        return digest
    fix = "restore the file, or start a new run"
    if not path.exists():
        raise CheckpointError(
            f"the metrics file {path} is missing, the checkpoint expects at least {at.size} bytes; "
            f"{fix}"
        )
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < at.size:
            raise CheckpointError(
                f"the metrics file {path} has {size} bytes, the checkpoint expects at least "
                f"{at.size}; {fix}"
            )
        block = b""
        for begin in range(0, at.size, _BLOCK):
            block = file.read(min(_BLOCK, at.size - begin))
            digest.update(block)
    if not block.endswith(b"\n"):
        raise CheckpointError(
            f"the metrics file {path} has no line end at byte {at.size} where the checkpoint was "
            f"made, so it was altered since; {fix}"
        )
    if at.sha256 not in (None, digest.hexdigest()):
        raise CheckpointError(
            f"the metrics file {path} was altered: the SHA-256 of its first {at.size} bytes is "
            f"{digest.hexdigest()}, the checkpoint expects {at.sha256}; {fix}"
        )
    return digest


class MetricsLog(Closing):
    """Writer of a metrics file. Use it as a context manager, or call `close`.

    Lines are buffered until `flush`, `position` or `close`.

    Args:
        path: The file; created if missing.
        at: What `position` returned when the checkpoint was made that the run continues from: the
            file is cut back to it, and what was logged later is dropped. Default: emptied.

    Raises:
        CheckpointError: The file cannot be opened, or was altered before the position; it is then
            left as it is.
    """

    def __init__(self, path: str | os.PathLike[str], at: Position = START) -> None:
        self.path = Path(path)
        try:
            self._digest = _digest(self.path, at)
            self._file = open(self.path, "a+b")  # noqa: SIM115 (open for the life of the object)
            if self._file.seek(0, os.SEEK_END) > at.size:
                self._file.truncate(at.size)
        except OSError as error:
            self._fail("open", error)

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
        line = json.dumps(plain, allow_nan=False).encode() + b"\n"
        try:
            self._file.write(line)
        except OSError as error:
            self._fail("write", error)
        self._digest.update(line)

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

    def position(self) -> Position:
        """Flush; return size and digest of the file, which a checkpoint stores to continue from."""
        self.flush()
        return Position(self._file.seek(0, os.SEEK_END), self._digest.hexdigest())

    def close(self) -> None:
        """Flush and close the file; calling it again does nothing."""
        if not self._file.closed:
            try:
                self.flush()
            finally:
                with contextlib.suppress(OSError):  # the flush has reported it
                    self._file.close()
