"""Folders that a reader, or a crash, finds whole: files, then an index of them, then a rename."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypermask_fast.files.atomic import TEMPORARY, fsync_folder
from hypermask_fast.files.tensor_file import write_file

INDEX = "index.json"
REPLACED = ".replaced-"  # how the name of a folder begins whose successor takes its place


def temporary_of(final: Path) -> Path:
    """Return the folder that the files of ``final`` are in until all are there."""
    return final.with_name(f"{TEMPORARY}{final.name}")


def replaced_of(final: Path) -> Path:
    """Return where the old folder is while a new one takes the place of ``final``."""
    return final.with_name(f"{REPLACED}{final.name}")


def digest(path: Path) -> dict[str, Any]:
    """Return a file's length and SHA-256."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": found}


def discard(path: Path) -> None:
    """Remove a folder; a kill in the middle leaves only a name that is never read."""
    try:
        if not path.name.startswith(TEMPORARY):
            path = path.rename(path.with_name(f"{TEMPORARY}{path.name.lstrip('.')}"))
        shutil.rmtree(path)
    except OSError as error:
        warnings.warn(
            f"cannot remove the old checkpoint {path}: {error.strerror}; remove it by hand",
            RuntimeWarning,
            stacklevel=3,
        )


def put_back(final: Path) -> None:
    """Undo a replacement of ``final`` that a kill left half done."""
    replaced = replaced_of(final)
    if replaced.exists() and final.exists():
        discard(replaced)
    elif replaced.exists():
        replaced.rename(final)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield a new folder to write in, which then becomes ``final``, in place of an old one.

    Raises:
        OSError: The disk refuses it: ``final`` is the old folder or the new one.
    """
    temporary, replaced = temporary_of(final), replaced_of(final)
    try:
        temporary.mkdir()
        yield temporary
        fsync_folder(temporary)
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        fsync_folder(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if replaced.exists():
        discard(replaced)


def write_index(folder: Path, kind: str, version: int, files: Mapping[str, Any]) -> None:
    """Write the index of a folder.

    Args:
        folder: Whose it is.
        kind, version: Of its format.
        files: Length and SHA-256 of its files, by name.

    Raises:
        OSError: The disk refuses it.
    """
    index = {"format": kind, "version": version, "files": dict(files)}
    write_file(folder / INDEX, [json.dumps(index, indent=1).encode()])
