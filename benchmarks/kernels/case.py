"""Kernels by themselves beside what they replace: the head's passes, masks, and masked layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Output = Sequence[Tensor]


class Problem(NamedTuple):
    """One draw of a case's inputs.

    Attributes:
        runs: By variant; each returns what it made or changed, and may change the inputs.
        exact: The same in float64, from inputs that nothing changed.
    """

    runs: Mapping[str, Callable[[], Output]]
    exact: Callable[[], Output]


@dataclass(frozen=True)
class KernelCase:
    """A kernel with its alternatives.

    Attributes:
        name: As on the command line.
        make: Draws inputs on torch's default device.
        floor_bytes: What has to be moved at least: inputs read once and outputs written once.
        variants: In the order of the rows. Those that begin with "kernel" are compared with the
            best of the others; "eager" is also the measure of exactness.
        on_cuda: Variants that only a GPU has.
    """

    name: str
    make: Callable[[], Problem]
    floor_bytes: int
    variants: tuple[str, ...]
    on_cuda: tuple[str, ...] = ()

    def variants_on(self, device: str) -> list[str]:
        """Return the variants that a device has."""
        return [v for v in self.variants if device == "cuda" or v not in self.on_cuda]


def error(found: Output, exact: Output) -> float:
    """Return the largest relative error (in root mean square) of several tensors; NaN is infinite.

    Raises:
        ValueError: There are more or fewer tensors, or one has another shape.
    """
    worst = 0.0
    for one, truth in zip(found, exact, strict=True):
        if one.shape != truth.shape:
            raise ValueError(f"a result has shape {tuple(one.shape)}, not {tuple(truth.shape)}")
        away = float((one.double() - truth).norm() / truth.norm().clamp_min(1e-300))
        worst = max(worst, away if away == away else float("inf"))
    # JSON has no infinity.
    return min(worst, 1e300)


def draw(case: KernelCase, device: str) -> Problem:
    """Make a case's inputs, the same ones each time."""
    torch.manual_seed(1)
    with torch.device(device):
        return case.make()
