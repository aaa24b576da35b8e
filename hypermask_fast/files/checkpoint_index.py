"""The index of a checkpoint: which files it has, and whether they are as they were written."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hypermask_fast.errors import CheckpointError
from hypermask_fast.files.whole_folder import INDEX, digest
from hypermask_fast.head.shard import RowShard

FORMAT = "hypermask_fast"
VERSION = 2
"""Of a checkpoint with rows of processes; one without is of version 1, as all were once."""
TENSORS, STATE = "tensors.safetensors", "state.json"
ROWS = "rows"
"""Folder of the files of `divided_tensors`."""

_OF_ROWS = re.compile(rf"{ROWS}/(\.metadata|__\d+_\d+\.distcp)")


def damaged(path: Path, what: str) -> CheckpointError:
    """Return the error of a file that is not as it was written."""
    return CheckpointError(f"{path} {what}; restore it, or load another checkpoint")


def read_index(path: Path) -> dict[str, Any]:
    """Return the entries of the files in the checkpoint ``path``."""
    if not path.is_dir():
        raise CheckpointError(
            f"the checkpoint folder {path} does not exist; check the path, or start a new run"
        )
    index_path = path / INDEX
    try:
        index = json.loads(index_path.read_bytes())
    except FileNotFoundError as error:
        raise damaged(index_path, "is missing") from error
    except ValueError as error:  # covers broken JSON and broken UTF-8
        raise damaged(
            index_path, f"is not JSON, expected the index of a {FORMAT} checkpoint"
        ) from error
    seen = index.get("format") if isinstance(index, dict) else index
    if seen != FORMAT:
        raise CheckpointError(
            f"{index_path} has the format {seen!r}, expected {FORMAT!r}; give the path of a "
            "checkpoint of this package"
        )
    version, files = index.get("version"), index.get("files")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"{index_path} has format version {version}, expected at most {VERSION}; upgrade "
            "hypermask_fast"
        )
    if (
        not isinstance(files, dict)
        or version != (VERSION if files.keys() - {TENSORS, STATE} else 1)
        or not all(isinstance(entry, dict) for entry in files.values())
        or not files.keys() >= {TENSORS, STATE}
        or not all(_OF_ROWS.fullmatch(name) for name in files.keys() - {TENSORS, STATE})
    ):
        raise damaged(
            index_path, f"was altered: expected version 1 or {VERSION} and entries of its files"
        )
    return files


def verify(path: Path, part: slice | Collection[str] = slice(None)) -> None:
    """Raise CheckpointError, naming the file, unless lengths and digests are those of the index.

    Args:
        path: The checkpoint.
        part: Which of the files, by name or by place in their order. Default: all.
    """
    files = read_index(path)
    verify_files(path, files, sorted(files)[part] if isinstance(part, slice) else part)


def verify_files(path: Path, files: Mapping[str, Any], names: Collection[str]) -> None:
    """Raise CheckpointError, naming the file, unless lengths and digests are those given.

    Args:
        path: The folder of the files.
        files: Length and SHA-256 by name.
        names: Of the files to verify.
    """
    for name in names:
        expected = files[name]
        try:
            found = digest(path / name)
        except FileNotFoundError as error:
            raise damaged(path / name, "is missing") from error
        except OSError as error:
            raise damaged(path / name, f"cannot be read ({error.strerror})") from error
        if found["bytes"] != expected.get("bytes"):
            raise damaged(
                path / name,
                f"has {found['bytes']} bytes, expected {expected.get('bytes')}: it was cut or "
                "added to",
            )
        if found["sha256"] != expected.get("sha256"):
            raise damaged(
                path / name,
                f"was altered: its SHA-256 is {found['sha256']}, expected {expected.get('sha256')}",
            )


def check_rows(path: Path, name: str, size: int, shard: RowShard | None) -> None:
    """Raise CheckpointError where a tensor has other rows than those that processes share."""
    if shard is not None and size != shard.size:
        raise CheckpointError(
            f"{path} has {name} of {size} rows and the processes share {shard.size}; continue it "
            "with the settings that made it"
        )
