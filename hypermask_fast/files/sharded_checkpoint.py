"""Checkpoints that processes write together and any other number of processes reads.

A checkpoint is a folder with the files of ``torch.distributed.checkpoint``, a JSON state, and an
index with length and SHA-256 of every file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypermask_fast.errors import CheckpointError
from hypermask_fast.files.atomic import TEMPORARY, fsync_folder
from hypermask_fast.files.divided_tensors import digest, disk_in_a_sentence, read_parts, write_parts
from hypermask_fast.files.in_all import in_all
from hypermask_fast.files.plain_json import plain_json
from hypermask_fast.files.tensor_file import write_file
from hypermask_fast.head.shard import Place
from hypermask_fast.training.divided import Part

FORMAT, VERSION = "hypermask_fast sharded", 1
_STATE, _INDEX = "state.json", "index.json"
_REPLACED = ".replaced-"


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
    temporary = path.with_name(f"{TEMPORARY}{path.name}")

    def make_room() -> None:
        if not is_first:
            return
        if path.exists() and _read_json(path / _INDEX).get("format") != FORMAT:
            raise CheckpointError(
                f"{path} exists and holds no checkpoint of processes; choose "
                "another path, or move it"
            )
        with disk_in_a_sentence(path):
            shutil.rmtree(temporary, ignore_errors=True)
            _put_back(path)
            temporary.mkdir(parents=True)

    in_all(place, make_room)

    def finish(files: Mapping[str, Any]) -> None:
        if not is_first:
            return
        with disk_in_a_sentence(path):
            files = {**files, _STATE: write_file(temporary / _STATE, [text])}
            index = {"format": FORMAT, "version": VERSION, "files": files}
            write_file(temporary / _INDEX, [json.dumps(index, indent=1).encode()])
            fsync_folder(temporary)
            replaced = path.with_name(f"{_REPLACED}{path.name}")
            if path.exists():
                path.rename(replaced)
            temporary.rename(path)
            fsync_folder(path.parent)
            shutil.rmtree(replaced, ignore_errors=True)

    try:
        files = write_parts(temporary, parts, place, path)
        in_all(place, lambda: finish(files))
    finally:
        if is_first:
            shutil.rmtree(temporary, ignore_errors=True)


def read_state(path: Path, place: Place) -> dict[str, Any]:
    """Return the state of a checkpoint, once the processes have found all its files whole.

    Raises:
        CheckpointError: It is missing, of another kind or of a newer version, or damaged.
    """

    def verified() -> None:
        folder = _existing(path)
        index = _read_json(folder / _INDEX)
        files = index.get("files")
        if index.get("format") != FORMAT or not isinstance(files, dict) or _STATE not in files:
            raise CheckpointError(
                f"{path} holds no checkpoint of processes; give the path of a folder that "
                "save_sharded() wrote"
            )
        if index.get("version") != VERSION:
            raise CheckpointError(
                f"{path} has format version {index.get('version')}, expected {VERSION}; load it "
                "with the version of hypermask_fast that saved it"
            )
        for name in sorted(files)[place.rank :: place.world]:
            try:
                same = digest(folder / name) == files[name]
            except OSError as error:
                raise CheckpointError(
                    f"{folder / name} cannot be read ({error.strerror}); restore it"
                ) from error
            if not same:
                raise CheckpointError(
                    f"{folder / name} was altered or cut: its length or SHA-256 is not the one in "
                    f"{_INDEX}; restore it"
                )

    in_all(place, verified)
    return _read_json(_existing(path) / _STATE)


def read(path: Path, parts: Mapping[str, Part], place: Place) -> None:
    """Fill the parts of this process from a checkpoint that :func:`read_state` found whole.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
    """
    read_parts(_existing(path), parts, place, path)


def _put_back(path: Path) -> None:
    """Undo a replacement that a kill left half done."""
    replaced = path.with_name(f"{_REPLACED}{path.name}")
    if not replaced.exists():
        return
    if path.exists():
        shutil.rmtree(replaced)
    else:
        replaced.rename(path)


def _existing(path: Path) -> Path:
    """Return a checkpoint's folder, also where a kill left it under its other name."""
    replaced = path.with_name(f"{_REPLACED}{path.name}")
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
