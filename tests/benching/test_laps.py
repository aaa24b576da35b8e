"""The phases of a step, with a clock that is turned by hand."""

from __future__ import annotations

import pytest
import torch

from hypermask_fast.benching.laps import CudaClock, HostClock, Laps, watch
from hypermask_fast.benching.names import (
    BACKWARD,
    HYPERNETWORK,
    MASKS,
    OPTIMIZER,
    REST,
    TARGET,
)
from hypermask_fast.training.step import TrainingStep
from tests.support.hypermask_cases import adam_of, batch, make


class Clock:
    """A clock that stands, but for what passes."""

    now = 0.0

    def passes(self, seconds: float) -> None:
        self.now += seconds


def test_phases_have_the_time_between_their_beginnings() -> None:
    clock = Clock()
    laps = Laps(HostClock(lambda: clock.now))

    def step() -> None:
        clock.passes(1)
        laps.enter(MASKS)
        clock.passes(2)
        laps.enter(MASKS)
        clock.passes(4)
        laps.enter(TARGET)
        clock.passes(8)
        laps.enter(MASKS)
        clock.passes(16)

    expected = {HYPERNETWORK: 1.0, MASKS: 22.0, TARGET: 8.0}
    assert laps.timed(step, HYPERNETWORK) == expected
    laps.enter(TARGET)  # outside of a step
    assert laps.timed(step, HYPERNETWORK) == expected


def test_events_of_cuda_are_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waits = Clock(), []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock.now

        def elapsed_time(self, end: Event) -> float:
            assert len(waits) == 2, "events are read when the device is done"
            return 1e3 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(clock.now))
    assert Laps(CudaClock()).timed(lambda: clock.passes(3), TARGET) == {TARGET: 3.0}


def test_a_step_that_raises_leaves_no_phase() -> None:
    laps = Laps(HostClock())
    with pytest.raises(ZeroDivisionError):
        laps.timed(lambda: 1 // 0, TARGET)
    assert laps.phase == ""


def test_a_learners_step_tells_its_phases_until_nobody_listens() -> None:
    torch.manual_seed(0)
    learner = make()
    optimizer = adam_of(learner)
    learner(batch(learner)[0], 0)
    learner.begin_task(0)
    laps = Laps(HostClock())
    hooks = watch(learner, [optimizer], laps)
    step = TrainingStep(learner, optimizer)

    def take() -> None:
        step(*batch(learner), 0, lambda: laps.enter(BACKWARD))

    found = laps.timed(take, HYPERNETWORK)
    assert [*found] == [HYPERNETWORK, MASKS, TARGET, BACKWARD, OPTIMIZER, REST]
    for hook in hooks:
        hook.remove()
    assert [*laps.timed(take, HYPERNETWORK)] == [HYPERNETWORK, BACKWARD]
