"""Learning rates, step by step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hypermask_fast.training.schedules import Schedule


def optimizers(as_tensor: bool = False) -> list[torch.optim.Optimizer]:
    rates = [torch.tensor(r) if as_tensor else r for r in (1.0, 0.5)]
    return [torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=rate) for rate in rates]


@pytest.mark.parametrize("as_tensor", [False, True], ids=["numbers", "tensors"])
@pytest.mark.parametrize(
    ("kind", "warmup", "rate"),
    [
        pytest.param("constant", 0, lambda s: 1.0, id="constant"),
        pytest.param("constant", 4, lambda s: min(1.0, (s + 1) / 4), id="warm-up"),
        pytest.param("cosine", 0, lambda s: (1 + math.cos(math.pi * s / 10)) / 2, id="cosine"),
        pytest.param(
            "cosine",
            4,
            lambda s: min(1.0, (s + 1) / 4) * (1 + math.cos(math.pi * s / 10)) / 2,
            id="warm-up-and-cosine",
        ),
        pytest.param(
            "milestones", 0, [1.0] * 4 + [0.1] * 2 + [0.01] * 2 + [1e-3, 5e-4], id="milestones"
        ),
    ],
)
def test_rates(
    kind: str, warmup: int, rate: Callable[[int], float] | list[float], as_tensor: bool
) -> None:
    each = optimizers(as_tensor)
    schedule = Schedule(kind, each, steps=10, warmup_steps=warmup)
    tensors = [o.param_groups[0]["lr"] for o in each]
    rate = rate.__getitem__ if isinstance(rate, list) else rate
    for step in range(10):
        schedule.before_step(step)
        found = [float(o.param_groups[0]["lr"]) for o in each]
        assert found == pytest.approx([rate(step), rate(step) / 2], rel=1e-6)
    if as_tensor:
        # A CUDA graph reads these very tensors.
        assert [o.param_groups[0]["lr"] for o in each] == tensors
    assert schedule.state() is None


def test_a_schedule_that_is_made_within_a_phase_goes_on() -> None:
    each = optimizers()
    schedule = Schedule("constant", each, steps=10, warmup_steps=3)
    each[0].param_groups[0]["lr"] = 0.4  # as a checkpoint in the warm-up left it
    for step in (5, 6):
        schedule.before_step(step)
    assert each[0].param_groups[0]["lr"] == 0.4
    schedule.before_step(2)
    assert each[0].param_groups[0]["lr"] == 1.0


def test_a_plateau_lowers_all_rates_alike_and_goes_on_from_its_state() -> None:
    whole, first, second = optimizers(), optimizers(), optimizers()
    schedule, part = (Schedule("plateau", each, steps=100) for each in (whole, first))
    assert schedule.watches
    accuracies = [50.0, 60.0, *[55.0] * 13, 70.0]
    for accuracy in accuracies:
        schedule.after_epoch(accuracy)
    assert whole[0].param_groups[0]["lr"] == pytest.approx(0.1)
    assert whole[1].param_groups[0]["lr"] == pytest.approx(0.05)
    for accuracy in accuracies[:6]:
        part.after_epoch(accuracy)
    rest = Schedule("plateau", second, steps=100)
    rest.load(part.state())
    for after, before in zip(second, first, strict=True):
        after.param_groups[0]["lr"] = before.param_groups[0]["lr"]
    for accuracy in accuracies[6:]:
        rest.after_epoch(accuracy)
    assert [o.param_groups[0]["lr"] for o in second] == [o.param_groups[0]["lr"] for o in whole]


@pytest.mark.parametrize("as_tensor", [False, True], ids=["numbers", "tensors"])
@pytest.mark.parametrize("curve", ["rising", "falling", "wavy"])
def test_the_two_schedulers_of_exssnet_are_the_recorded_ones(
    curve: str, as_tensor: bool, data_dir: Path
) -> None:
    with np.load(data_dir / "golden" / "exssnet.npz") as file:
        recorded = {key: file[f"schedule/{curve}/{key}"] for key in ("accuracy", "lr")}
    first, base = float(recorded["lr"][0]), 4
    each = optimizers(as_tensor)
    for optimizer, rate in zip(each, (first, 2 * first), strict=True):
        given = optimizer.param_groups[0]["lr"]
        optimizer.param_groups[0]["lr"] = given.fill_(rate) if as_tensor else rate
    options = {"steps": base * len(recorded["lr"]), "epoch_steps": base}
    schedule = Schedule("cosine_plateau", each, **options)
    assert schedule.watches
    tolerance = 1e-6 if as_tensor else 1e-12
    for epoch, (accuracy, lr) in enumerate(zip(*recorded.values(), strict=True)):
        for step in range(base):
            schedule.before_step(base * epoch + step)
            rates = [float(o.param_groups[0]["lr"]) for o in each]
            assert rates == pytest.approx([lr, 2 * lr], rel=tolerance, abs=0)
        schedule.after_epoch(float(accuracy))
        if epoch % 7 == 3:
            # A run that stopped here goes on with the same bits, from JSON.
            state = json.loads(json.dumps(schedule.state()))
            for optimizer, rate in zip(each, (first, 2 * first), strict=True):
                given = optimizer.param_groups[0]["lr"]
                optimizer.param_groups[0]["lr"] = given.fill_(rate) if as_tensor else rate
            schedule = Schedule("cosine_plateau", each, **options)
            schedule.load(state)
            assert schedule.state() == state
    if curve == "rising":
        assert float(recorded["lr"][45]) < 1.1e-4 * first


def test_a_changed_rate_goes_on_in_proportion() -> None:
    (before, _), (after, _) = optimizers(), optimizers()
    whole = Schedule("cosine_plateau", [before], steps=20)
    for accuracy in range(13):
        whole.after_epoch(accuracy)
    after.param_groups[0]["lr"] = 3.0
    rest = Schedule("cosine_plateau", [after], steps=20)
    rest.load(whole.state())
    for schedule in (whole, rest):
        schedule.before_step(13)
    assert after.param_groups[0]["lr"] == pytest.approx(3 * before.param_groups[0]["lr"])


def test_a_cosine_by_epochs_is_pytorchs() -> None:
    (each, _), (other, _) = optimizers(), optimizers()
    schedule = Schedule("cosine_epochs", [each], steps=21, epoch_steps=3)
    published = torch.optim.lr_scheduler.CosineAnnealingLR(other, 7)
    other.step()
    for step in range(21):
        schedule.before_step(step)
        assert each.param_groups[0]["lr"] == pytest.approx(other.param_groups[0]["lr"], abs=1e-12)
        if step % 3 == 2:
            published.step()
