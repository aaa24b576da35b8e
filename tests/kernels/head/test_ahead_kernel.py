"""The pass of a step that looks ahead, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.adam_cases import make_head
from tests.support.head_cases import PLAIN
from tests.support.kernel_checks import poisoned

pytest.importorskip("triton")

from hypermask_fast.head import ahead as in_pytorch
from hypermask_fast.head.adam import AdamOptions
from hypermask_fast.head.types import Head, HeadStep, Moments
from hypermask_fast.kernels import tuning
from hypermask_fast.kernels.head import ahead, row_tiles
from hypermask_fast.kernels.head.adam import adam_scalars

COEFFICIENT = 0.25


@pytest.fixture(autouse=True)
def _no_stale_memory() -> Iterator[None]:
    with poisoned():
        yield


def make_inputs(
    head: list[Tensor], earlier: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """dz, hidden, and targets, half of which are NaN in the last row."""
    (rows, width), device = head[0].shape, head[0].device
    hidden = torch.randn(earlier + 1, width, device=device)
    logits = hidden[1:] @ head[0].t() + head[1]
    # Far from what they are and from where the shift leads, so that none rounds to its target.
    away = torch.randn_like(logits).sign() * (3 + torch.rand_like(logits))
    targets = (logits + away).to(dtype)
    targets[-1:, ::2] = torch.nan
    return [torch.randn(rows, device=device), hidden, targets]


def in_float64(
    head: list[Tensor], inputs: list[Tensor], **options: Any
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The step in PyTorch, whose own tests hold it against autograd and torch.optim."""
    a, b, *moments = (t.double().clone() for t in head)
    dz, hidden, targets = (t.double() for t in inputs)
    whole = Head(a, b, Moments(*moments[:2]), Moments(*moments[2:]))
    adam = AdamOptions(**{**PLAIN, **options})
    step = HeadStep(whole, dz[None], hidden, targets, COEFFICIENT, adam, looks_ahead=True)
    grads = in_pytorch.step_rows(step)
    return [a, b, *moments], grads.hidden, grads.squares


def on_kernel(
    head: list[Tensor], inputs: list[Tensor], processors: int = 1, **options: Any
) -> tuple[Tensor, Tensor]:
    chosen = {**PLAIN, **options}
    return ahead.step_ahead(
        *(*head, *inputs),
        eps=chosen["eps"],
        coefficient=torch.tensor([COEFFICIENT], device=head[0].device),
        scalars=adam_scalars(head[0].device, **chosen),
        processors=processors,
    )


def check(head: list[Tensor], inputs: list[Tensor], processors: int = 1, **options: Any) -> None:
    """Compare up to the roundings of sums of some hundred float32 terms near 1."""
    exact, grad, squares = in_float64(head, inputs, **options)
    found, total = on_kernel(head, inputs, processors, **options)
    scale = float(grad.abs().max().clamp_min(1))
    torch.testing.assert_close(found.double(), grad, rtol=1e-5, atol=2e-6 * scale)
    assert not found[0].any()
    assert total.dtype == torch.float64
    assert float(total) == pytest.approx(float(squares), rel=1e-5, abs=0)
    for ours, expected in zip(head, exact, strict=True):
        rtol = 2**-8 if ours.dtype == torch.bfloat16 else 2e-5
        torch.testing.assert_close(ours.double(), expected, rtol=rtol, atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="adam"),
        pytest.param({"step": 1}, id="first"),
        pytest.param({"weight_decay": 0.1}, id="l2"),
        pytest.param({"weight_decay": 0.1, "decoupled": True}, id="adamw"),
        pytest.param({"maximize": True, "beta1": 0.0}, id="maximize"),
        # Where it stands matters: as large as the root of the second moment.
        pytest.param({"eps": 0.5}, id="eps"),
    ],
)
def test_a_step_is_that_of_float64(options: dict[str, Any], device: torch.device) -> None:
    torch.manual_seed(0)
    head = make_head(70, 25, device)
    check(head, make_inputs(head, 4), **options)


@pytest.mark.parametrize(
    ("rows", "width", "earlier"),
    [(1, 1, 1), (40, 9, 0), (33, 100, 9), (17, 256, 2), (20, 33, row_tiles.MOST)],
    ids=str,
)
def test_heads_of_all_sizes(rows: int, width: int, earlier: int, device: torch.device) -> None:
    torch.manual_seed(rows)
    head = make_head(rows, width, device)
    check(head, make_inputs(head, earlier))


@pytest.mark.parametrize("config", ahead.CONFIGS, ids=str)
@pytest.mark.parametrize("processors", [1, 5])
def test_every_configuration(config: Any, processors: int, device: torch.device) -> None:
    torch.manual_seed(0)
    head = make_head(150, 40, device)
    with tuning.forced("step_ahead", config):
        check(head, make_inputs(head, 3), processors)


def test_moments_and_targets_in_bfloat16(device: torch.device) -> None:
    torch.manual_seed(0)
    head = make_head(70, 25, device, torch.bfloat16)
    check(head, make_inputs(head, 4, torch.bfloat16))


def test_a_step_that_is_not_taken_changes_nothing(device: torch.device) -> None:
    torch.manual_seed(0)
    head = make_head(40, 9, device)
    inputs = make_inputs(head, 2)
    inputs[0][:] = torch.nan
    before = [t.clone() for t in head]
    grad, total = on_kernel(head, inputs, finite=torch.tensor(False, device=device))
    assert all(map(torch.equal, head, before))
    assert bool(grad.isfinite().all())
    assert bool(total.isfinite())


def test_rows_of_targets_may_be_apart(device: torch.device) -> None:
    torch.manual_seed(0)
    head = make_head(40, 9, device)
    dz, hidden, targets = make_inputs(head, 2)
    wide = torch.full((4, 100), torch.nan, device=device)
    wide[::2, :40] = targets
    check(head, [dz, hidden, wide[::2, :40]])
