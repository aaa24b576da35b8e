"""Draws tensors and options of a case, and judges results.

A case is drawn from the seed, its kernel's name and its number alone. Its tensors lie in storages
of NaN or the largest integer, which shows reads beside them, and writes beside those that a kernel
changes. Errors are relative to the largest sum of magnitudes of a result, so that no cancellation
looks like one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast.kernels import tuning
from tests.support.kernel_checks import assert_as_exact, poisoned, rounding_bound
from tests.support.planted import choose_matrix_cores

FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
DEVICE = torch.device("cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda")
# Of x, the weights and the logits.
DTYPES = [(FLOAT, FLOAT, FLOAT)] * 3 + [
    (HALF, HALF, FLOAT),
    (BRAIN, BRAIN, FLOAT),
    (HALF, HALF, HALF),
    (BRAIN, BRAIN, BRAIN),
    (FLOAT, FLOAT, BRAIN),
    (BRAIN, FLOAT, FLOAT),
    (HALF, FLOAT, FLOAT),
]
SIZES = (1, 1, 2, 3, 5, 7, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 67, 100, 127, 129, 131, 257, 300)
LAYOUTS = ("contiguous", "contiguous", "unaligned", "sliced", "transposed", "every second")
GRADIENTS = (*LAYOUTS, "one row", "one number")
THRESHOLDS = (None, -torch.inf, 0.0, 0.3, 0.5, 0.8, 1.0, 2.0)


def _beside(dtype: torch.dtype) -> float:
    """What surrounds tensors: NaN, or the largest integer."""
    return torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max


class Case:
    """The choices of one case, by name, and tensors inside storages of NaN."""

    def __init__(self, key: str) -> None:
        self.choices: dict[str, object] = {}
        self._random = random.Random(key)
        self._generator = torch.Generator().manual_seed(self._random.getrandbits(62))
        self._storages: list[tuple[Tensor, Tensor]] = []

    def one(self, name: str, options: Sequence[Any]) -> Any:
        self.choices[name] = self._random.choice(options)
        return self.choices[name]

    def often(self, name: str, share: float = 0.5) -> bool:
        self.choices[name] = self._random.random() < share
        return bool(self.choices[name])

    def size(self, name: str, most: int, empty: float = 0.0) -> int:
        if self._random.random() < empty:
            self.choices[name] = 0
            return 0
        return int(self.one(name, [size for size in SIZES if size <= most]))

    def draw(self, low: int, high: int) -> int:
        """A number from low up to below high, one of too many to tell."""
        return self._random.randrange(low, high)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)

    def place(
        self,
        name: str,
        values: Tensor,
        dtype: torch.dtype = FLOAT,
        layouts: Sequence[str] = LAYOUTS,
    ) -> Tensor:
        """Put values into a storage of NaN, or of the largest integer.

        ``GRADIENTS`` have strides of 0 among their layouts.
        """
        layout = self.one(f"{name} is", layouts)
        shape = values.shape
        if layout == "one row" and values.dim():
            return self.place(name, values[:1], dtype).expand(shape)
        if layout == "one number" and values.numel():
            return self.place(name, values.flatten()[:1], dtype).expand(shape)
        order = list(reversed(range(len(shape))))
        if layout == "transposed":
            order.reverse()
        elif layout == "channels last":
            order = [1, 3, 2, 0]
        strides, reach = [0] * len(shape), 2 if layout == "every second" else 1
        for axis in order:
            strides[axis] = reach
            reach = reach * shape[axis] + (3 if layout == "sliced" else 0)
        before = 1 if layout in ("unaligned", "sliced") else 64
        size = before + reach + 64
        storage = torch.full((size,), _beside(dtype), dtype=dtype, device=DEVICE)
        view = storage.as_strided(shape, strides, before).copy_(values)
        beside = torch.ones(size, dtype=torch.bool, device=DEVICE)
        beside.as_strided(shape, strides, before).fill_(False)
        self._storages.append((storage, beside))
        return view

    def normals(self, name: str, *shape: int, **options: Any) -> Tensor:
        return self.place(name, self.normal(*shape), **options)

    def assert_nothing_beside_was_written(self) -> None:
        for storage, beside in self._storages:
            found, kept = storage[beside], _beside(storage.dtype)
            same = found.isnan() if storage.is_floating_point() else found == kept
            assert same.all(), "a kernel wrote beside a tensor"


def judge(
    found: Tensor,
    exact: Tensor,
    size: Tensor,
    terms: Tensor | float,
    narrow: torch.dtype = FLOAT,
) -> None:
    """Check a result.

    Args:
        found, exact: The kernel's, and that in float64.
        size: The sums of the magnitudes of its terms, of which the largest counts.
        terms, narrow: As of :func:`~tests.support.kernel_checks.rounding_bound`.
    """
    if found.numel():
        bound = rounding_bound(size.double().max(), terms, narrow)
        assert_as_exact(found, exact, bound.expand(exact.shape), found.dtype)


def check(function: Callable[..., Any], found: Any, **arguments: Any) -> None:
    """Judge a kernel by the plain function of the same arguments; a second result is that of z."""

    def results(change: Callable[[str, Tensor], Tensor | None]) -> tuple[Tensor, ...]:
        changed = {k: change(k, a) if isinstance(a, Tensor) else a for k, a in arguments.items()}
        found = function(**changed)
        return found if isinstance(found, tuple) else (found,)

    def changed(
        change: Callable[[Tensor], Tensor], mask: float | None = None
    ) -> Callable[[str, Tensor], Tensor | None]:
        """Change tensors; ``mask``: all logits are that, and nothing is removed."""

        def each(name: str, tensor: Tensor) -> Tensor | None:
            tensor = tensor.double()
            if mask is not None and name.endswith("threshold"):
                return None
            if mask is not None and name.endswith("logits"):
                return torch.full_like(tensor, mask)
            return tensor if name.endswith(("threshold", "logits")) else change(tensor)

        return each

    found = found if isinstance(found, tuple) else (found,)
    exact = results(changed(lambda t: t))
    sizes, counts = results(changed(Tensor.abs)), results(changed(torch.ones_like, 30.0))
    # A slope 1 - m^2 is off by a part of 1, and m^2 is added. A sum of ones is its own length.
    steep = results(changed(Tensor.abs, 1e-30)), results(changed(torch.ones_like, 1e-30))
    dtypes = [a.dtype for a in arguments.values() if isinstance(a, Tensor)]
    narrow = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    for place, (mine, right) in enumerate(zip(found, exact, strict=False)):
        if mine is not None and mine.numel():
            size, count = (2 * steep[0][1], steep[1][1]) if place else (sizes[0], counts[0])
            judge(mine, right, size, float(count.max()), narrow)


@contextmanager
def any_config(case: Case, kernels: Mapping[str, Sequence[Any]]) -> Iterator[None]:
    """Launch the interpreter with one of several configurations, a GPU with its own."""
    with ExitStack() as stack:
        for name, configs in kernels.items() if DEVICE.type == "cpu" else ():
            stack.enter_context(tuning.forced(name, case.one(f"{name} has", configs)))
        if DEVICE.type == "cpu":
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            choose_matrix_cores(patch, case.one("matrix cores read shared memory", (False, True)))
        stack.enter_context(poisoned())
        yield


def some_mask(
    case: Case, name: str, shape: Sequence[int], dtype: torch.dtype, threshold: float | None
) -> Tensor:
    """Logits that no rounding moves across the threshold; many are equal, or saturated."""
    z = case.normal(*shape)
    kind = case.one(f"{name} values", ("normal", "normal", "wide", "ties"))
    z = 12 * z if kind == "wide" else z.round() if kind == "ties" else z
    if threshold is not None:
        near = (z.tanh().abs() - threshold).abs() < 0.02
        z = torch.where(near, 20 * z.sign() if threshold == 1 else 2 * z, z)
    return case.place(name, z, dtype)


def of_logits(
    case: Case, name: str, shape: Sequence[int], dtype: torch.dtype, tasks: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Logits (T, ...), and a threshold or None; of one task both without the first axis."""
    level = case.one(f"{name} threshold", THRESHOLDS)
    z = some_mask(case, name, (*(tasks,) * (tasks > 0), *shape), dtype, level)
    if level is None:
        return z, None
    return z, torch.full((tasks,) * (tasks > 0), level, dtype=dtype, device=DEVICE)


def of_bias(case: Case, width: int, w: torch.dtype, z: torch.dtype, tasks: int = 0) -> list[Any]:
    """A bias with its logits and threshold; each may be None."""
    kind = case.one("bias", ("none", "plain", "masked", "masked"))
    bias = None if kind == "none" else case.normals("b", width, dtype=w)
    masked = of_logits(case, "z_b", (width,), z, tasks) if kind == "masked" else (None, None)
    return [bias, *masked]


def named(
    weight: Tensor, z: Tensor, q: Tensor | None, bias: Sequence[Any] | None = None
) -> dict[str, Any]:
    """Arguments by the names that every masked layer has."""
    names = {"weight": weight, "weight_logits": z, "weight_threshold": q}
    if bias is not None:
        names |= dict(zip(("bias", "bias_logits", "bias_threshold"), bias, strict=True))
    return names


def of_task(arguments: dict[str, Any], task: int) -> dict[str, Any]:
    masks = ("logits", "threshold")
    return {k: a[task] if a is not None and k.endswith(masks) else a for k, a in arguments.items()}
