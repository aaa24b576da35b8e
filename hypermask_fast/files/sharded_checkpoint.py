"""Checkpoints that processes write together and any other number of processes reads.

A checkpoint is a folder with the files of ``torch.distributed.checkpoint``, a JSON state, and an
index with length and SHA-256 of every file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hypermask_fast.errors import CheckpointError
from hypermask_fast.files.checkpoint_index import verify_files
from hypermask_fast.files.divided_tensors import disk_in_a_sentence, read_parts, write_parts
from hypermask_fast.files.in_all import in_all
from hypermask_fast.files.plain_json import plain_json
from hypermask_fast.files.tensor_file import write_file
from hypermask_fast.files.whole_folder import (
    INDEX,
    put_back,
    replaced_of,
    temporary_of,
    whole_folder,
    write_index,
)
from hypermask_fast.head.shard import Place
from hypermask_fast.training.divided import Part

FORMAT, VERSION = "hypermask_fast sharded", 1
_STATE = "state.json"


def save(path: Path, parts: Mapping[str, Part], state: Mapping[str, Any], place: Place) -> None:
    """Write a checkpoint; a kill at any moment leaves the old one, or the new one, whole.

    Args:
        path: Its folder, which all processes reach. One of this kind is replaced.
        parts: Tensors by name, the same names in all processes; of whole ones one process writes.
        state: JSON values, those of process 0.
        place: This process among those that call this.

    Raises:
        CheckpointError: The disk is full or refuses the data, or the path holds something else.
        TypeError, ValueError: The state holds what JSON cannot.
    """
    text = json.dumps(plain_json(state, "state", nonfinite_as_text=False)).encode()
    is_first = place.rank == 0
    with ExitStack() as stack:

        def begin() -> None:
            if not is_first:
                return
            if path.exists() and _read_json(path / INDEX).get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} exists and holds no checkpoint of processes; choose "
                    "another path, or move it"
                )
            with disk_in_a_sentence(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(temporary_of(path), ignore_errors=True)
                put_back(path)
                stack.enter_context(whole_folder(path))

        def end() -> None:
            if not is_first:
                return
            with disk_in_a_sentence(path):
                entry = write_file(temporary_of(path) / _STATE, [text])
                write_index(temporary_of(path), FORMAT, VERSION, {**files, _STATE: entry})
                stack.close()

        in_all(place, begin)
        files = write_parts(temporary_of(path), parts, place, path)
        in_all(place, end)


def read_state(path: Path, place: Place) -> dict[str, Any]:
    """Return the state of a checkpoint, once the processes have found all its files whole.

    Raises:
        CheckpointError: It is missing, of another kind or of a newer version, or damaged.
    """

    def verified() -> None:
        folder = _existing(path)
        index = _read_json(folder / INDEX)
        files = index.get("files")
        if (
            index.get("format") != FORMAT
            or not isinstance(files, dict)
            or not all(isinstance(entry, dict) for entry in files.values())
            or _STATE not in files
        ):
            raise CheckpointError(
                f"{path} holds no checkpoint of processes; give the path of a folder that "
                "save_sharded() wrote"
            )
        if index.get("version") != VERSION:
            raise CheckpointError(
                f"{path} has format version {index.get('version')}, expected {VERSION}; load it "
                "with the version of hypermask_fast that saved it"
            )
        verify_files(folder, files, sorted(files)[place.rank :: place.world])

    in_all(place, verified)
    return _read_json(_existing(path) / _STATE)


def read(path: Path, parts: Mapping[str, Part], place: Place) -> None:
    """Fill the parts of this process from a checkpoint that :func:`read_state` found whole.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
    """
    read_parts(_existing(path), parts, place, path)


def _existing(path: Path) -> Path:
    """Return a checkpoint's folder, also where a kill left it under its other name."""
    replaced = replaced_of(path)
    found = replaced if replaced.is_dir() and not path.exists() else path
    if not found.is_dir():
        raise CheckpointError(f"the checkpoint {path} does not exist; check the path")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; an empty one where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
