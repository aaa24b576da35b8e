"""Memory that tensors would take, counted while code runs on the meta device."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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
