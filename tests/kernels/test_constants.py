"""Numbers that are made once, as long as they are few."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hypermask_fast.kernels import constants


def test_a_number_is_made_once_and_of_many_some_are_kept(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "_made", {})
    first = constants.constant(0.5, device, torch.float64)
    for step in range(2 * constants._MOST):
        rate = constants.constant(1 / (step + 3), device, torch.float64)
        assert rate.dtype == torch.float64
        assert rate.item() == 1 / (step + 3)
    assert len(constants._made) == constants._MOST
    assert constants.constant(0.5, device, torch.float64) is first
    assert constants.constant(0.5, device).dtype == torch.float32


def test_a_mode_of_fake_tensors_gets_a_fake_one(device: torch.device) -> None:
    constants.constant(0.25, device)
    with FakeTensorMode():
        assert isinstance(constants.constant(0.25, device), FakeTensor)
    assert type(constants.constant(0.25, device)) is torch.Tensor
