"""The memory that a device has left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch


def _numbers(path: Path) -> dict[str, int]:
    """Return the ``name number`` lines of a file of the kernel's; none where it is not there."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines]
    return {w[0].rstrip(":"): int(w[1]) for w in words if len(w) > 1 and w[1].isdecimal()}


def _number(path: Path) -> int | None:
    """Return the number in a file, or None where it holds none (``max``) or is not there."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _cgroup_folders(proc: Path, mounts: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Yield folders that may limit this process, with the names of limit, usage and cache."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root = mounts / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif not controllers:
            root, names = mounts, ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be the host's, and the root is the container's own group.
        for group in {root, folder, *(f for f in folder.parents if root in f.parents)}:
            yield (group, *names)


# The rows of /proc/self/limits, and what counts towards each in /proc/self/status.
_LIMITS = (("Max data size", "VmData"), ("Max address space", "VmSize"))


def _own_limits(proc: Path) -> Iterator[int]:
    """Yield what the limits of this process (``ulimit -d``, ``ulimit -v``) leave to it."""
    try:
        lines = (proc / "self/limits").read_text().splitlines()
    except OSError:
        return
    used = _numbers(proc / "self/status")
    for line in lines:
        for row, counted in _LIMITS:
            most = line.removeprefix(row).split()[:1]
            if line.startswith(row) and most[0].isdecimal() and counted in used:
                yield max(0, int(most[0]) - used[counted] * 2**10)


def _host_memory(proc: Path = Path("/proc"), mounts: Path = Path("/sys/fs/cgroup")) -> int | None:
    found = []
    kib = _numbers(proc / "meminfo").get("MemAvailable")
    if kib is not None:
        found.append(kib * 2**10)
    for folder, limit, usage, cache in _cgroup_folders(proc, mounts):
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None:
            # The group's page cache is freed where memory is short.
            found.append(max(0, most - used + _numbers(folder / "memory.stat").get(cache, 0)))
    return min((*found, *_own_limits(proc)), default=None)


def available_memory(device: str) -> int | None:
    """Return the bytes that a new allocation on a device can have, or None where nothing tells.

    Args:
        device: "cpu" (of the machine, or of the control group or the process's limits if that is
            less), or "cuda", with a
            number or without.
    """
    if device == "cpu":
        return _host_memory()
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    chosen = torch.device(device)
    if chosen.index is not None and chosen.index >= torch.cuda.device_count():
        return None
    # What PyTorch's allocator holds and nothing uses is there for the next tensor.
    cached = torch.cuda.memory_reserved(chosen) - torch.cuda.memory_allocated(chosen)
    return torch.cuda.mem_get_info(chosen)[0] + cached
