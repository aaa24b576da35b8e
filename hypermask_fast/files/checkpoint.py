"""Checkpoints: named tensors and a JSON state, written atomically, verified on reading, no pickle.

A checkpoint is a folder ``step-000000123`` with ``tensors.safetensors``, ``state.json`` and
``index.json`` (length and SHA-256 of the other two). One process at a time may save into a folder:
hold the lock of `RunFolder`.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hypermask_fast.errors import CheckpointError
from hypermask_fast.files.atomic import TEMPORARY, fsync_folder
from hypermask_fast.files.plain_json import plain_json
from hypermask_fast.files.tensor_file import check_tensors, safetensors_blocks, write_file

FORMAT = "hypermask_fast"
VERSION = 1

_Read = TypeVar("_Read")

_TENSORS, _STATE, _INDEX = "tensors.safetensors", "state.json", "index.json"
_REPLACED = ".replaced-"
_NAME = re.compile(rf"(?:{re.escape(_REPLACED)})?step-(\d{{9,}})")


@dataclass(frozen=True)
class Checkpoint:
    """What `load` returns.

    Attributes:
        tensors: By name; they own their memory.
        state: As given to `save`.
        step: As given to `save`.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    step: int


def _found(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of the checkpoints in ``folder``, newest first."""
    found: dict[int, Path] = {}
    for entry in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []:
        match = _NAME.fullmatch(entry.name)
        if match and entry.is_dir():
            # "step-" comes before ".replaced-step-", which counts only where a kill left it alone.
            found.setdefault(int(match[1]), entry)
    return sorted(found.items(), reverse=True)


def _discard(path: Path) -> None:
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


def tidy(folder: Path) -> None:
    """Undo what a save that was killed left behind.

    Raises:
        CheckpointError: The disk refuses it.
    """
    try:
        _tidy(folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot tidy the checkpoints in {folder}: {error.strerror or error}; "
            "free space or correct the permissions, then resume"
        ) from error


def _tidy(folder: Path) -> None:
    for entry in list(folder.iterdir()) if folder.is_dir() else []:
        if entry.name.startswith(TEMPORARY):
            _discard(entry)
        elif entry.name.startswith(_REPLACED):
            original = folder / entry.name.removeprefix(_REPLACED)
            if original.exists():
                _discard(entry)
            else:
                entry.rename(original)


def _require_room(folder: Path, step: int, payload: int) -> None:
    """Raise CheckpointError where a checkpoint of ``payload`` bytes cannot become the newest."""
    newest, path = next(iter(_found(folder)), (step, folder))
    if newest > step:
        raise CheckpointError(
            f"the checkpoint {path} is later than step {step}, which is to be saved; move it away "
            "to continue from the earlier step"
        )
    needed = payload + payload // 100 + 2**20  # whole blocks of the file system, other writers
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"a checkpoint needs {needed} bytes and {folder} has {free} bytes free, so none was "
            "written; free space or choose another --out, then resume"
        )


def save(
    folder: str | os.PathLike[str],
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
) -> Path:
    """Write a checkpoint; a kill at any moment leaves the newest whole one readable.

    Tensors may share storage, be non-contiguous, or live on a GPU (8 MiB at a time pass the host).

    Args:
        folder: Where the checkpoints of the run are; made if missing.
        step: Steps done so far, at least 0, not earlier than the newest checkpoint. A checkpoint of
            the same step is replaced.
        tensors: Dense tensors by name; floating ones must be finite.
        state: Counters, settings, manifest: str keys, JSON values (tuples come back as lists).
        keep: How many of the newest checkpoints stay, at least 1.

    Returns:
        The folder of the new checkpoint.

    Raises:
        TrainingError: A tensor holds NaN or infinity; nothing is written or removed.
        CheckpointError: The disk is full or refuses the data, or a later checkpoint exists; the
            earlier ones remain.
        TypeError: ``state`` holds a value that JSON cannot.
        ValueError: An argument is out of range, or a tensor or number cannot be stored.
    """
    folder, step = Path(folder), operator.index(step)
    if step < 0 or keep < 1:
        raise ValueError(f"step is {step} and keep is {keep}, expected step >= 0 and keep >= 1")
    check_tensors(tensors, step)
    plain = plain_json(state, "state", nonfinite_as_text=False)
    text = json.dumps({"step": step, "state": plain}).encode()

    final = folder / f"step-{step:09d}"
    replaced = folder / f"{_REPLACED}{final.name}"
    temporary = folder / f"{TEMPORARY}{final.name}"
    header = sum(256 + 6 * len(name) for name in tensors)
    payload = header + len(text) + sum(tensor.nbytes for tensor in tensors.values())
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            fsync_folder(folder.parent)
        _tidy(folder)
        _require_room(folder, step, payload)
        temporary.mkdir()
        files = {
            _TENSORS: write_file(temporary / _TENSORS, safetensors_blocks(tensors)),
            _STATE: write_file(temporary / _STATE, [text]),
        }
        index = {"format": FORMAT, "version": VERSION, "files": files}
        write_file(temporary / _INDEX, [json.dumps(index, indent=1).encode()])
        fsync_folder(temporary)
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        fsync_folder(folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint {final} of about {payload} bytes: "
            f"{error.strerror or error}; free space or correct the permissions, then resume"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if replaced.exists():
        _discard(replaced)
    for _, old in _found(folder)[keep:]:
        _discard(old)
    return final


def by_step(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in ``folder`` by step, the newest first."""
    return dict(_found(folder))


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """Return the newest checkpoint in ``folder``, or None where there is none."""
    return next((path for _, path in _found(Path(folder))), None)


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} {what}; restore it, or load another checkpoint")


