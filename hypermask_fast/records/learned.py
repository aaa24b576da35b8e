"""What a run keeps of each task when it has learned it: the logits of its first test examples."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.files.atomic import fsync_folder, write_bytes_atomic
from hypermask_fast.files.tensor_file import safetensors_blocks

_LOGITS, _DIGEST = "logits", "sha256"


def _path(folder: Path, task_id: int) -> Path:
    return folder / f"task-{task_id:04d}.safetensors"


def _digest(name: str, logits: Tensor) -> str:
    words = f"{name} {tuple(logits.shape)} ".encode()
    return hashlib.sha256(words + logits.contiguous().numpy().tobytes()).hexdigest()


def keep(folder: Path, task_id: int, name: str, logits: Tensor) -> None:
    """Write a task's logits to a file, in place of those of an earlier end of it.

    Args:
        folder: Of these files; made if missing.
        task_id, name: The task.
        logits: float32 (rows, classes), on the CPU.

    Raises:
        ConfigError: The disk refuses the file.
    """
    path = _path(folder, task_id)
    try:
        if not folder.exists():
            folder.mkdir()
            fsync_folder(folder.parent)
    except OSError as error:
        raise ConfigError(
            f"cannot make {folder}: {error.strerror}; correct the permissions of the run's folder"
        ) from error
    texts = {_DIGEST: _digest(name, logits)}
    write_bytes_atomic(path, b"".join(safetensors_blocks({_LOGITS: logits}, texts)))


def kept(folder: Path, task_id: int, name: str) -> Tensor | None:
    """Return the logits that were kept of a task; None where none were.

    Raises:
        CheckpointError: The file is damaged, or of another task.
    """
    path = _path(folder, task_id)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            logits: Tensor = file.get_tensor(_LOGITS).clone()
            digest = (file.metadata() or {}).get(_DIGEST)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be read ({reason}); restore or remove it") from error
    if logits.dtype != torch.float32 or digest != _digest(name, logits):
        raise CheckpointError(
            f"{path} was altered, or is not of the task {name!r}; restore or remove it"
        )
    return logits
