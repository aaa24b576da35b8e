"""The file of one learner: safetensors whose header has a description in JSON, and a digest.

The digest is of the whole file with zeros in its own place, so that a bit that changed anywhere is
found, in the settings as in the weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.files.atomic import replacing
from hypermask_fast.files.plain_json import plain_json
from hypermask_fast.files.tensor_file import check_kinds, safetensors_blocks, write_file

_FORMAT = "hypermask_fast learner"
_VERSION = 1
_KIND, _VERSIONED, _DESCRIPTION, _DIGEST = "kind", "version", "learner", "sha256"
_NO_DIGEST = "0" * 64
_MOST_HEADER = 2**28  # bytes; the library reads less than half of that


class Header(NamedTuple):
    """What stands before the tensors of a file.

    Attributes:
        size: Its bytes, with those of its length.
        texts: Its ``__metadata__``.
    """

    size: int
    texts: Mapping[str, str]


def _header(path: Path) -> Header | None:
    """Return the header of a learner's file; None where the file is of another kind."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(_MOST_HEADER, os.fstat(file.fileno()).st_size):
            return None
        try:
            texts = json.loads(file.read(size))["__metadata__"]
        except (KeyError, TypeError, ValueError):
            return None
    is_own = isinstance(texts, dict) and texts.get(_KIND) == _FORMAT
    return Header(8 + size, texts) if is_own else None


def require_replaceable(path: Path) -> None:
    """Raise ConfigError unless ``path`` is free, or a learner's file, which may be replaced."""
    try:
        if not os.path.lexists(path) or (path.is_file() and _header(path) is not None):
            return
    except OSError as error:
        raise ConfigError(
            f"cannot look at {path}: {error.strerror}; choose another path"
        ) from error
    what = "is a folder" if path.is_dir() else "exists and holds no saved learner"
    raise ConfigError(f"{path} {what}, and is not overwritten; choose another path, or move it")


def write(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write a learner's file, so that a reader, or a crash, finds the old one or the new.

    Args:
        path: Of the file, whose folder exists.
        tensors: By name.
        description: JSON values.

    Raises:
        ConfigError: The path holds something else, or the disk refuses the file.
        TypeError, ValueError: A tensor or a value cannot be stored.
    """
    check_kinds(tensors)
    text = json.dumps(plain_json(description, "the learner's state", nonfinite_as_text=False))
    require_replaceable(path)
    metadata = {
        _KIND: _FORMAT,
        _VERSIONED: str(_VERSION),
        _DESCRIPTION: text,
        _DIGEST: _NO_DIGEST,
    }
    try:
        with replacing(path) as temporary:
            found = write_file(temporary, safetensors_blocks(tensors, metadata))
            with open(temporary, "r+b") as file:
                header = file.read(8 + int.from_bytes(file.read(8), "little"))
                file.seek(8 + header.index(_digest_entry(_NO_DIGEST)))
                file.write(_digest_entry(found["sha256"]))
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror or error}; free space, correct the permissions, "
            "or choose another path"
        ) from error


def _digest_entry(digest: str) -> bytes:
    return f'"{_DIGEST}": "{digest}"'.encode()


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the description in a learner's file, once it is whole.

    Raises:
        CheckpointError: It is missing, of another kind or of a newer version, or damaged.
    """
    try:
        header = _header(path)
        if header is None:
            raise CheckpointError(
                f"{path} holds no saved learner; give the path of a file that hmf.save() wrote"
            )
        version = header.texts.get(_VERSIONED, "")
        if version != str(_VERSION):
            raise CheckpointError(
                f"{path} has format version {version}, expected {_VERSION}; load it with the "
                "version of hypermask_fast that saved it"
            )
        if _digest_of(path, header) != header.texts.get(_DIGEST):
            raise CheckpointError(
                f"{path} was altered or cut: its SHA-256 is not the one in its header; restore it"
            )
        description = json.loads(header.texts[_DESCRIPTION])
        with safe_open(path, framework="pt") as file:
            # Copies do not hang on a file that is replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; check the path") from error
    except (OSError, SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be read ({reason}); restore it") from error
    return tensors, description


def _digest_of(path: Path, header: Header) -> str:
    """Return the digest that a file should have in its header."""
    with open(path, "rb") as file:
        first = file.read(header.size)
        entry = _digest_entry(header.texts.get(_DIGEST, ""))
        digest = hashlib.sha256(first.replace(entry, _digest_entry(_NO_DIGEST), 1))
        while block := file.read(2**23):
            digest.update(block)
    return digest.hexdigest()
