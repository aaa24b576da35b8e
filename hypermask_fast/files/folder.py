"""The folder of one training run: its files and an exclusive lock."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.files.atomic import TEMPORARY, write_text_atomic
from hypermask_fast.files.closing import Closing

_fcntl: Any
try:
    _fcntl = importlib.import_module("fcntl")
except ImportError:
    _fcntl = None

_CONFIG, _SCRIPT = "config.toml", "script.json"
_LOCK = ".lock"
_CHECKPOINTS, _METRICS, _MANIFEST = "checkpoints", "metrics.jsonl", "manifest.json"
_TIMING = "timing.json"
_LEARNED = "learned"
# All of them are written after a checkpoint only.
_SINKS = ("tensorboard", "wandb")  # folders of what else a run logs to
_SUMMARY, _REPORT = "summary.json", "report.html"
_CONFUSION = ("confusion.npz", "confusion.csv", "classes.csv")
_ACCURACY = ("accuracy.npz", "accuracy.csv", "accuracy.svg")
_AFTER_CHECKPOINT = (_MANIFEST, _TIMING, _SUMMARY, _REPORT, *_ACCURACY, *_CONFUSION)
_held_locks: set[int] = set()


def _drop_locks_after_fork() -> None:
    # A forked data loader worker would keep the lock alive for a while after its parent was killed.
    for descriptor in _held_locks:
        os.close(descriptor)
    _held_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks_after_fork)


def _never_began(path: Path, names: Sequence[str]) -> bool:
    """Whether a run's folder holds nothing but what a run leaves that got to no checkpoint."""
    if _LOCK not in names or not (path / _LOCK).read_bytes().isdigit():
        return False  # no run made it
    others = {name for name in names if not name.startswith(TEMPORARY)}
    if others - {_CONFIG, _SCRIPT, _LOCK, _METRICS, _CHECKPOINTS, _LEARNED, *_SINKS}:
        return False
    saved = (path / _CHECKPOINTS).iterdir() if _CHECKPOINTS in others else ()
    return all(entry.name.startswith(TEMPORARY) for entry in saved)


def require_vacant(path: Path) -> None:
    """Raise ConfigError unless a new run may be made in ``path``.

    It may in place of one that ended, however, before its first checkpoint.
    """
    try:
        names = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
        settings = next((name for name in (_CONFIG, _SCRIPT) if name in names), None)
        if settings and _never_began(path, names):
            return
    except OSError as error:
        raise ConfigError(
            f"cannot use {path} for a run: {error.strerror}; choose another --out"
        ) from error
    if settings:
        how = {_CONFIG: f"with `hypermask resume {path}`", _SCRIPT: "with the script that began it"}
        raise ConfigError(
            f"{path} holds a run already; continue it {how[settings]} or choose another --out"
        )
    foreign = [name for name in names if name != _LOCK and not name.startswith(TEMPORARY)]
    if foreign:
        raise ConfigError(
            f"{path} is not empty, it holds {foreign[0]!r}, expected a new or an empty folder; "
            "choose another --out"
        )


def _require_run(path: Path, *, or_script: bool = False) -> None:
    """Raise ConfigError unless ``path`` holds a run, of settings ``or_script``."""
    parent: Path | None = None
    meant_inside: Path | None = None
    try:
        if (path / _CONFIG).is_file() or (or_script and (path / _SCRIPT).is_file()):
            return
        if (path / _SCRIPT).is_file():
            raise ConfigError(
                f"{path} holds a run that a script began with hypermask_fast.Run; start that "
                "script again, which alone has its network and data: it continues, and may evaluate"
            )
        if not path.exists():
            seen = "it does not exist"
        elif not path.is_dir():
            seen = "it is a file"
        else:
            names = sorted(entry.name for entry in path.iterdir() if entry.name != _LOCK)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            seen = f"it holds {', '.join(names[:5])}{more}" if names else "it is empty"
        several = sorted(entry.parent.name for entry in path.glob(f"*/{_CONFIG}"))
        if several:
            seen, meant_inside = f"it holds the runs {', '.join(several[:5])}", path / several[0]
        parent = next((up for up in path.absolute().parents if (up / _CONFIG).is_file()), None)
    except OSError as error:
        seen = f"it cannot be read ({error.strerror})"
    parent = parent or meant_inside
    meant = f" (did you mean {str(parent)!r}?)" if parent else ""
    raise ConfigError(
        f"{path} is not a run folder: {seen}, expected a {_CONFIG}{meant}; "
        "give the folder that was the --out of `hypermask train`"
    )


def _lock(path: Path) -> int | None:
    """Lock the run in ``path``; the system frees the lock however this process ends."""
    if _fcntl is None:
        warnings.warn(
            f"this platform has no file locks: do not start a second process in {path}",
            RuntimeWarning,
            stacklevel=5,
        )
        return None
    try:
        descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(
            f"cannot write in {path}: {error.strerror}; correct its permissions or choose "
            "another --out"
        ) from error
    try:
        _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace") or "(unknown)"
        os.close(descriptor)
        raise ConfigError(
            f"{path} is in use by process {holder}; wait until it ends, stop it, or choose "
            "another --out"
        ) from error
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(
            f"cannot lock {path}: {error.strerror}; choose an --out on a disk that supports file "
            "locks"
        ) from error
    _held_locks.add(descriptor)
    return descriptor