def _read_index(path: Path) -> dict[str, Any]:
    """Return the entries of the files in the checkpoint ``path``."""
    if not path.is_dir():
        raise CheckpointError(
            f"the checkpoint folder {path} does not exist; check the path, or start a new run"
        )
    index_path = path / _INDEX
    try:
        index = json.loads(index_path.read_bytes())
    except FileNotFoundError as error:
        raise _damaged(index_path, "is missing") from error
    except ValueError as error:  # covers broken JSON and broken UTF-8
        raise _damaged(
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
        version != VERSION
        or not isinstance(files, dict)
        or set(files) != {_TENSORS, _STATE}
        or not all(isinstance(entry, dict) for entry in files.values())
    ):
        raise _damaged(
            index_path, f"was altered: expected version {VERSION} and entries of 2 files"
        )
    return files


def _verify(path: Path, *names: str) -> None:
    """Raise CheckpointError, naming the file, unless lengths and digests are those of the index.

    Args:
        path: The checkpoint.
        *names: Of the files; default: all.
    """
    for name, expected in _read_index(path).items():
        if names and name not in names:
            continue
        try:
            with open(path / name, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise _damaged(path / name, "is missing") from error
        if size != expected.get("bytes"):
            raise _damaged(
                path / name,
                f"has {size} bytes, expected {expected.get('bytes')}: it was cut or added to",
            )
        if digest != expected.get("sha256"):
            raise _damaged(
                path / name,
                f"was altered: its SHA-256 is {digest}, expected {expected.get('sha256')}",
            )


def _read_state(path: Path) -> tuple[dict[str, Any], int]:
    """Return the state and the step of a checkpoint, whose ``state.json`` was verified."""
    try:
        stored = json.loads((path / _STATE).read_bytes())
        state, step = stored["state"], operator.index(stored["step"])
        is_right = isinstance(state, dict)
    except (KeyError, TypeError, ValueError):
        is_right = False
    if not is_right:
        raise CheckpointError(
            f"{path / _STATE} holds no state and step; another version of {FORMAT} made it, which "
            "has to load it"
        )
    name = _NAME.fullmatch(path.name)
    if name and int(name[1]) != step:
        raise _damaged(path, f"is of step {step}: it was renamed")
    return state, step


def load(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Checkpoint:
    """Read the checkpoint in the folder ``path`` after verifying lengths and digests.

    Args:
        path: A folder that `save` returned.
        device: Where the tensors go, one after the other.

    Raises:
        CheckpointError: The folder or a file is missing, truncated, altered, of another format or
            of a newer version.
    """
    path = Path(path)
    try:
        _verify(path)
        with safe_open(path / _TENSORS, framework="pt") as file:
            # Copies are aligned, and do not hang on a file that is rotated away.
            tensors = {
                name: file.get_tensor(name).to(device, copy=True)
                for name in file.keys()  # noqa: SIM118 (not a dict)
            }
        state, step = _read_state(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, f"cannot be read ({error})") from error
    return Checkpoint(tensors, state, step)


def load_state(path: Path) -> dict[str, Any]:
    """Read only the state of the checkpoint in the folder ``path``; see `load`."""
    try:
        _verify(path, _STATE)
        return _read_state(path)[0]
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error})") from error


def _of_newest(folder: Path, read: Callable[[Path], _Read]) -> _Read:
    """Return what ``read`` does of the newest checkpoint; see `load_latest`."""
    found = [path for _, path in _found(folder)]
    if not found:
        raise CheckpointError(
            f"{folder} holds no checkpoint, expected a folder such as step-000000100; check the "
            "path, or start a new run"
        )
    try:
        return read(found[0])
    except CheckpointError as error:
        for older in found[1:]:
            try:
                _verify(older)
            except (CheckpointError, OSError):
                continue
            fix = f"{older} is older and whole: move {found[0]} away to continue from it"
            break
        else:
            fix = "no older checkpoint is whole"
        raise CheckpointError(f"{error} ({fix})") from error


def load_latest(
    folder: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Read the newest checkpoint in ``folder``; see `load`.

    Raises:
        CheckpointError: There is none, or the newest is damaged; an older whole one is then named,
            never used unasked.
    """
    return _of_newest(Path(folder), lambda path: load(path, device=device))


def load_latest_state(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read only the state of the newest checkpoint in ``folder``; see `load_latest`."""
    return _of_newest(Path(folder), load_state)
