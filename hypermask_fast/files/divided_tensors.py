"""Tensors that processes divide, as files: each writes its parts, and any number reads them.

The files are those of ``torch.distributed.checkpoint``, to which each process writes its part of
divided tensors in pieces of at most 16 MiB, so that none who reads it ever holds a whole one.
PyTorch keeps the places of the pieces as a pickle, ``.metadata``, of which only its own classes are
made.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
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
from hypermask_fast.files.checkpoint_index import check_rows
from hypermask_fast.files.in_all import in_all
from hypermask_fast.files.whole_folder import digest
from hypermask_fast.head.shard import Place, RowShard
from hypermask_fast.training.divided import Part

_PLACES = ".metadata"
_CLASSES = {
    "torch.serialization": ("_get_layout",),
    metadata.__name__: (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    filesystem.__name__: ("_StorageInfo", "_StoragePrefix"),
}
"""Of which the places of pieces consist, beside sizes, dtypes and paths."""


class _Unpickler(pickle.Unpickler):
    """Makes what the places of pieces consist of, and refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch":
            found = getattr(torch, name, None)
            if found is torch.Size or isinstance(found, torch.dtype):
                return found
        elif module.startswith("pathlib"):
            if name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
                return Path
        elif name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise ValueError(f"{_PLACES} holds {module}.{name}, which is no part of a checkpoint")


class _Reader(filesystem.FileSystemReader):
    """Reads the places of pieces without making what else a pickle may hold."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        found = places_in(Path(self.path))
        storage = found.storage_meta or StorageMeta()
        storage.load_id = self.load_id
        found.storage_meta = storage
        return found


def places_in(folder: Path) -> Metadata:
    """Return where the pieces of the tensors in a folder are.

    Raises:
        ValueError: The file holds something else.
    """
    with open(folder / _PLACES, "rb") as file:
        try:
            found = _Unpickler(file).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
            raise ValueError(f"{_PLACES} cannot be read ({error})") from error
    if not isinstance(found, Metadata):
        raise ValueError(f"{_PLACES} holds a {type(found).__name__}")
    return found


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


def write_parts(
    folder: Path, parts: Mapping[str, Part], place: Place, path: Path
) -> dict[str, dict[str, Any]]:
    """Write tensors into a folder, in all processes; return length and SHA-256 of each file.

    Args:
        folder: An empty one, which all processes reach.
        parts: Tensors by name, the same names in all processes; of whole ones one process writes.
        place: This process among those that call this.
        path: Of the checkpoint, as errors name it.

    Raises:
        CheckpointError: The disk is full or refuses the data; in all processes.
    """
    with disk_in_a_sentence(path), _exchanging(place):
        save_state_dict(
            dict(parts),
            storage_writer=filesystem.FileSystemWriter(folder, sync_files=True),
            planner=_SavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=place.group,
            no_dist=place.world == 1,
        )

    def own_files() -> dict[str, dict[str, Any]]:
        with disk_in_a_sentence(path):
            names = [p.name for p in folder.glob(f"__{place.rank}_*")]
            names += [_PLACES] if place.rank == 0 else []
            return {name: digest(folder / name) for name in names}

    return {name: entry for own in in_all(place, own_files) for name, entry in own.items()}


def read_parts(folder: Path, parts: Mapping[str, Part], place: Place, path: Path) -> None:
    """Fill the parts of this process from a folder's files, which were found whole.

    Args:
        folder, parts, place, path: As in :func:`write_parts`.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
    """
    with disk_in_a_sentence(path), _exchanging(place):
        load_state_dict(
            dict(parts),
            storage_reader=_Reader(folder),
            planner=_LoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=place.group,
            no_dist=place.world == 1,
        )


def read_rows(
    folder: Path, dims: Mapping[str, int], shard: RowShard | None, path: Path
) -> dict[str, Tensor]:
    """Return divided tensors from a folder's files, which were found whole, on the host.

    Args:
        folder, path: As in :func:`write_parts`.
        dims: Their names, and the dimension that the rows are along.
        shard: The rows of this process, of which all that share them call this. None: all rows.

    Raises:
        CheckpointError: A tensor is missing or is of another number of rows.
    """
    with disk_in_a_sentence(path):
        saved = places_in(folder).state_dict_metadata
    parts = {}
    for name, dim in dims.items():
        found = saved.get(name)
        if not isinstance(found, TensorStorageMetadata) or dim >= len(found.size):
            raise CheckpointError(f"{path} has no rows of {name}; restore it")
        size, shape = found.size[dim], list(found.size)
        check_rows(path, name, size, shard)
        shape[dim] = size if shard is None else shard.rows
        own = torch.empty(shape, dtype=found.properties.dtype)
        parts[name] = Part(own, dim, 0 if shard is None else shard.first, size)
    place = Place(0, 1) if shard is None else shard.place
    read_parts(folder, parts, place, path)
    return {name: part.own for name, part in parts.items()}


@contextmanager
def _exchanging(place: Place) -> Iterator[None]:
    """Let PyTorch exchange what it writes or reads; its own errors are of another kind."""
    if place.world == 1:
        yield
        return
    with place._replace(measured=None).exchanging():  # nearly all of it is the disk's
        yield


@contextmanager
def disk_in_a_sentence(path: Path) -> Iterator[None]:
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
            f"cannot write or read {path}: {error.strerror or error}; free space, correct the "
            "permissions, or choose another path"
        ) from error
