"""Files that a reader, or a crash, finds whole: the old content or the new."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypermask_fast.errors import ConfigError

_NO_SYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP)  # what file systems without it answer
TEMPORARY = ".tmp-"  # how the name of a file or folder that is not finished begins


def fsync_folder(folder: Path) -> None:
    """Bring the names in ``folder`` to the disk, so that a rename survives a power failure."""
    if os.name == "nt":  # Windows cannot open a folder, and writes its names through
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC_OF_FOLDERS:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where a file is to be written and brought to the disk, which then becomes ``path``.

    Raises:
        OSError: The disk refuses it: ``path`` is the old file or the new one.
    """
    # Always the same: what a kill leaves here is gone after the next write.
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        temporary.unlink(missing_ok=True)
        yield temporary
        os.replace(temporary, path)
        fsync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # gone already after the rename
            temporary.unlink()


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader, or a crash, finds the old content or the new.

    One process at a time may write to ``path``: hold the lock of its `RunFolder`.

    Raises:
        ConfigError: The file cannot be written, or not be brought to the disk: the content is the
            old or the new.
    """
    path = Path(path)
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"cannot write {path} ({len(data)} bytes): {error.strerror or error}; "
            "free space, correct the permissions, or choose another --out"
        ) from error


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically; see `write_bytes_atomic`."""
    write_bytes_atomic(path, text.encode())
