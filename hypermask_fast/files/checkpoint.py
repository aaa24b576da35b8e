"""Checkpoints: named tensors and a JSON state, written atomically, verified on reading, no pickle.

A checkpoint is a folder ``step-000000123`` with ``tensors.safetensors``, ``state.json`` and
``index.json`` (length and SHA-256 of the others). Where processes share a head, ``rows`` has theirs
(`divided_tensors`), and `row_checkpoint` writes it. One process at a time, or these, may save into
a folder: hold the lock of `RunFolder`.
"""

from __future__ import annotations

import json
import operator
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hypermask_fast.errors import CheckpointError
from hypermask_fast.files.atomic import TEMPORARY, fsync_folder
from hypermask_fast.files.checkpoint_index import (
    FORMAT,
    ROWS,
    STATE,
    TENSORS,
    VERSION,
    check_rows,
    damaged,
    verify,
)
from hypermask_fast.files.in_all import in_all
from hypermask_fast.files.plain_json import plain_json
from hypermask_fast.files.tensor_file import check_tensors, safetensors_blocks, write_file
from hypermask_fast.files.whole_folder import (
    REPLACED,
    discard,
    put_back,
    temporary_of,
    whole_folder,
    write_index,
)
from hypermask_fast.head.shard import Place, RowShard
from hypermask_fast.training.divided import derive

_Read = TypeVar("_Read")

_NAME = re.compile(rf"(?:{re.escape(REPLACED)})?step-(\d{{9,}})")


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
            discard(entry)
        elif entry.name.startswith(REPLACED):
            put_back(folder / entry.name.removeprefix(REPLACED))


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
    divided: Mapping[str, int] = MappingProxyType({}),
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
        divided: Names of tensors that processes which share a head may divide, and the dimension
            of the rows.
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
    text = encoded(state, step, divided)
    with new_checkpoint(folder, step, payload_of(tensors) + len(text), keep) as made:
        made.write(tensors, text)
    return made.final


def encoded(state: Mapping[str, Any], step: int, divided: Mapping[str, int]) -> bytes:
    """Return the JSON text of a state; arguments and errors as of `save`."""
    plain = plain_json(state, "state", nonfinite_as_text=False)
    noted = {"divided": dict(divided)} if divided else {}
    return json.dumps({"step": step, "state": plain, **noted}).encode()


def payload_of(tensors: Mapping[str, Tensor]) -> int:
    """Return about how many bytes tensors take in a file."""
    return sum(256 + 6 * len(name) + tensor.nbytes for name, tensor in tensors.items())


class NewCheckpoint:
    """A checkpoint that is being written.

    Attributes:
        final: The folder that it gets.
        temporary: The folder that its files are in until all are there.
        files: Length and SHA-256 of those that are there, by name.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.final = folder / f"step-{step:09d}"
        self.temporary = temporary_of(self.final)
        self.files: dict[str, Any] = {}

    def write(self, tensors: Mapping[str, Tensor], text: bytes) -> None:
        """Write tensors and the text of a state."""
        blocks = safetensors_blocks(tensors)
        self.files[TENSORS] = write_file(self.temporary / TENSORS, blocks)
        self.files[STATE] = write_file(self.temporary / STATE, [text])


@contextmanager
def new_checkpoint(folder: Path, step: int, payload: int, keep: int) -> Iterator[NewCheckpoint]:
    """Make a checkpoint of the files that are written in a ``with`` block; see `save`.

    Args:
        folder, step, keep: As in `save`.
        payload: About how many bytes it takes.
    """
    made = NewCheckpoint(folder, step)
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            fsync_folder(folder.parent)
        _tidy(folder)
        _require_room(folder, step, payload)
        with whole_folder(made.final):
            yield made
            version = VERSION if made.files.keys() - {TENSORS, STATE} else 1
            write_index(made.temporary, FORMAT, version, made.files)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint {made.final} of about {payload} bytes: "
            f"{error.strerror or error}; free space or correct the permissions, then resume"
        ) from error
    for _, old in _found(folder)[keep:]:
        discard(old)


def by_step(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in ``folder`` by step, the newest first."""
    return dict(_found(folder))


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """Return the newest checkpoint in ``folder``, or None where there is none."""
    return next((path for _, path in _found(Path(folder))), None)


