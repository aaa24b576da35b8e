"""Errors of a network that is run: those of its inputs in a sentence, others as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.errors import shown
from hypermask_fast.methods.batches import random_state_kept, run, signature

X = torch.zeros(4, 5)


class _Fails(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


class _Own(RuntimeError):
    """What a user's hook raises to leave a forward."""


def test_inputs_that_do_not_fit() -> None:
    message = (
        r"an input of shape \(4, 5\) and torch.float32 does not run through Linear \(mat1 .*\);"
    )
    with pytest.raises(ValueError, match=message) as caught:
        run(nn.Linear(3, 2), X)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ValueError, match="of shape"):
        run(nn.Linear(3, 2), X, signature(X.double()))


@pytest.mark.parametrize(
    "error", [_Own("enough"), torch.OutOfMemoryError("none left"), KeyError(3)]
)
def test_errors_of_something_else(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        run(_Fails(error), X)
    assert caught.value is error


def test_errors_for_inputs_that_ran_before() -> None:
    error = RuntimeError("not of the inputs")
    with pytest.raises(RuntimeError) as caught:
        run(_Fails(error), X, signature(X[:2]))
    assert caught.value is error


def test_only_the_first_rows() -> None:
    assert run(nn.Identity(), X, rows=2).shape == (2, 5)
    assert run(nn.Identity(), X) is X


def test_a_function_that_raises_leaves_the_random_state() -> None:
    @random_state_kept
    def draw(fails: bool) -> Tensor:
        value = torch.rand(())
        if fails:
            raise KeyError("fails")
        return value

    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        draw(True)
    assert torch.equal(torch.get_rng_state(), before)
    draw(False)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("30", "'30'"),
        (torch.tensor(0.5), "tensor(0.5000)"),
        (torch.zeros(9, 1), "a Tensor of shape (9, 1) and torch.float32"),
        (np.zeros(2), "array([0., 0.])"),
        (np.zeros((2, 2)), "a ndarray of shape (2, 2) and float64"),
        (torch.zeros(3, device="meta"), "tensor(..., device='meta', size=(3,))"),
        (nn.Sequential(nn.ReLU()), "a Sequential"),
        (nn.ReLU, "the class ReLU"),
        (object(), "a object"),
        (list(range(100)), "[0, 1, 2, 3, 4, 5, ...]"),
    ],
)
def test_values_in_errors(value: object, expected: str) -> None:
    assert shown(value) == expected
