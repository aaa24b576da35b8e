"""Tells whether a configuration gives what the default gives, before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.launches.launch import Launch, Run
from hypermask_fast.kernels import tuning

_ALLOWED = {torch.float16: 2e-2, torch.bfloat16: 2e-2}
"""Of the largest magnitude: configurations add in other orders, and round once more to 16 bits."""
_ALLOWED_ELSE = 1e-3


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors of nested sequences, mappings and partial calls, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, partial):
        return tensors_of((value.args, value.keywords))
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


def _far(found: Tensor, expected: Tensor) -> str | None:
    """Return how far a tensor is from what it should be, where that is too far."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{found.dtype} of shape {tuple(found.shape)}"
    if not found.numel():
        return None
    one, other = (t if t.dtype == torch.float64 else t.float() for t in (found, expected))
    same = (one == other) | (one.isnan() & other.isnan())
    away = torch.where(same, 0.0, (one - other).abs()).max()
    size = torch.where(other.isfinite(), other.abs(), 0.0).max()
    allowed = _ALLOWED.get(found.dtype, _ALLOWED_ELSE)
    # NaN is never within.
    if bool(away <= allowed * size):
        return None
    return f"{float(away):.1e} away where the largest is {float(size):.1e}"


class Check:
    """Compares what a launch gives, and what it changes, with its default configuration's.

    Args:
        launch: The launch; its ``make`` draws the same inputs from the same seed.
        on_device: Makes the inputs on the device: called with ``make``.
    """

    def __init__(self, launch: Launch, on_device: Callable[[Callable[[], Run]], Run]) -> None:
        self._launch, self._on_device = launch, on_device
        self._expected = self._results(launch.configs[0])

    def _results(self, config: tuning.Config) -> list[Tensor]:
        torch.manual_seed(1)
        run = self._on_device(self._launch.make)
        with tuning.forced(self._launch.kernel, config):
            given = run()
        return [*tensors_of(run), *tensors_of(given)]

    def fault(self, config: tuning.Config) -> str | None:
        """Return what is wrong with a configuration's result, or None."""
        found = self._results(config)
        if len(found) != len(self._expected):
            return f"{len(found)} results, not {len(self._expected)}"
        pairs = zip(found, self._expected, strict=True)
        wrong = next(filter(None, (_far(one, other) for one, other in pairs)), None)
        # The next configuration is not to find right numbers in memory that it does not write.
        for tensor in found:
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        return wrong
