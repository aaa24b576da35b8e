"""Runs jobs in processes of their own, only to fill the caches of compilers on the disk."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

_WORKERS = 16
_POOLS = 4


def log(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def in_a_line(error: BaseException) -> str:
    """Return the class and message of an error, shortened."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def device_works() -> bool:
    """Return whether this process can go on to use the GPU: after a bad access it cannot."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def leave_after_a_fault() -> None:
    """End a process whose device has failed, as nothing after would run; else free its memory."""
    if not device_works():
        os._exit(1)
    torch.cuda.empty_cache()


def _run_pool(job: Callable[[str], None], names: Sequence[str], end: float) -> list[str]:
    """Call ``job`` for names, and return those that are left because a process died."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(_WORKERS, os.cpu_count() or 1), mp_context=spawn)
    left = []
    try:
        futures = {pool.submit(job, name): name for name in names}
        for future, name in futures.items():
            try:
                future.result(max(0.0, end - time.monotonic()))
            except TimeoutError:
                log("out of time to compile ahead")
                return []
            except BrokenProcessPool:
                left.append(name)
            except Exception as error:
                log(f"{name} was not compiled ahead: {in_a_line(error)}")
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            if time.monotonic() < end:
                process.join(5)
            if process.is_alive():
                process.kill()
    return left


def run_ahead(job: Callable[[str], None], names: Sequence[str], end: float) -> None:
    """Call ``job`` for each name, many at once; what fails is logged, and does no harm.

    Args:
        job: A function of a module.
        names: Its arguments.
        end: Jobs that are not done at this value of ``time.monotonic()`` are given up.
    """
    start = time.monotonic()
    # A process compiles with one thread: there are enough of them.
    before = os.environ.get("TORCHINDUCTOR_COMPILE_THREADS")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    try:
        left = list(names)
        for _ in range(_POOLS):
            left = _run_pool(job, left, end) if left else []
        if left:
            log(f"processes died; {len(left)} jobs were not compiled ahead: {', '.join(left)}")
    finally:
        if before is None:
            del os.environ["TORCHINDUCTOR_COMPILE_THREADS"]
        else:
            os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = before
    log(f"compiled ahead in {time.monotonic() - start:.0f} s")
