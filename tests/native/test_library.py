"""Compiling and loading the native passes, and what happens where that fails."""

from __future__ import annotations

import ctypes
import os
import stat
import tempfile
import threading
import warnings
from pathlib import Path

import pytest
import torch

from hypermask_fast.errors import ConfigError
from hypermask_fast.head import passes
from hypermask_fast.head.types import Head
from hypermask_fast.native import library as native
from hypermask_fast.native import threads
from hypermask_fast.native.head import HeadPass, partition
from tests.support.native_cases import Compiler, forget, libraries, small_logits


@pytest.mark.long
def test_the_machines_compiler_builds_into_a_private_folder(built: Path, cache: Path) -> None:
    umask = os.umask(0)
    try:
        status = native.status()
    finally:
        os.umask(umask)
    (library,) = libraries(cache)
    assert status.startswith(f"native: {library} (")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert torch.equal(small_logits(), torch.tensor([[2.0, 3.0, 4.0]]))


def test_the_library_is_built_once(
    compiler: Compiler, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compiler()
    for _ in range(3):
        assert native.load() is not None
        forget(monkeypatch)
    assert log.read_text().splitlines() == ["call"]


@pytest.mark.parametrize("what", ["flags", "processor", "compiler", "source"])
def test_another_key_is_another_library(
    what: str, compiler: Compiler, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compiler()
    native.status()
    forget(monkeypatch)
    if what == "flags":
        monkeypatch.setattr(native, "_FLAGS", (*native._FLAGS, "-g"))
    elif what == "processor":
        monkeypatch.setattr(native, "_processor", lambda: "another")
    elif what == "compiler":
        compiler("fake 1.1")
    else:
        other = tmp_path / "head.cpp"
        other.write_bytes(native._SOURCES[0].read_bytes() + b"\n")
        monkeypatch.setattr(native, "_SOURCES", (other, *native._SOURCES[1:]))
    native.status()
    assert len(log.read_text().splitlines()) == 2
    assert len(libraries(cache)) == 2


def test_builds_at_the_same_time_are_one(compiler: Compiler, cache: Path) -> None:
    log = compiler(before="sleep 0.3")
    found: list[native._Loaded] = []
    # _built takes no lock of threads: they meet in the folder as processes do.
    threads = [threading.Thread(target=lambda: found.append(native._built())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [loaded.library is not None for loaded in found] == [True] * 3
    assert len(log.read_text().splitlines()) == 1
    assert sorted(cache.iterdir()) == [cache / ".lock", *libraries(cache)]
    assert len(libraries(cache)) == 1


def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> str:
    """Make the library impossible; returns what the warning must say."""
    script = tmp_path / "broken-cxx"
    script.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo broken && exit\n"
        "echo head.cpp:1: error: no such luck >&2\nexit 1\n"
    )
    script.chmod(0o755)
    if why == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        return "no C\\+\\+ compiler on PATH; install g\\+\\+ or set \\$CXX"
    if why == "unknown compiler":
        monkeypatch.setenv("CXX", "no-such-compiler -O9")
        return "\\$CXX is 'no-such-compiler -O9', which is not a program on PATH"
    monkeypatch.setenv("CXX", str(script))
    if why == "no folder":
        (tmp_path / "file").touch()
        monkeypatch.setenv("HYPERMASK_FAST_CACHE", str(tmp_path / "file" / "cache"))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
        return "no cache folder .*; set \\$HYPERMASK_FAST_CACHE; no temporary folder"
    return ".*broken-cxx failed \\(head.cpp:1: error: no such luck\\)"


@pytest.mark.parametrize("why", ["no compiler", "unknown compiler", "failed build", "no folder"])
def test_without_a_library_pytorch_works_after_one_warning(
    why: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refuse(tmp_path, monkeypatch, why)
    with pytest.warns(RuntimeWarning, match=f"in PyTorch, .*: {message}") as caught:
        first = small_logits()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = small_logits()
        assert native.status().startswith("PyTorch: ")
    assert torch.equal(first, torch.tensor([[2.0, 3.0, 4.0]]))
    assert torch.equal(first, second)
    assert not cache.exists() or {path.name for path in cache.iterdir()} <= {".lock"}


def test_what_is_no_library_is_not_used(compiler: Compiler, cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"not a library")
    compiler(result=other)
    status = native.status()
    (path,) = libraries(cache)
    assert status.startswith(f"PyTorch: {path} cannot be loaded (")
    assert status.endswith("; delete it")


@pytest.mark.parametrize("fault", ["zeros", "count"])
def test_a_wrong_compilation_fails_the_self_test(
    fault: str, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler()
    right = native._open

    def wrong(path: Path) -> ctypes.CDLL:
        library = right(path)
        original = library.logits_float32

        def logits(work: HeadPass) -> None:
            if fault == "count":
                original(work)
                out = (ctypes.c_float * (37 * work.count)).from_address(work.logits)
                out[0] *= 1 + (work.count == 1) * 2.0**-20
            else:
                ctypes.memset(work.logits, 0, 4 * 37 * work.count)

        library.logits_float32 = logits
        return library

    monkeypatch.setattr(native, "_open", wrong)
    expected = {"zeros": "wrong numbers", "count": "unequal bits"}[fault]
    assert expected in native.status()
    assert native._state().library is None


def test_the_switch_is_silent_and_checked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERMASK_FAST_NATIVE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_logits()
    assert native.status() == "PyTorch: HYPERMASK_FAST_NATIVE=0"
    assert not cache.exists()
    monkeypatch.setenv("HYPERMASK_FAST_NATIVE", "yes")
    with pytest.raises(ConfigError, match=r"HYPERMASK_FAST_NATIVE is 'yes'; set 1"):
        small_logits()


@pytest.mark.parametrize("rows", [0, 1, 1024, 1025, 2_036_010, 86_000_000])
def test_blocks_cover_the_rows(rows: int) -> None:
    block_rows, blocks = partition(rows)
    assert (blocks - 1) * block_rows < rows <= blocks * block_rows or rows == blocks == 0
    assert block_rows % 32 == 0
    assert blocks <= 128


def test_an_error_on_the_calling_thread_waits_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads, "_team", lambda: None)
    caller, started, finished = threading.current_thread(), threading.Event(), threading.Event()

    def function(_: HeadPass) -> None:
        if threading.current_thread() is caller:
            started.wait(10)
            raise KeyboardInterrupt
        started.set()
        threading.Event().wait(0.1)
        finished.set()

    with pytest.raises(KeyboardInterrupt):
        threads.run(function, HeadPass(blocks=2))
    assert finished.is_set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_its_own_threads(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    weight, bias, hidden = torch.ones(3000, 4), torch.zeros(3000), torch.ones(1, 4)
    assert passes.logits(Head(weight, bias), hidden).eq(4).all()
    child = os.fork()
    if child == 0:
        os._exit(0 if passes.logits(Head(weight, bias), hidden)[0, -1] == 4 else 1)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        threading.Event().wait(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child waited for threads that it does not have")
    assert os.waitstatus_to_exitcode(status) == 0
