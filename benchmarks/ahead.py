"""Runs jobs in processes of their own, only to fill the caches of compilers on the disk."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

_WORKERS = 16


def log(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def in_a_line(error: BaseException) -> str:
    """Return the class and message of an error, shortened."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def run_ahead(job: Callable[[str], None], names: Sequence[str], end: float) -> None:
    """Call ``job`` for each name, many at once; what fails is logged, and does no harm.

    Args:
        job: A function of a module.
        names: Its arguments.
        end: Jobs that are not done at this value of ``time.monotonic()`` are given up.
    """
    start, spawn = time.monotonic(), multiprocessing.get_context("spawn")
    # A process compiles with one thread: there are enough of them.
    before = os.environ.get("TORCHINDUCTOR_COMPILE_THREADS")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    pool = ProcessPoolExecutor(min(_WORKERS, os.cpu_count() or 1), mp_context=spawn)
    try:
        for name, future in [(name, pool.submit(job, name)) for name in names]:
            try:
                future.result(max(0.0, end - time.monotonic()))
            except TimeoutError:
                log("out of time to compile ahead")
                break
            except BrokenProcessPool:
                log(f"a process died at {name}; the rest is not compiled ahead")
                break
            except Exception as error:
                log(f"{name} was not compiled ahead: {in_a_line(error)}")
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.join(max(1.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
        if before is None:
            del os.environ["TORCHINDUCTOR_COMPILE_THREADS"]
        else:
            os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = before
    log(f"compiled ahead in {time.monotonic() - start:.0f} s")
