"""The library of native CPU passes: compiled at first use, cached, tested before it is used.

The compiler is ``$CXX``, or else g++, clang++ or c++. The library is kept in
``$HYPERMASK_FAST_CACHE``, or else ``hypermask_fast`` in the user's cache folder, under a name that
holds a digest of source, flags, compiler and processor. Without a compiler there is one warning,
and PyTorch does the work. ``HYPERMASK_FAST_NATIVE=0`` asks for PyTorch without a warning.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hypermask_fast.errors import ConfigError
from hypermask_fast.native.head import HeadPass
from hypermask_fast.native.masks import MaskPass

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("head.cpp", "masks.cpp"))
_HEADERS = tuple(Path(__file__).with_name(f"head_{name}.h") for name in ("products", "vectors"))
_NATIVE, _CACHE = "HYPERMASK_FAST_NATIVE", "HYPERMASK_FAST_CACHE"
_TARGET = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
_FLAGS = (
    *("-std=c++17", "-O3", _TARGET, "-shared", "-fPIC"),
    # Products and sums fuse everywhere, or the same logit would have other bits in another pass.
    "-ffp-contract=fast",
    # Nobody reads errno or the exception flags, and both keep loops from becoming vectors.
    *("-fno-math-errno", "-fno-trapping-math"),
)


class _Loaded(NamedTuple):
    library: ctypes.CDLL | None
    status: str


_PASSES: dict[type[ctypes.Structure], tuple[str, ...]] = {
    HeadPass: ("logits_{}", "update_{}", "update_{}_bfloat16"),
    MaskPass: ("mask_forward_{}", "mask_backward_{}"),
}

_lock = threading.Lock()
_loaded: _Loaded | None = None
_warned = False


class _Unavailable(Exception):
    """Why there is no library."""


def _processor() -> str:
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    keys = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(line for line in first.splitlines() if line.startswith(keys))


def _output(command: list[str], failure: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unavailable(f"{failure} ({error})") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        reason = next((line for line in lines if "error" in line), lines[-1])
        raise _Unavailable(f"{failure} ({reason})")
    return done.stdout


def _compiler() -> tuple[list[str], str]:
    chosen = os.environ.get("CXX")
    candidates = [shlex.split(chosen)] if chosen else [["g++"], ["clang++"], ["c++"]]
    for command in candidates:
        if command and shutil.which(command[0]):
            version = _output([*command, "--version"], f"{command[0]} --version failed")
            return command, version.splitlines()[0] if version else "unknown"
    if chosen:
        raise _Unavailable(f"$CXX is {chosen!r}, which is not a program on PATH")
    raise _Unavailable("no C++ compiler on PATH; install g++ or set $CXX")


def _cache_folder() -> Path:
    chosen = os.environ.get(_CACHE)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(chosen or Path(base, "hypermask_fast")).expanduser()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except (OSError, RuntimeError) as error:
        raise _Unavailable(f"no cache folder ({error}); set ${_CACHE}") from error
    if state.st_uid != os.geteuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _Unavailable(
            f"others may write to the cache folder {folder}; own it and `chmod 700` it, "
            f"or set ${_CACHE}"
        )
    return folder


def _build(command: list[str], library: Path) -> None:
    try:
        handle, name = tempfile.mkstemp(suffix=".tmp", prefix=library.stem, dir=library.parent)
        os.close(handle)
    except OSError as error:
        raise _Unavailable(f"the cache folder takes no files ({error}); set ${_CACHE}") from error
    try:
        _output([*command, *_FLAGS, "-o", name, *map(str, _SOURCES)], f"{command[0]} failed")
        os.replace(name, library)
    finally:
        Path(name).unlink(missing_ok=True)


def _open(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    for dtype in ("float32", "float64"):
        for work, names in _PASSES.items():
            for name in names:
                function = getattr(loaded, name.format(dtype))
                function.argtypes, function.restype = [ctypes.POINTER(work)], None
    return loaded


def _self_test(library: ctypes.CDLL) -> None:
    """Check logits against numpy, and that their bits do not depend on the number of embeddings."""
    generator = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        weight = generator.standard_normal((37, 21)).astype(dtype)
        hidden = generator.standard_normal((23, 21)).astype(dtype)
        bias, expected = np.ones(37, dtype), np.empty((23, 37), dtype)
        for first in (0, 22, 21, 18, 12):
            part, out = hidden[first:], np.empty((23 - first, 37), dtype)
            work = HeadPass(rows=37, width=21, count=len(part), block_rows=64, blocks=1)
            work.weight, work.bias = weight.ctypes.data, bias.ctypes.data
            work.hidden, work.logits = part.ctypes.data, out.ctypes.data
            getattr(library, f"logits_{np.dtype(dtype).name}")(work)
            if first == 0:
                expected = out
                exact = hidden.astype(np.float64) @ weight.T.astype(np.float64) + 1
                if not np.allclose(out, exact, rtol=0, atol=1000 * np.finfo(dtype).eps):
                    raise _Unavailable("the compiled passes gave wrong numbers in their self-test")
            if out.tobytes() != expected[first:].tobytes():
                raise _Unavailable("the compiled passes gave unequal bits in their self-test")


def _built() -> _Loaded:
    try:
        command, version = _compiler()
        source = b"\0".join(source.read_bytes() for source in (*_SOURCES, *_HEADERS))
        key = "\n".join((*command, version, *_FLAGS, _processor()))
        digest = hashlib.sha256(key.encode() + b"\0" + source).hexdigest()[:20]
        path = _cache_folder() / f"passes-{digest}.so"
        if not path.exists() or path.stat().st_uid != os.geteuid():
            _build(command, path)
        try:
            library = _open(path)
        except (OSError, AttributeError) as error:
            raise _Unavailable(f"{path} cannot be loaded ({error}); delete it") from error
        _self_test(library)
    except _Unavailable as why:
        return _Loaded(None, f"PyTorch: {why}")
    return _Loaded(library, f"native: {path} ({version})")


def _state() -> _Loaded:
    wanted = os.environ.get(_NATIVE, "1")
    if wanted not in ("0", "1"):
        raise ConfigError(f"${_NATIVE} is {wanted!r}; set 1 (compile, the default) or 0 (PyTorch)")
    if wanted == "0":
        return _Loaded(None, f"PyTorch: {_NATIVE}=0")
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _built()
        return _loaded


def status() -> str:
    """Return what does the head's passes on a CPU, and where there is no library, why."""
    return _state().status


def load() -> ctypes.CDLL | None:
    """Return the compiled passes, built if need be; None, with one warning ever, where that failed.

    Raises:
        ConfigError: ``$HYPERMASK_FAST_NATIVE`` is neither 0 nor 1.
    """
    global _warned
    state = _state()
    if state.library is None and os.environ.get(_NATIVE) != "0":
        with _lock:
            first, _warned = not _warned, True
        if first:
            warnings.warn(
                f"the head's CPU passes run in PyTorch, several times slower: "
                f"{state.status.removeprefix('PyTorch: ')} ({_NATIVE}=0 accepts this)",
                RuntimeWarning,
                stacklevel=3,
            )
    return state.library
