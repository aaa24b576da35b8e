"""A launch of a kernel: what makes its tensors, its configurations, and the way without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hypermask_fast import backend
from hypermask_fast.kernels.tuning import Config

Run = Callable[[], object]


class Launch(NamedTuple):
    """A launch of one kernel.

    Attributes:
        make: Makes the tensors and returns what launches.
        kernel: Name of the kernel in the table of configurations.
        configs: Those that it ships, the default first.
        alternative: Like ``make``, the way to the same result without the kernel; or None.
    """

    make: Callable[[], Run]
    kernel: str
    configs: Sequence[Config]
    alternative: Callable[[], Run] | None = None


def route(name: str, make: Callable[[], Run]) -> Launch:
    """Return a launch that is compared with the same on the reference; there is one way to do it.

    Args:
        name: In the table.
        make: As in :class:`Launch`.
    """

    def on(way: str) -> Run:
        run = make()

        def launch() -> object:
            with backend(way):
                return run()

        return launch

    return Launch(partial(on, "triton"), name, ({"kernels": 1},), partial(on, "reference"))


def floats(
    *shape: int, dtype: torch.dtype = torch.float32, positive: bool = False, last: bool = False
) -> Tensor:
    """Return normal numbers, which as zeros would not be as slow as real ones.

    Args:
        *shape: Of the tensor.
        dtype: Default float32.
        positive: Return their magnitudes.
        last: Return an image (N, C, H, W) in channels_last.
    """
    x = torch.randn(shape, dtype=dtype)
    x = x.abs() if positive else x
    return x.to(memory_format=torch.channels_last) if last else x
