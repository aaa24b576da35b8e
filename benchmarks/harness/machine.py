"""What numbers depend on beside the code: the machine, versions, and its memory's bandwidth."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import hypermask_fast

_ROOT = Path(__file__).parents[2]


def _commit() -> str | None:
    """Return the commit of the checkout, with "+" where files differ from it."""
    command = ["git", "-C", str(_ROOT)]
    try:
        head, changes = (
            subprocess.run([*command, *args], capture_output=True, text=True, check=True).stdout
            for args in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changes.strip() else "")


def _copy_seconds(source: torch.Tensor, target: torch.Tensor) -> float:
    if source.device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begun = time.perf_counter()
    target.copy_(source)
    return time.perf_counter() - begun


def copy_bandwidth(device: str) -> float:
    """Return bytes a second, read and written, of a copy: the median of 9.

    Of 256 MiB, or on a GPU, timed between events, of 1 GiB.
    """
    source = torch.ones(2**28 if device == "cuda" else 2**26, device=device)
    target, nbytes = torch.empty_like(source), 2 * source.nbytes
    seconds = statistics.median([_copy_seconds(source, target) for _ in range(10)][1:])
    del source, target
    if device == "cuda":
        torch.cuda.empty_cache()
    return nbytes / seconds


def environment(device: str, threads: int) -> dict[str, Any]:
    """Return machine, versions and commit, as every row carries them."""
    model = platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    machine: dict[str, Any] = {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
    }
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hypermask_fast": hypermask_fast.__version__,
    }
    if device == "cuda":
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions["triton"] = metadata.version("triton")
    return {"machine": machine, "versions": versions, "commit": _commit()}
