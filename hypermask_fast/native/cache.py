"""The folders of compiled libraries: each is built once, and verified before it is loaded.

A library's name ends with a digest of its bytes, so that a damaged one is known before the system's
loader maps it. It is compiled in a folder ``build-...`` beside it and renamed when it is whole, by
the one process that holds the lock; what that process finds there was left by one that was killed.
Other files that are made once, with another suffix, are kept in the same way.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CACHE = "HYPERMASK_FAST_CACHE"

LIBRARY = ".so"
_BUILD, _LOCK = "build-", ".lock"
_WAIT = 330.0  # seconds: a little longer than the compiler may take
_ROOM = 2**20  # bytes that a folder must take before anything is compiled into it
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class UnusableFolderError(Exception):
    """Why libraries cannot be read from a folder, or built in it."""


def chosen_folder(*, make: bool = True) -> Path:
    """Return ``$HYPERMASK_FAST_CACHE`` or the user's cache folder, made if missing.

    Raises:
        UnusableFolderError: It is not there and cannot be made, or others may write to it.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(os.environ.get(CACHE) or Path(base, "hypermask_fast")).expanduser()
        if make:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except (OSError, RuntimeError) as error:
        raise UnusableFolderError(f"no cache folder ({error}); set ${CACHE}") from error
    if state.st_uid not in (os.geteuid(), 0) or state.st_mode & _OTHERS_MAY_WRITE:
        raise UnusableFolderError(
            f"others may write to the cache folder {folder}; own it and `chmod 700` it, "
            f"or set ${CACHE}"
        )
    return folder


def temporary_folder(*, make: bool = True) -> Path:
    """Return this user's folder among the temporary files, made if missing.

    Raises:
        UnusableFolderError: It is not there and cannot be made, or others may change it.
    """
    try:
        folder = Path(tempfile.gettempdir(), f"hypermask_fast-{os.geteuid()}")
        if make:
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
        state, parent = folder.lstat(), folder.parent.stat()  # not where another's link leads
    except OSError as error:
        raise UnusableFolderError(f"no temporary folder ({error})") from error
    private = stat.S_ISDIR(state.st_mode) and stat.S_IMODE(state.st_mode) == 0o700
    # Where anyone may rename the folder, its mode says nothing of the next moment.
    kept = not parent.st_mode & stat.S_IWOTH or parent.st_mode & stat.S_ISVTX
    if state.st_uid != os.geteuid() or not private or not kept:
        raise UnusableFolderError(f"{folder} is not a folder that only this user can change")
    return folder


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _is_whole(path: Path) -> bool:
    """Return whether the file has the bytes that its name tells, and only its owner can change."""
    try:
        # No link is followed, and a pipe does not block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode) or state.st_mode & _OTHERS_MAY_WRITE:
                return False
            if state.st_uid not in (os.geteuid(), 0):
                return False
            return path.stem.rpartition("-")[2] == _digest(file.read())
    except OSError:
        return False


def _named(folder: Path, start: str, suffix: str) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.match(f"{start}*{suffix}")]
    except OSError:
        return []


def find(folder: Path, start: str, suffix: str = LIBRARY) -> Path | None:
    """Return the library whose name begins with ``start``; of several whole ones the newest."""
    whole = filter(_is_whole, _named(folder, start, suffix))
    return max(whole, key=lambda path: path.lstat().st_mtime_ns, default=None)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees however this process ends."""
    try:
        import fcntl

        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except (ImportError, OSError) as error:
        raise UnusableFolderError(f"{folder} takes no files ({error}); set ${CACHE}") from error
    try:
        until = time.monotonic() + _WAIT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise UnusableFolderError(
                        f"another process has held {folder / _LOCK} for {_WAIT:.0f} s; end it"
                    ) from error
            except OSError as error:
                raise UnusableFolderError(
                    f"{folder} takes no file locks ({error}); set ${CACHE}"
                ) from error
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _build_folder(folder: Path, start: str, suffix: str) -> Path:
    """Remove what cannot be used any more; return a new folder to compile in."""
    for left in folder.glob(f"{_BUILD}*"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        for damaged in _named(folder, start, suffix):
            damaged.unlink()
        made = Path(tempfile.mkdtemp(prefix=_BUILD, dir=folder))
    except OSError as error:
        raise UnusableFolderError(f"{folder} takes no files ({error}); set ${CACHE}") from error
    try:
        probe = made / "probe"
        with open(probe, "wb") as file:
            file.write(bytes(_ROOM))
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise UnusableFolderError(f"{folder} takes no files ({error}); set ${CACHE}") from error
    return made


def build(
    folder: Path,
    start: str,
    compile_to: Callable[[Path], None],
    suffix: str = LIBRARY,
    serves: Callable[[Path], bool] = lambda found: True,
) -> Path:
    """Return the library whose name begins with ``start``, compiled unless another process did.

    Args:
        folder: Of `chosen_folder` or `temporary_folder`.
        start: What the library is made from, as a name; another compilation has another one.
        compile_to: Writes the library to the path that it is given, in a folder of its own.
        suffix: Of its name.
        serves: Whether one that is there does; else it is replaced.

    Raises:
        UnusableFolderError: The folder takes no files or no locks.
    """
    with _alone(folder):
        found = find(folder, start, suffix)
        if found is not None and serves(found):
            return found
        made = _build_folder(folder, start, suffix)
        try:
            library = made / f"library{suffix}"
            compile_to(library)
            library.chmod(0o700)
            final = folder / f"{start}{_digest(library.read_bytes())}{suffix}"
            library.replace(final)
        except OSError as error:
            raise UnusableFolderError(f"{folder} takes no files ({error}); set ${CACHE}") from error
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return final
