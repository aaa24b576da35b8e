"""Threads for the native passes: those of PyTorch's own OpenMP runtime.

After each operation PyTorch's threads wait for the next one busily, for milliseconds; other threads
would compete with them for the cores. Where the runtime is not found, and in forked children, which
have none of its threads, Python threads do the work. Passes claim their blocks of work one by one,
so that any number of threads is right.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import torch

_NATIVE: type = ctypes.CFUNCTYPE(None).__mro__[1]
_lock = threading.Lock()
_pool: tuple[int, ThreadPoolExecutor] | None = None
_forked = False


def _forget_threads() -> None:
    global _pool, _forked
    _pool, _forked = None, True


os.register_at_fork(after_in_child=_forget_threads)


@cache
def runtime() -> Path | None:
    """Return the OpenMP library that PyTorch runs on; None where that is unknown."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    paths = sorted(set(re.findall(r"/.*/lib(?:gomp|iomp5|omp)[-.\w]*$", maps, re.MULTILINE)))
    folder = str(Path(torch.__file__).parent)
    # Beside the torch folder lies torch.libs, where some wheels keep it.
    found = [path for path in paths if path.startswith(folder)] or paths
    return Path(found[0]) if len(found) == 1 else None


@cache
def _team() -> Callable[..., None] | None:
    path = runtime()
    if path is None:
        return None
    try:
        parallel = ctypes.CDLL(str(path)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None or _pool[0] < count:
            _pool = (count, ThreadPoolExecutor(count, thread_name_prefix="hypermask_fast"))
        return _pool[1]


def run(function: Any, work: Any) -> None:
    """Run a pass on the calling thread and ``torch.get_num_threads()`` - 1 others.

    Args:
        function: Of :func:`hypermask_fast.native.library.load`.
        work: Its argument, a ctypes structure with a field ``blocks``.
    """
    count = min(torch.get_num_threads(), work.blocks)
    team = None if _forked else _team()
    if count > 1 and team is not None and isinstance(function, _NATIVE):
        address = ctypes.cast(function, ctypes.c_void_p)  # type: ignore[arg-type]
        team(address, ctypes.addressof(work), count, 0)
        return
    futures = [_helpers(count - 1).submit(function, work) for _ in range(count - 1)]
    try:
        function(work)
    finally:
        wait(futures)
