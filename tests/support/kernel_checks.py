"""Judges a kernel's numbers by the errors PyTorch makes in the same dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor


def error(found: Tensor, exact: Tensor) -> float:
    """Return the largest error, relative to the largest magnitude; infinite where one is NaN."""
    assert found.shape == exact.shape, f"shape {tuple(found.shape)}, expected {tuple(exact.shape)}"
    if not exact.numel():
        return 0.0
    away = (found.double() - exact.double()).abs().max()
    return float(torch.where(away.isnan(), torch.inf, away) / exact.abs().max().clamp_min(1e-300))


def assert_as_exact(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """Check that a kernel is at most twice as far from float64 as PyTorch in the same dtype.

    Args:
        found: The kernel's result.
        plain: That of the plain operations, in the kernel's dtype.
        exact: That of the plain operations in float64.
    """
    assert found.dtype == plain.dtype, f"dtype {found.dtype}, expected {plain.dtype}"
    eps = torch.finfo(found.dtype).eps
    # Less than epsilon is luck of few entries, and not to be asked of another order of a sum.
    allowed = 2 * max(error(plain, exact), eps) + eps
    assert error(found, exact) <= allowed, f"error {error(found, exact):.2e}, allowed {allowed:.2e}"


def _poison(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return tensor.fill_(torch.nan)
    return tensor.fill_(torch.iinfo(tensor.dtype).max) if tensor.dtype != torch.bool else tensor


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill new uninitialised memory with NaN, or the largest integer, in a ``with`` block."""
    with (
        mock.patch.multiple(
            torch,
            empty=lambda *a, _make=torch.empty, **k: _poison(_make(*a, **k)),
            empty_like=lambda *a, _make=torch.empty_like, **k: _poison(_make(*a, **k)),
        ),
        mock.patch.object(
            Tensor, "new_empty", lambda *a, _make=Tensor.new_empty, **k: _poison(_make(*a, **k))
        ),
    ):
        yield
