"""Memory that tensors would take, counted while code runs on the meta device; memory there is."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KEPT = "kept by the allocator"
# glibc gives larger blocks back to the system as they are freed; smaller ones stay with the heap.
_HEAP_BLOCK = 32 * 2**20


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of living meta tensors, by the part that they were made for.

    Args:
        heap: Count what blocks below 32 MiB took at most as taken until the end, as in a process
            on a CPU.
    """

    def __init__(self, *, heap: bool) -> None:
        super().__init__()
        self.part = "other"
        self.heap = heap
        self._live: Counter[str] = Counter()
        self._small = self._most_small = self._large = 0
        self._owner: dict[int, str] = {}
        self._peak_bytes = 0
        self._peak: dict[str, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self._add(leaf)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._owner or not size:
            return
        self._owner[key] = self.part
        self._count(self.part, size, 1)
        weakref.finalize(storage, self._free, key, size).atexit = False
        self._most_small = max(self._most_small, self._small)
        if self._total() > self._peak_bytes:
            self._peak_bytes, self._peak = self._total(), self._snapshot()

    def _free(self, key: int, size: int) -> None:
        self._count(self._owner.pop(key), size, -1)

    def _count(self, part: str, size: int, sign: int) -> None:
        self._live[part] += sign * size
        if size < _HEAP_BLOCK:
            self._small += sign * size
        else:
            self._large += sign * size

    def _total(self) -> int:
        return self._large + (self._most_small if self.heap else self._small)

    def _snapshot(self) -> dict[str, int]:
        parts = {part: size for part, size in self._live.items() if size}
        kept = self._total() - self._small - self._large
        return parts | ({KEPT: kept} if kept else {})

    @contextmanager
    def making(self, part: str) -> Iterator[None]:
        """Count what is allocated in a ``with`` block as this part."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def assign(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Count tensors that are alive as this part."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            before = self._owner.get(storage._cdata)
            if before is not None:
                self._owner[storage._cdata] = part
                self._live[before] -= storage.nbytes()
                self._live[part] += storage.nbytes()

    def live(self, part: str) -> int:
        """Return the bytes of a part that are alive."""
        return self._live[part]

    def take_peak(self) -> dict[str, int]:
        """Return the bytes of each part at the peak since the last call."""
        peak = self._peak
        self._peak_bytes, self._peak = self._total(), self._snapshot()
        return peak


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
    return min(found, default=None)


def available_memory(device: str) -> int | None:
    """Return the bytes that a new allocation on a device can have, or None where nothing tells.

    Args:
        device: "cpu" (of the machine, or of the control group if that is less), or "cuda", with a
            number or without.
    """
    if device == "cpu":
        return _host_memory()
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    chosen = torch.device(device)
    is_there = chosen.index is None or chosen.index < torch.cuda.device_count()
    return torch.cuda.mem_get_info(chosen)[0] if is_there else None
