"""What numbers depend on beside the code: the machine, versions, and its memory's bandwidth."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
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
