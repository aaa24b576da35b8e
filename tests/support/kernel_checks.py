"""Judges a kernel's numbers by what rounding may make of them, in any order of their sums."""

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


ROUNDINGS = 16
"""Of a term in float32, beside those of the sum that it is in, in epsilons.

A product of three tf32 ones is off by 10 (2 for the product of both low parts, which is left out, 4
for each low part cut off to tf32), |tanh z| by 2 units in the last place, its slope 1 - m^2 by 3
more; one is the product of a weight and its mask.
"""


def rounding_bound(
    size: Tensor, terms: Tensor | float, narrow: torch.dtype = torch.float32
) -> Tensor:
    """Return how far sums may be from exact ones: to first order, for any order of adding.

    A sum of n terms, however grouped, is off by at most n - 1 roundings of the sum of their
    magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 4.2). A rounding is an
    epsilon, not a half, as matrix cores cut off.

    Args:
        size: The sums of the magnitudes of the terms, float64.
        terms: How many there are; where terms are sums themselves, with the number of theirs.
        narrow: The coarsest dtype of what is multiplied: a mask and its product with a weight are
            rounded to it, and a slope is twice as far off as its mask.
    """
    in_float32 = (terms + ROUNDINGS) * torch.finfo(torch.float32).eps
    return (in_float32 + 2 * torch.finfo(narrow).eps) * size


def assert_as_exact(
    found: Tensor, exact: Tensor, bound: Tensor, dtype: torch.dtype | None = None
) -> None:
    """Check that each entry of a kernel's result is within a bound, but for its own rounding.

    Args:
        found: The kernel's result.
        exact: That of the plain operations in float64.
        bound: How far it may be, as of :func:`rounding_bound`; of the same shape.
        dtype: What it has to have. Default: float32.
    """
    dtype = dtype or torch.float32
    assert found.dtype == dtype, f"dtype {found.dtype}, expected {dtype}"
    assert found.shape == exact.shape, f"shape {tuple(found.shape)}, expected {tuple(exact.shape)}"
    info = torch.finfo(dtype)
    allowed = bound + info.eps / 2 * (exact.abs() + bound) + info.tiny * info.eps
    over = (found.double() - exact).abs() / allowed
    # NaN is never within.
    wrong = ~(over <= 1)
    worst = float(over.nan_to_num(torch.inf).max()) if over.numel() else 0.0
    assert not wrong.any(), f"{int(wrong.sum())} of {over.numel()} beyond the bound, by {worst:.2g}"


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
