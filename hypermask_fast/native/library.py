"""The library of native CPU passes: compiled at first use, cached, tested before it is used.

The compiler is ``$CXX``, or else g++, clang++ or c++. The library is kept in
``$HYPERMASK_FAST_CACHE``, or else ``hypermask_fast`` in the user's cache folder, or where that is
not usable in a private temporary folder, under a name with digests of source, flags and processor,
of the compiler, and of its own bytes. Without a compiler a library that is there already serves.
Where there is none, there is one warning, and PyTorch does the work. ``HYPERMASK_FAST_NATIVE=0``
asks for PyTorch without a warning.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hypermask_fast.console.stages import stage
from hypermask_fast.errors import ConfigError
from hypermask_fast.native import cache
from hypermask_fast.native.head import HeadPass
from hypermask_fast.native.masks import MaskPass
from hypermask_fast.native.packed import PackedPass
from hypermask_fast.native.top_k import TopKPass

_SOURCES = tuple(
    Path(__file__).with_name(f"{name}.cpp") for name in ("head", "masks", "top_k", "packed")
)
_HEADERS = tuple(
    Path(__file__).with_name(f"{name}.h")
    for name in ("boxes", "head_products", "head_vectors", "phases", "subnormals")
)
_NATIVE = "HYPERMASK_FAST_NATIVE"
_FOLDERS = (cache.chosen_folder, cache.temporary_folder)
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
    warning: str = ""


_PASSES: dict[type[ctypes.Structure], tuple[str, ...]] = {
    HeadPass: (
        *("logits_{}", "update_{}", "update_{}_bfloat16"),
        *("boxes_{}", "update_boxes_{}", "update_boxes_{}_bfloat16"),
        *("update_centers_{}", "update_centers_{}_bfloat16"),
    ),
    MaskPass: ("mask_forward_{}", "mask_backward_{}"),
    TopKPass: ("top_k_forward_{}", "top_k_backward_{}"),
    PackedPass: ("packed_sum_{}", "packed_dots_{}"),
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


def _joined(*words: str) -> bytes:
    return b"\0".join(word.encode() for word in words)


def _digest(data: bytes, letters: int) -> str:
    return hashlib.sha256(data).hexdigest()[:letters]


def _output(command: list[str], failure: str, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, env=environment
        )
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


def _compile(command: list[str], library: Path) -> None:
    # The compiler's own temporary files go the same way as the folder.
    environment = {**os.environ, "TMPDIR": str(library.parent)}
    words = [*command, *_FLAGS, "-o", str(library), *map(str, _SOURCES)]
    with stage("compiling the CPU passes"):
        _output(words, f"{command[0]} failed", environment)


def _existing(start: str) -> Path | None:
    for folder in _FOLDERS:
        with suppress(cache.UnusableFolderError):
            path = cache.find(folder(make=False), start)
            if path is not None:
                return path
    return None


def _new(start: str, command: list[str]) -> tuple[Path, str]:
    """Return the library that was compiled, and why not into the chosen folder."""
    wrong: list[str] = []
    for folder in _FOLDERS:
        try:
            path = cache.build(folder(), start, lambda library: _compile(command, library))
        except cache.UnusableFolderError as why:
            wrong.append(str(why))
        else:
            return path, "; ".join(wrong)
    raise _Unavailable("; ".join(wrong))


class _Found(NamedTuple):
    path: Path
    version: str
    not_chosen: str = ""


def _library() -> _Found:
    """Return a whole library for this source and processor: there already, or compiled now."""
    source = b"\0".join(source.read_bytes() for source in (*_SOURCES, *_HEADERS))
    key = f"passes-{_digest(_joined(*_FLAGS, _processor()) + source, 20)}-"
    try:
        command, version = _compiler()
        start = f"{key}{_digest(_joined(*command, version), 8)}-"
        path = _existing(start)
        if path is not None:
            return _Found(path, version)
        path, not_chosen = _new(start, command)
        return _Found(path, version, not_chosen)
    except _Unavailable:
        # Another compiler's is as right: it passes the same self-test.
        path = _existing(key)
        if path is None:
            raise
        return _Found(path, "compiled earlier")


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
        path, version, not_chosen = _library()
        try:
            library = _open(path)
        except (OSError, AttributeError) as error:
            raise _Unavailable(f"{path} cannot be loaded ({error}); delete it") from error
        _self_test(library)
    except _Unavailable as why:
        slow = "the head's CPU passes run in PyTorch, several times slower"
        return _Loaded(None, f"PyTorch: {why}", f"{slow}: {why} ({_NATIVE}=0 accepts this)")
    warning = f"the CPU passes were compiled into {path.parent}, which may not last: {not_chosen}"
    return _Loaded(library, f"native: {path} ({version})", warning if not_chosen else "")


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
    if state.warning:
        with _lock:
            first, _warned = not _warned, True
        if first:
            warnings.warn(state.warning, RuntimeWarning, stacklevel=3)
    return state.library
