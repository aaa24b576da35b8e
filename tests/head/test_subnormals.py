"""Native passes over a head take subnormal numbers for 0, in themselves and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hypermask_fast.head import boxes
from hypermask_fast.head.types import Head, HeadStep, KeptBoxes
from tests.support.head_cases import adam_rows, make_head, options_of, step, tensors

ROWS, WIDTH = 67, 13
TINY = torch.finfo(torch.float32).tiny
pytestmark = pytest.mark.usefixtures("compiled")


def _trained_head() -> Head:
    """One in whose even rows no gradient has come for long."""
    head = make_head(ROWS, WIDTH, torch.float32)
    for moment in tensors(head)[2:]:
        moment[::2] = TINY * torch.rand(moment[::2].shape)
    return head


def _dz(count: int) -> Tensor:
    dz = torch.randn(count, ROWS)
    dz[:, ::2] = 0
    return dz


def _update_alone(head: Head) -> None:
    adam_rows(head, _dz(1), torch.randn(1, WIDTH))


def _whole_step(head: Head) -> None:
    step(head, _dz(1)[0], torch.randn(3, WIDTH), torch.randn(2, ROWS), coefficient=0.0)


def _step_of_boxes(head: Head) -> None:
    hidden = torch.randn(2, WIDTH)
    boxes.step_rows(HeadStep(head, _dz(2), hidden, KeptBoxes(None, radii=True), 0.0, options_of()))


PASSES = pytest.mark.parametrize("take", [_update_alone, _whole_step, _step_of_boxes])


@PASSES
def test_moments_that_decayed_become_zero(take: Callable[[Head], None]) -> None:
    head = _trained_head()
    before = head.weight.clone()
    take(head)
    assert head.moments is not None
    for moment in head.moments:
        assert not moment[::2].any()
        assert moment[1::2].all()
    # Their steps, of less than 1e-2 * TINY / 1e-8, are no unit in the last place of a weight.
    assert torch.equal(head.weight[::2], before[::2])
    assert (head.weight[1::2] != before[1::2]).any()


@pytest.fixture(params=[False, True], ids=["kept", "flushed"])
def flushed(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the caller's own arithmetic takes subnormal numbers for 0."""
    if not torch.set_flush_denormal(request.param):
        pytest.skip("this processor always keeps subnormal numbers")
    yield request.param
    torch.set_flush_denormal(False)


@PASSES
def test_other_arithmetic_is_as_before(take: Callable[[Head], None], flushed: bool) -> None:
    take(_trained_head())
    half = torch.full((), TINY) / 2
    assert (half.item() == 0) is flushed


@PASSES
def test_so_is_that_of_pytorchs_other_threads(take: Callable[[Head], None]) -> None:
    take(_trained_head())
    assert (torch.full((1_000_000,), TINY) / 2).all()
