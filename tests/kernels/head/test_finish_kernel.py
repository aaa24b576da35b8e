"""The sums that end a pass over a head, against sums in float64."""

from __future__ import annotations

import pytest
import torch

from tests.support.kernel_checks import poisoned

pytest.importorskip("triton")

from hypermask_fast.kernels.head.finish import finish


@pytest.mark.parametrize(
    ("programs", "rows", "width"),
    [(1, 1, 1), (16, 5, 25), (128, 2, 8), (129, 3, 33), (700, 16, 7)],
)
def test_sums_are_those_of_float64(
    programs: int, rows: int, width: int, device: torch.device
) -> None:
    parts = torch.randn(programs, rows, width, device=device)
    # What cancels in float32.
    parts[0] += 1e6
    parts[-1] -= 1e6
    squares = torch.randn(3, programs, device=device).square() * 1e4
    with poisoned():
        grad, total = finish(parts, squares)
    exact = parts.double().sum(0)
    # Sums in float64, off by far less than the one rounding to float32.
    assert grad.dtype == torch.float32
    assert (grad.double() - exact).abs().max() <= 2**-24 * exact.abs().max() + 1e-6 * 2**-20
    assert total.dtype == torch.float64
    assert total.shape == ()
    torch.testing.assert_close(total, squares.double().sum(), rtol=1e-14, atol=0)


def test_what_is_not_a_number_stays(device: torch.device) -> None:
    parts = torch.ones(3, 2, 4, device=device)
    parts[1, 1, 2] = torch.nan
    grad, total = finish(parts, torch.tensor([1.0, torch.inf], device=device))
    assert grad.isnan().nonzero().tolist() == [[1, 2]]
    assert total == torch.inf
