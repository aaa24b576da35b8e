"""Runs of several seeds in one folder: begun, stopped and continued as a whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypermask_fast.errors import ConfigError, HypermaskError, Stopped, TrainingError
from hypermask_fast.runs import run
from hypermask_fast.runs.atomic import write_text_atomic
from hypermask_fast.runs.folder import FolderLock, RunFolder, require_vacant
from hypermask_fast.runs.run import RunResult
from hypermask_fast.settings.config import RunConfig

_SEEDS, _RUN = "seeds.json", "seed-"

Failed = Callable[[int, Exception], None]
"""Takes the seed of a run that failed, and why."""


def _digest(settings: str, seeds: int) -> str:
    return hashlib.sha256(f"{seeds}\n{settings}".encode()).hexdigest()


def require_vacant_seeds(path: Path) -> None:
    """Raise ConfigError unless runs may be made in ``path``, or in place of some that never began.

    Raises:
        ConfigError: It holds a run that began, or other files.
    """
    if not (path / _SEEDS).is_file():
        require_vacant(path)
        return
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(_RUN):
            try:
                require_vacant(entry)
            except ConfigError as error:
                raise ConfigError(
                    f"{path} holds runs already; continue them with `hypermask resume {path}` or "
                    "choose another --out"
                ) from error


def holds_seeds(path: Path) -> bool:
    """Return whether ``path`` is the folder of runs of several seeds."""
    return (path / _SEEDS).is_file()


def folder_of(path: Path, seed: int) -> RunFolder:
    """Return the folder of the run with a seed; nothing is touched."""
    return RunFolder(path / f"{_RUN}{seed}")


def folders(path: Path) -> list[Path]:
    """Return the folders of the runs of several seeds, of which some may not have begun.

    Raises:
        ConfigError: The record of their settings was altered.
    """
    config, count = read(path)
    seeds = range(config.run.seed, config.run.seed + count)
    return [folder_of(path, seed).path for seed in seeds]


def read(path: Path) -> tuple[RunConfig, int]:
    """Return the settings of the first run, and the number of runs.

    Raises:
        ConfigError: The file of the folder that holds them was altered.
    """
    file = path / _SEEDS
    try:
        stored: Any = json.loads(file.read_bytes())
        settings, seeds = str(stored["settings"]), int(stored["seeds"])
        is_whole = stored["sha256"] == _digest(settings, seeds)
    except (KeyError, OSError, TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise ConfigError(
            f"{file} was altered; restore it, or continue the runs in {path} one by one with "
            "`hypermask resume`"
        )
    return RunConfig.from_toml(settings), seeds


def train(
    config: RunConfig, out: Path, seeds: int, *, memory: int | None = None, **options: Any
) -> Iterator[RunResult]:
    """Train a run for each of several seeds, in the folders ``seed-S`` of ``out``.

    Args:
        config: The settings, with the first seed; the next ones count up from it.
        out: The folder; it must not hold runs already.
        seeds: How many.
        memory, **options: As in :func:`hypermask_fast.runs.run.train`, and ``begins``, called with
            the seed of a run before it begins or goes on, and ``failed``: with it a run that fails
            is told to it, and the others follow.

    Yields:
        What each run ends with, when it does.

    Raises:
        ConfigError: As in :func:`hypermask_fast.runs.run.train`, or the last seed is out of range.
        DataError, TrainingError, Stopped: Of a run.
    """
    config.replace(seed=config.run.seed + seeds - 1)
    require_vacant_seeds(out)
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {out}: {error.strerror}; correct the permissions or choose "
            "another --out"
        ) from error
    with FolderLock(out):
        require_vacant_seeds(out)  # another process may have come first
        for entry in out.glob(f"{_RUN}*"):
            with FolderLock(entry):  # of a run that never began, with other settings maybe
                shutil.rmtree(entry)
        settings = config.to_toml()
        record = {"seeds": seeds, "sha256": _digest(settings, seeds), "settings": settings}
        write_text_atomic(out / _SEEDS, json.dumps(record, indent=1) + "\n")
        try:
            yield from _continued(out, config, seeds, memory=memory, **options)
        finally:
            if not any(out.glob(f"{_RUN}*")):  # none could start
                (out / _SEEDS).unlink()
                if is_new:
                    _remove(out)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):  # somebody else has put a file there
        (folder / ".lock").unlink()
        folder.rmdir()


def resume(path: Path, *, allow_changes: bool = False, **options: Any) -> Iterator[RunResult]:
    """Continue what :func:`train` began: keep what has ended, resume, begin what is missing.

    Args:
        path: The folder.
        allow_changes, **options: As in :func:`hypermask_fast.runs.run.resume` and :func:`train`.

    Yields:
        What each run ends with, in the order of the seeds.

    Raises:
        ConfigError, CheckpointError, DataError, TrainingError, Stopped: Of a run.
    """
    with FolderLock(path):
        config, seeds = read(path)
        yield from _continued(path, config, seeds, allow_changes=allow_changes, **options)


def _continued(
    path: Path,
    config: RunConfig,
    seeds: int,
    *,
    allow_changes: bool = False,
    begins: Callable[[int], None] | None = None,
    failed: Failed | None = None,
    **options: Any,
) -> Iterator[RunResult]:
    for seed in range(config.run.seed, config.run.seed + seeds):
        folder = folder_of(path, seed)
        if begins is not None:
            begins(seed)
        try:
            if folder.config_path.exists():
                result = run.resume(folder.path, allow_changes=allow_changes, **options)
            else:
                result = run.train(config.replace(seed=seed), folder.path, **options)
        except Stopped as error:
            raise Stopped(error.exit_status - 128, path) from error
        except (ArithmeticError, MemoryError, RuntimeError) as error:
            # Another error of the package is none of this run alone.
            is_of_run = isinstance(error, TrainingError) or not isinstance(error, HypermaskError)
            if failed is None or not is_of_run:
                raise
            failed(seed, error)
            continue
        yield result
