"""Checkpoints that processes write together and any other number of processes reads.

A checkpoint is a folder of ``torch.distributed.checkpoint``, in which each process wrote its part
of divided tensors in pieces of at most 16 MiB, so that none who reads it ever holds a whole one. A
JSON state and an index with length and SHA-256 of every file stand beside them. PyTorch keeps the
places of the pieces as a pickle, ``.metadata``: load checkpoints that you trust.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict

from hypermask_fast.errors import CheckpointError
from hypermask_fast.files.atomic import TEMPORARY, fsync_folder
from hypermask_fast.files.in_all import in_all
from hypermask_fast.files.plain_json import plain_json
from hypermask_fast.files.tensor_file import write_file
from hypermask_fast.head.shard import Place
from hypermask_fast.training.divided import Part

FORMAT, VERSION = "hypermask_fast sharded", 1
_STATE, _INDEX = "state.json", "index.json"
_REPLACED = ".replaced-"


class _SavePlanner(DefaultSavePlanner):
    """Writes parts in pieces."""

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        storage_meta: StorageMeta | None = None,
        is_coordinator: bool = False,
    ) -> None:
        super().set_up_planner(state_dict, storage_meta, is_coordinator)
        self._pieces: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def create_local_plan(self) -> SavePlan:
        items = []
        for name, part in self.state_dict.items():
            kind = WriteItemType.TENSOR if part.dim is None else WriteItemType.SHARD
            for begin, piece in part.pieces():
                self._pieces[name, begin] = piece
                data = TensorWriteData(
                    chunk=ChunkStorageMetadata(_size(begin), piece.shape),
                    properties=TensorProperties.create_from_tensor(piece),
                    size=_size(part.shape),
                )
                items.append(WriteItem(MetadataIndex(name, _size(begin)), kind, tensor_data=data))
        self.plan = SavePlan(items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self._pieces[index.fqn, tuple(index.offset)]


class _LoadPlanner(DefaultLoadPlanner):
    """Reads what a process's parts need, from pieces of whatever sizes."""

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        items: list[ReadItem] = []
        for name, part in self.state_dict.items():
            saved = self.metadata.state_dict_metadata.get(name)
            if not isinstance(saved, TensorStorageMetadata) or tuple(saved.size) != part.shape:
                size = getattr(saved, "size", None)
                raise ValueError(f"{name} has shape {size}, expected {part.shape}")
            begin = [0] * len(part.shape)
            if part.dim is not None:
                begin[part.dim] = part.first
            own = ChunkStorageMetadata(_size(begin), part.own.shape)
            items += create_read_items_for_chunk_list(name, saved, [own])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        own: Tensor = self.state_dict[index.fqn].own
        return own


def _size(numbers: Sequence[int]) -> torch.Size:
    return torch.Size(numbers)


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
        with _in_a_sentence(path):
            shutil.rmtree(temporary, ignore_errors=True)
            _put_back(path)
            temporary.mkdir(parents=True)

    in_all(place, make_room)

    def write() -> None:
        with _in_a_sentence(path):
            save_state_dict(
                dict(parts),
                storage_writer=FileSystemWriter(temporary, sync_files=True),
                planner=_SavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=place.group,
                no_dist=place.world == 1,
            )

    def own_files() -> dict[str, dict[str, Any]]:
        with _in_a_sentence(path):
            names = [p.name for p in temporary.glob(f"__{place.rank}_*")]
            names += [".metadata"] if is_first else []
            return {name: _digest(temporary / name) for name in names}

    def finish(files: Mapping[str, Any]) -> None:
        if not is_first:
            return
        with _in_a_sentence(path):
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
        write()
        files: dict[str, Any] = {}
        for found in in_all(place, own_files):
            files |= found
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
                same = _digest(folder / name) == files[name]
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
    with _in_a_sentence(path):
        load_state_dict(
            dict(parts),
            storage_reader=FileSystemReader(_existing(path)),
            planner=_LoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=place.group,
            no_dist=place.world == 1,
        )


@contextlib.contextmanager
def _in_a_sentence(path: Path) -> Iterator[None]:
    """Turn what the disk or PyTorch says of a checkpoint into an error of this package."""
    try:
        with warnings.catch_warnings():
            # Of one process, which is what is meant.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except (CheckpointException, ValueError) as error:  # the first is no Exception
        cause: BaseException = error
        rank = 0
        if isinstance(error, CheckpointException):
            rank, (cause, _) = next(iter(error.failures.items()))
        text = " ".join(str(cause).split()) or type(cause).__name__
        raise CheckpointError(
            f"process {rank} cannot write or read {path}: {text}; give the right one, free space "
            "or correct the permissions"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; free space, correct the permissions, "
            "or choose another path"
        ) from error


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


def _digest(path: Path) -> dict[str, Any]:
    """Return a file's length and SHA-256."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}