def _read_state(path: Path) -> tuple[dict[str, Any], int, dict[str, int]]:
    """Return the state, the step and the divided tensors of a checkpoint that was verified."""
    try:
        stored = json.loads((path / STATE).read_bytes())
        state, step = stored["state"], operator.index(stored["step"])
        divided = stored.get("divided", {})
        is_right = isinstance(state, dict) and isinstance(divided, dict)
    except (AttributeError, KeyError, TypeError, ValueError):
        is_right = False
    if not is_right:
        raise CheckpointError(
            f"{path / STATE} holds no state and step; another version of {FORMAT} made it, which "
            "has to load it"
        )
    name = _NAME.fullmatch(path.name)
    if name and int(name[1]) != step:
        raise damaged(path, f"is of step {step}: it was renamed")
    return state, step, divided


def _own(
    path: Path, name: str, value: Tensor, divided: Mapping[str, int], shard: RowShard | None
) -> Tensor:
    """Return this process's rows of a tensor; all of one that is not divided."""
    dim = divided.get(name)
    if shard is None or dim is None:
        return value
    check_rows(path, name, value.shape[dim], shard)
    return value.narrow(dim, shard.first, shard.rows)


def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    shard: RowShard | None = None,
) -> Checkpoint:
    """Read the checkpoint in the folder ``path`` after verifying lengths and digests.

    Args:
        path: A folder that `save` returned.
        device: Where the tensors go, one after the other.
        shard: The rows of this process, where processes share a head; all of them call this, and
            of divided tensors each gets its rows. Default: all rows.

    Raises:
        CheckpointError: The folder or a file is missing, truncated, altered, of another format or
            of a newer version; in all processes.
    """
    path = Path(path)
    place = Place(0, 1) if shard is None else shard.place
    try:
        in_all(place, lambda: verify(path, slice(place.rank, None, place.world)))
        state, step, divided = _read_state(path)
        if shard is not None and not divided:
            raise CheckpointError(
                f"the checkpoint {path} does not say which tensors processes divide, for an "
                "earlier version made it; give shard_head=False in config.toml"
            )
        with safe_open(path / TENSORS, framework="pt") as file:
            # Copies are aligned, and do not hang on a file that is rotated away.
            tensors = {
                name: _own(path, name, file.get_tensor(name), divided, shard).to(device, copy=True)
                for name in file.keys()  # noqa: SIM118 (not a dict)
            }
        elsewhere = {name: dim for name, dim in divided.items() if name not in tensors}
        if elsewhere:
            from hypermask_fast.files.divided_tensors import read_rows  # whose imports take long

            rows = read_rows(path / ROWS, elsewhere, shard, path)
            tensors |= {name: value.to(device) for name, value in rows.items()}
        if elsewhere or shard is not None:
            derive(tensors)
    except (OSError, SafetensorError) as error:
        raise damaged(path, f"cannot be read ({error})") from error
    return Checkpoint(tensors, state, step)


def load_state(path: Path) -> dict[str, Any]:
    """Read only the state of the checkpoint in the folder ``path``; see `load`."""
    try:
        verify(path, [STATE])
        return _read_state(path)[0]
    except OSError as error:
        raise damaged(path, f"cannot be read ({error})") from error


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
                verify(older)
            except (CheckpointError, OSError):
                continue
            fix = f"{older} is older and whole: move {found[0]} away to continue from it"
            break
        else:
            fix = "no older checkpoint is whole"
        raise CheckpointError(f"{error} ({fix})") from error


def load_latest(
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    shard: RowShard | None = None,
) -> Checkpoint:
    """Read the newest checkpoint in ``folder``; see `load`.

    Raises:
        CheckpointError: There is none, or the newest is damaged; an older whole one is then named,
            never used unasked.
    """
    return _of_newest(Path(folder), lambda path: load(path, device=device, shard=shard))


def load_latest_state(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read only the state of the newest checkpoint in ``folder``; see `load_latest`."""
    return _of_newest(Path(folder), load_state)
