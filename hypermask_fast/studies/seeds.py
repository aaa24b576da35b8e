"""Runs of several seeds in one folder: begun, stopped and continued as a whole.

They run one after the other in this process, or several at once in processes of their own. The
number of threads that each has is chosen when they begin and kept, for PyTorch's sums on a CPU
depend on it: however many run at once later, their bits are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypermask_fast.console.terminal import is_quiet
from hypermask_fast.console.terminal import say as say_line
from hypermask_fast.errors import (
    CheckpointError,
    ConfigError,
    HypermaskError,
    Stopped,
    TrainingError,
)
from hypermask_fast.files.atomic import write_text_atomic
from hypermask_fast.files.folder import FolderLock, RunFolder, make_folder, require_vacant
from hypermask_fast.runs.run import RunResult
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.studies import seeds_summary
from hypermask_fast.studies.apart import Job, alone, at_once, failure_text, in_turn, stopping
from hypermask_fast.studies.jobs import Share, share
from hypermask_fast.studies.seeds_summary import SeedsSummary

_SEEDS, _RUN = "seeds.json", "seed-"

Failed = Callable[[int, Exception], None]
"""Takes the seed of a run that failed, and why."""


def _digest(settings: str, seeds: int, threads: int | None) -> str:
    head = f"{seeds}\n" if threads is None else f"{seeds}\n{threads}\n"
    return hashlib.sha256(f"{head}{settings}".encode()).hexdigest()


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
    return list(_by_seed(path, config, count).values())


def read(path: Path) -> tuple[RunConfig, int]:
    """Return the settings of the first run, and the number of runs.

    Raises:
        ConfigError: The file of the folder that holds them was altered.
    """
    return _read(path)[:2]


def _read(path: Path) -> tuple[RunConfig, int, int | None]:
    """Return what :func:`read` does, and the threads of each run; None: those there are."""
    file = path / _SEEDS
    try:
        stored: Any = json.loads(file.read_bytes())
        settings, seeds = str(stored["settings"]), int(stored["seeds"])
        # Earlier versions kept none.
        threads = int(stored["threads"]) if "threads" in stored else None
        is_whole = stored["sha256"] == _digest(settings, seeds, threads)
    except (KeyError, OSError, TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise ConfigError(
            f"{file} was altered; restore it, or continue the runs in {path} one by one with "
            "`hypermask resume`"
        )
    return RunConfig.from_toml(settings), seeds, threads


def train(
    config: RunConfig,
    out: Path,
    seeds: int,
    *,
    memory: int | None = None,
    jobs: int | None = 1,
    **options: Any,
) -> Iterator[RunResult]:
    """Train a run for each of several seeds, in the folders ``seed-S`` of ``out``.

    Args:
        config: The settings, with the first seed; the next ones count up from it.
        out: The folder; it must not hold runs already.
        seeds: How many.
        memory: Bytes that the device has for all that run at once. Default: what it has left.
        jobs: How many run at once, each in a process of its own; 1: one after the other in this
            process; None: as :func:`hypermask_fast.studies.jobs.share` says. Default 1.
        **options: As in :func:`hypermask_fast.runs.run.train`, and ``begins``, called with the seed
            of a run before it begins or goes on, ``failed``: with it a run that fails is told to
            it, and the others follow, and ``say``, which shows a line of a run; default: standard
            error.

    Yields:
        What each run ends with, when it does.

    Raises:
        ConfigError: As in :func:`hypermask_fast.runs.run.train`, or the last seed is out of range,
            or so many runs at once do not fit.
        DataError, TrainingError, Stopped: Of a run.
    """
    config.replace(seed=config.run.seed + seeds - 1)
    require_vacant_seeds(out)
    part = share(config, seeds, jobs, memory)
    is_new = make_folder(out)
    with FolderLock(out):
        require_vacant_seeds(out)  # another process may have come first
        for entry in out.glob(f"{_RUN}*"):
            with FolderLock(entry):  # of a run that never began, with other settings maybe
                shutil.rmtree(entry)
        settings = config.to_toml()
        digest = _digest(settings, seeds, part.threads)
        record = {"seeds": seeds, "threads": part.threads, "sha256": digest, "settings": settings}
        write_text_atomic(out / _SEEDS, json.dumps(record, indent=1) + "\n")
        try:
            yield from _continued(out, config, seeds, part, **options)
        finally:
            if not any(out.glob(f"{_RUN}*")):  # none could start
                (out / _SEEDS).unlink()
                if is_new:
                    _remove(out)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):  # somebody else has put a file there
        (folder / ".lock").unlink()
        folder.rmdir()


def resume(
    path: Path,
    *,
    allow_changes: bool = False,
    memory: int | None = None,
    jobs: int | None = 1,
    **options: Any,
) -> Iterator[RunResult]:
    """Continue what :func:`train` began: keep what has ended, resume, begin what is missing.

    Args:
        path: The folder.
        allow_changes: As in :func:`hypermask_fast.runs.run.resume`.
        memory, jobs, **options: As in :func:`train`.

    Yields:
        What each run ends with, when it does.

    Raises:
        ConfigError, CheckpointError, DataError, TrainingError, Stopped: Of a run.
    """
    with FolderLock(path):
        config, seeds, threads = _read(path)
        part = share(config, seeds, jobs, memory)
        part = replace(part, threads=threads or part.threads)
        yield from _continued(path, config, seeds, part, allow_changes=allow_changes, **options)


def say_unless_quiet() -> Callable[[str], None]:
    """Return what shows a line in other threads too, which do not know how much is to be said."""
    return (lambda text: None) if is_quiet() else say_line


def _continued(
    path: Path,
    config: RunConfig,
    seeds: int,
    part: Share,
    *,
    allow_changes: bool = False,
    show_progress: bool = True,
    begins: Callable[[int], None] | None = None,
    failed: Failed | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[RunResult]:
    shows = say_unless_quiet() if say is None else say
    show_progress = show_progress and not is_quiet()
    jobs = [
        Job(
            name=f"seed {seed}",
            config=config.replace(seed=seed),
            folder=folder,
            threads=part.threads,
            memory=part.memory,
            allow_changes=allow_changes,
            show_progress=show_progress,
        )
        for seed, folder in _by_seed(path, config, seeds).items()
    ]

    def start(job: Job) -> None:
        if begins is not None:
            begins(job.config.run.seed)

    units = [alone(job) for job in jobs]
    outcomes = (
        in_turn(units, begins=start)
        if part.jobs == 1
        else at_once(units, part.jobs, say=shows, begins=start)
    )
    failures: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(_summarize, path, config, seeds, failures)
        stack.enter_context(contextlib.closing(outcomes))
        stack.enter_context(stopping(path))
        for outcome in outcomes:
            seed = outcome.job.config.run.seed
            error = outcome.end
            if not isinstance(error, Exception):
                yield error
            elif isinstance(error, Stopped):
                raise Stopped(error.exit_status - 128, path) from error
            elif failed is None or not _is_of_run(error):
                raise error
            else:
                failures[seed] = failure_text(error)
                failed(seed, error)


def summary(path: Path, failures: Mapping[int, str] | None = None) -> SeedsSummary:
    """Return what the runs of a folder have ended with.

    Args:
        path: The folder.
        failures: Why runs failed, by seed. Default: none did.

    Raises:
        ConfigError: As :func:`read`.
    """
    config, seeds = read(path)
    return seeds_summary.summarize(config, _by_seed(path, config, seeds), failures or {})


def _by_seed(path: Path, config: RunConfig, seeds: int) -> dict[int, Path]:
    first = config.run.seed
    return {seed: folder_of(path, seed).path for seed in range(first, first + seeds)}


def _summarize(path: Path, config: RunConfig, seeds: int, failures: dict[int, str]) -> None:
    folders = _by_seed(path, config, seeds)
    if any(folder.exists() for folder in folders.values()):
        found = seeds_summary.summarize(config, folders, failures)
        seeds_summary.write(path, found)


def _is_of_run(error: Exception) -> bool:
    """Whether an error may be of one run alone: another error of the package is of all."""
    if isinstance(error, HypermaskError):
        return isinstance(error, (CheckpointError, TrainingError))
    return isinstance(error, (ArithmeticError, MemoryError, RuntimeError))
