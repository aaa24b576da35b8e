"""The time of steps: stretches of the log, without what is no step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hypermask_fast.records import timing
from hypermask_fast.records.timing import StepClock
from hypermask_fast.runs import run
from tests.support.run_cases import short, stopped


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_stretches_are_steps_alone(tmp_path: Path) -> None:
    time, path, waited = Clock(), tmp_path / "timing.json", []
    clock = StepClock(path, lambda: waited.append(time.now), time)

    def steps(task: int, step: int, seconds: float) -> None:
        time.now += seconds
        clock.lap(task, step)

    steps(0, 10, 50.0)  # the first of a task
    steps(0, 20, 2.0)
    time.now += 1.0
    with clock.paused():
        time.now += 30.0
    steps(0, 25, 1.0)
    steps(1, 10, 70.0)
    steps(1, 30, 3.0)
    clock.write()
    assert timing.read(path) == [[200.0, 400.0], [150.0]]
    assert timing.median_ms(path) == 200.0
    assert waited == [153.0]
    again = StepClock(path, clock=time)
    again.lap(1, 40)
    time.now += 1.0
    again.lap(1, 50)
    again.write()
    assert timing.read(path) == [[200.0, 400.0], [150.0, 100.0]]


@pytest.mark.parametrize("text", ["", "[]", '{"ms_a_step": 3}', '{"ms_a_step": [["x"]]}'])
def test_a_file_that_is_none_tells_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "timing.json"
    assert math.isnan(timing.median_ms(path))
    path.write_text(text)
    assert timing.read(path) == []
    assert math.isnan(timing.median_ms(path))


def test_a_run_that_was_stopped_keeps_its_times(tmp_path: Path) -> None:
    path = tmp_path / "run"
    stopped(short(), path)
    before = timing.read(path / "timing.json")
    # Rows after the steps 2, 4 and 6: the stretches from 2 to 4 and from 4 to 6.
    assert [len(stretches) for stretches in before] == [2]
    run.resume(path, show_progress=False)
    after = timing.read(path / "timing.json")
    assert after[0] == before[0]
    assert len(after[1]) == 1
    assert timing.median_ms(path / "timing.json") > 0