def make_folder(path: Path) -> bool:
    """Make the folder of several runs, and return whether it was not there.

    Raises:
        ConfigError: It cannot be made.
    """
    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {path}: {error.strerror}; correct the permissions or choose "
            "another --out"
        ) from error
    return is_new


class FolderLock(Closing):
    """An exclusive lock of a folder, held until `close`; the system frees it with the process.

    Args:
        path: An existing folder.

    Raises:
        ConfigError: Another process holds the lock, or the folder takes none.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = _lock(path)

    def close(self) -> None:
        """Free the lock; calling it again does nothing."""
        # A forked child holds no lock: its descriptor number may belong to another file by now.
        if self._descriptor in _held_locks:
            _held_locks.remove(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = None


class RunFolder(Closing):
    """Paths in the folder of one run. `create` and `open` also hold its lock, until `close`.

    Args:
        path: The folder. The constructor itself touches nothing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: FolderLock | None = None

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], text: str, *, settings: str = _CONFIG
    ) -> RunFolder:
        """Make the folder of a new run, lock it, and write its settings.

        Args:
            path: The folder.
            text: The settings.
            settings: Name of their file, which tells what made the run.

        Raises:
            ConfigError: The folder holds a run or other files, is in use, or cannot be written.
        """
        run = cls(path)
        require_vacant(run.path)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the run folder {run.path}: {error.strerror}; "
                "correct the permissions or choose another --out"
            ) from error
        run._lock = FolderLock(run.path)
        try:
            require_vacant(run.path)  # another process may have come first
            for name in {_CONFIG, _SCRIPT} - {settings}:  # of a run that never began
                (run.path / name).unlink(missing_ok=True)
            write_text_atomic(run.path / settings, text)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def of_script(cls, path: str | os.PathLike[str], text: str) -> RunFolder:
        """Open and lock the folder of a script's run, or make it; see :meth:`create`.

        Raises:
            ConfigError: It holds another kind of run or other files, is in use, or cannot be
                written.
        """
        run = cls(path)
        try:
            names = sorted(entry.name for entry in run.path.iterdir()) if run.path.exists() else []
            has_begun = _SCRIPT in names and not _never_began(run.path, names)
        except OSError:
            has_begun = False  # which create() reports
        if not has_begun:
            return cls.create(path, text, settings=_SCRIPT)
        run._lock = FolderLock(run.path)
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, lock: bool = True) -> RunFolder:
        """Open the folder of an existing run.

        Args:
            path: The folder that `create` made.
            lock: Hold the lock; pass False only to read, for instance to plot a run in progress.

        Raises:
            ConfigError: There is no run, or another process holds the lock.
        """
        run = cls(path)
        _require_run(run.path)
        if lock:
            run._lock = FolderLock(run.path)
        return run

    @classmethod
    def of_any(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Return the folder of a run that settings or a script made, to read its records.

        Raises:
            ConfigError: There is no run.
        """
        _require_run(Path(path), or_script=True)
        return cls(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def config_path(self) -> Path:
        """The settings of the run, ``config.toml``."""
        return self.path / _CONFIG

    @property
    def script_path(self) -> Path:
        """What a run of a script was begun with, ``script.json``."""
        return self.path / _SCRIPT

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints; see `hypermask_fast.files.checkpoint`."""
        return self.path / _CHECKPOINTS

    @property
    def manifest_path(self) -> Path:
        """What the run was made with and what was changed; written once there is a checkpoint."""
        return self.path / _MANIFEST

    @property
    def metrics_path(self) -> Path:
        """The metrics, one JSON object a line."""
        return self.path / _METRICS

    @property
    def timing_path(self) -> Path:
        """The time of steps; see `hypermask_fast.records.timing`."""
        return self.path / _TIMING

    @property
    def learned(self) -> Path:
        """The folder of what is kept of each learned task; see `hypermask_fast.records.learned`."""
        return self.path / _LEARNED

    @property
    def summary_path(self) -> Path:
        """The metrics, times and memory of the run; see `hypermask_fast.records.summary`."""
        return self.path / _SUMMARY

    @property
    def report_path(self) -> Path:
        """The report of the run, a page for a browser."""
        return self.path / _REPORT

    @property
    def accuracy_npz(self) -> Path:
        """The accuracy matrix as numpy arrays."""
        return self.path / "accuracy.npz"

    @property
    def accuracy_csv(self) -> Path:
        """The accuracy matrix as text."""
        return self.path / "accuracy.csv"

    @property
    def accuracy_svg(self) -> Path:
        """The accuracy matrix as a picture."""
        return self.path / "accuracy.svg"

    def require_no_checkpoint_was_made(self) -> None:
        """Raise CheckpointError where a file tells that a checkpoint was made, which is not there.

        A run that was killed before its first one has none of these files.
        """
        for name in _AFTER_CHECKPOINT:
            if (self.path / name).exists():
                raise CheckpointError(
                    f"{self.checkpoints} holds no checkpoint, and {name} is there, which is "
                    "written after one; restore the checkpoints, or start a new run"
                )

    @property
    def is_closed(self) -> bool:
        """Whether it holds no lock."""
        return self._lock is None

    def close(self) -> None:
        """Free the lock; calling it again does nothing."""
        if self._lock is not None:
            self._lock.close()
        self._lock = None
