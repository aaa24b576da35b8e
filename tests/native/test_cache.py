"""The folder of compiled libraries: damage, other users, no compiler, no room, kills."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from hypermask_fast.native import cache as folders
from hypermask_fast.native import library as native
from tests.support.native_cases import Compiler, forget, libraries, small_logits


def make_damaged(path: Path, damage: str) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    contents = {
        "truncated": data[:middle],
        "empty": b"",
        "one bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
    }
    path.unlink()  # this process has mapped the old file
    if damage == "link":
        path.symlink_to(__file__)
    elif damage == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(contents.get(damage, data))
        path.chmod(0o666 if damage == "writable by others" else 0o700)
    if damage == "of another user":
        if os.geteuid():
            pytest.skip("only root can give a file away")
        os.chown(path, 12345, 12345)


DAMAGES = ["truncated", "empty", "one bit", "writable by others", "of another user", "link", "pipe"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_built_again(
    damage: str, compiler: Compiler, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compiler()
    native.load()
    (path,) = libraries(cache)
    before = path.read_bytes()
    make_damaged(path, damage)
    forget(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.load() is not None
    assert [library.read_bytes() for library in libraries(cache)] == [before]
    assert not path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert path.stat().st_uid == os.geteuid()
    assert log.read_text().splitlines() == ["call"] * 2


@pytest.mark.parametrize("why", ["no compiler", "unknown compiler", "a newer one that fails"])
def test_without_a_compiler_the_library_that_is_there_serves(
    why: str, compiler: Compiler, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compiler()
    native.load()
    (path,) = libraries(cache)
    forget(monkeypatch)
    if why == "a newer one that fails":
        compiler("fake 2.0", before="exit 1")
    elif why == "unknown compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    else:
        monkeypatch.delenv("CXX")
        monkeypatch.setenv("PATH", str(tmp_path / "temporary"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_logits()
    assert native.status() == f"native: {path} (compiled earlier)"
    make_damaged(path, "truncated")
    forget(monkeypatch)
    with pytest.warns(RuntimeWarning, match="run in PyTorch"):
        small_logits()
    assert len(log.read_text().splitlines()) == 1 + (why == "a newer one that fails") * 2


def make_unusable(cache: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what the warning must say."""
    if why == "read-only":  # for root too
        monkeypatch.setenv("HYPERMASK_FAST_CACHE", "/proc/self/fdinfo")
        return "/proc/self/fdinfo takes no files .*; set \\$HYPERMASK_FAST_CACHE"
    if why == "not there and not to be made":
        monkeypatch.setenv("HYPERMASK_FAST_CACHE", "/proc/self/fdinfo/cache")
        return "no cache folder .*; set \\$HYPERMASK_FAST_CACHE"
    cache.mkdir(parents=True)
    if why == "writable by others":
        cache.chmod(0o777)
        return f"others may write to the cache folder {cache}; own it and `chmod 700` it"
    if why == "of another user":
        if os.geteuid():
            pytest.skip("only root can give a folder away")
        os.chown(cache, 12345, 12345)
        return f"others may write to the cache folder {cache}"
    if why == "full":
        right = os.fsync

        def fsync(descriptor: int) -> None:
            if str(cache) in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(28, "No space left on device")
            right(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        return f"{cache} takes no files .*No space left on device"
    monkeypatch.setattr(folders, "_WAIT", 0.1)
    held = os.open(cache / ".lock", os.O_RDWR | os.O_CREAT)  # until the process ends
    fcntl.flock(held, fcntl.LOCK_EX)
    return f"another process has held {cache}/.lock for 0 s; end it"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    "why",
    [
        "read-only",
        "not there and not to be made",
        "writable by others",
        "of another user",
        "full",
        "locked by a process that hangs",
    ],
)
def test_where_the_cache_cannot_be_used_a_private_folder_is(
    why: str, compiler: Compiler, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compiler()
    message = make_unusable(cache, why, monkeypatch)
    private = Path(tempfile.gettempdir(), f"hypermask_fast-{os.geteuid()}")
    with pytest.warns(RuntimeWarning, match=f"compiled into {private}, .*: {message}") as caught:
        small_logits()
    assert len(caught) == 1
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    (path,) = libraries(private)
    assert native.status().startswith(f"native: {path} (")
    forget(monkeypatch)
    assert native.status().startswith(f"native: {path} (")
    assert log.read_text().splitlines() == ["call"]
    assert not cache.exists() or not libraries(cache)


@pytest.mark.parametrize("what", ["link", "open to others", "file", "of another user", "no sticky"])
def test_what_another_user_may_have_made_in_tmp_is_not_used(
    what: str, compiler: Compiler, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compiler()
    monkeypatch.setenv("HYPERMASK_FAST_CACHE", "/proc/self/fdinfo/cache")
    private = Path(tempfile.gettempdir(), f"hypermask_fast-{os.geteuid()}")
    target = tmp_path / "theirs"
    target.mkdir(mode=0o700)
    if what == "link":
        private.symlink_to(target)
    elif what == "file":
        private.touch(0o700)
    else:
        private.mkdir(mode=0o700)
    if what == "open to others":
        private.chmod(0o711)
    elif what == "no sticky":
        private.parent.chmod(0o777)
    elif what == "of another user":
        if os.geteuid():
            pytest.skip("only root can give a folder away")
        os.chown(private, 12345, 12345)
    with pytest.warns(RuntimeWarning, match=f"PyTorch.*{private} is not a folder that only this"):
        small_logits()
    assert not log.exists()
    assert not list(target.iterdir())


def test_in_a_shared_tmp_with_the_sticky_bit_the_private_folder_is_used(
    compiler: Compiler, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler()
    monkeypatch.setenv("HYPERMASK_FAST_CACHE", "/proc/self/fdinfo/cache")
    Path(tempfile.gettempdir()).chmod(0o1777)
    assert native.status().startswith(f"native: {tempfile.gettempdir()}")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_while_compiling_leaves_nothing_for_ever(
    when: str, compiler: Compiler, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's parent is killed before, or just after, the library is written."""
    kill = "kill -9 $PPID"
    compiler(before=kill if when == "before" else f"trap '{kill}' EXIT")
    command = [sys.executable, "-c", "from hypermask_fast.native import library; library.load()"]
    # Their pipes close when the compiler, which outlives its parent, has ended too.
    killed = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
    assert [path.name for path in cache.iterdir() if path.name.startswith("build-")]
    compiler()
    assert native.load() is not None
    assert sorted(cache.iterdir()) == [cache / ".lock", *libraries(cache)]
    assert not list(Path(tempfile.gettempdir()).iterdir())  # nor the compiler's own files
