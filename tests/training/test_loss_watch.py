"""Losses that are read back when they have arrived."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hypermask_fast.errors import TrainingError
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.training.loss_watch import Copy, LossWatch


def some_losses(total: float) -> Losses:
    task, output_reg, weight_reg = (torch.tensor(total + i) for i in range(1, 4))
    terms = {"output_reg": output_reg, "weight_reg": weight_reg}
    return Losses(torch.tensor(total), task, torch.zeros(2, 2), terms)


class Copies:
    """Copies that arrive when told."""

    def __init__(self) -> None:
        self.started = self.waits = 0
        self.arrived = False

    def __call__(self, values: Tensor) -> Copy:
        self.started += 1
        return Copy(values.clone(), lambda: self.arrived, self.wait)

    def wait(self) -> None:
        self.waits += not self.arrived


def test_losses_are_read_when_they_have_arrived() -> None:
    copies = Copies()
    watch = LossWatch("a", torch.device("meta"), every=10, copy=copies)
    for step in range(1, 13):
        watch.see(step, some_losses(step))
    assert (copies.started, copies.waits, watch.latest) == (1, 0, {})
    copies.arrived = True
    watch.see(13, some_losses(13))
    assert watch.latest == {"total": 10, "task": 11, "output_reg": 12, "weight_reg": 13}
    copies.arrived = False
    for step in range(14, 30):
        watch.see(step, some_losses(step))
    assert (copies.started, copies.waits) == (2, 0)
    # A copy that took as long as this is waited for, lest they pile up.
    watch.see(30, some_losses(30))
    assert (copies.started, copies.waits) == (3, 1)
    assert watch.latest["total"] == 20
    watch.flush()
    assert watch.latest["total"] == 30
    watch.see(31, some_losses(31))
    watch.flush()
    watch.flush()
    assert watch.latest["total"] == 31
    assert copies.started == 4


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_losses_that_are_not_finite_stop_training(device: str) -> None:
    watch = LossWatch("a", torch.device(device), every=2, copy=Copies())
    watch.see(1, some_losses(1))
    match = r"task 'a' is not finite at step 2 \(total inf, task inf, output_reg inf, weight_reg"
    if device == "meta":
        watch.see(2, some_losses(torch.inf))
        watch.see(3, some_losses(0))
    with pytest.raises(TrainingError, match=match):
        watch.see(*((4, some_losses(0)) if device == "meta" else (2, some_losses(torch.inf))))
    watch = LossWatch("a", torch.device("meta"), every=50, copy=Copies())
    watch.see(3, some_losses(torch.nan))
    with pytest.raises(TrainingError, match="at step 3"):
        watch.flush()
