"""Progress on a plain stream and on a terminal, with a clock of the test's own."""

from __future__ import annotations

import fcntl
import io
import os
import re
import struct
import termios
from typing import Any

import pytest

from hypermask_fast.console.terminal import shown_as
from hypermask_fast.training.progress import Progress


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Loss:
    """A loss on a device: counts how often it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def __float__(self) -> float:
        self.reads += 1
        return 0.12345


def _progress(stream: io.StringIO, clock: _Clock, **options: Any) -> Progress:
    options = {"task_names": ["split 0/1", "split 2/3"], **options}
    return Progress(200, stream=stream, clock=clock, **options)


def test_plain_line_shows_place_rate_time_and_losses() -> None:
    stream, clock = io.StringIO(), _Clock()
    progress = _progress(stream, clock)
    clock.now += 10.0
    progress.update(20, 1, {"loss": 0.12345, "reg": 3e-7})
    # 120 of 200 steps in 10 s: 12 a second, and 80 / 12 = 6.7 s remain.
    assert stream.getvalue() == (
        "task 2/2 split 2/3, step 20/100, 60 %, 12.0 steps/s, ETA 0:07, loss 0.1235 reg 3e-07\n"
    )


def test_plain_lines_come_at_the_interval_and_at_the_end() -> None:
    stream, clock = io.StringIO(), _Clock()
    with _progress(stream, clock) as progress:
        for task in range(2):
            for step in range(1, 101):
                clock.now += 0.125
                progress.update(step, task)
    # 25 s with a line each 5 s; the last of them is the last step, and is not repeated.
    steps = [line.split(", ")[1] for line in stream.getvalue().splitlines()]
    assert steps == ["step 40/100", "step 80/100", "step 20/100", "step 60/100", "step 100/100"]


def test_last_state_is_shown_on_close_and_once() -> None:
    stream, clock = io.StringIO(), _Clock()
    progress = _progress(stream, clock)
    clock.now += 1.0
    progress.update(100, 1)
    assert stream.getvalue() == ""
    progress.close()
    progress.close()
    progress.update(100, 1)
    progress.message("late")
    assert stream.getvalue().splitlines() == [
        "task 2/2 split 2/3, step 100/100, 100 %, 200.0 steps/s, ETA 0:00"
    ]


def test_steps_of_an_earlier_process_do_not_count_for_the_rate() -> None:
    stream, clock = io.StringIO(), _Clock()
    progress = _progress(stream, clock, initial=100)
    clock.now += 10.0
    progress.update(50, 1)
    assert "75 %, 5.0 steps/s, ETA 0:10" in stream.getvalue()


def test_tasks_may_differ_in_length() -> None:
    stream, clock = io.StringIO(), _Clock()
    progress = _progress(stream, clock, task_steps=[160, 40])
    clock.now += 4000.0
    progress.update(20, 1)
    # 180 steps in 4000 s, 20 remain: 444 s.
    assert "step 20/40, 90 %, 0.0 steps/s, ETA 7:24" in stream.getvalue()
    progress.close()
    with pytest.raises(ValueError, match="task_steps"):
        _progress(stream, clock, task_steps=[160, 41])


def test_percent_reaches_100_only_at_the_end() -> None:
    stream, clock = io.StringIO(), _Clock()
    progress = Progress(1000, stream=stream, clock=clock)
    clock.now += 3600.0
    progress.update(999, 0)
    assert stream.getvalue().startswith("task 1/1, step 999/1000, 99 %")


def test_losses_are_read_only_when_they_are_printed() -> None:
    stream, clock, loss = io.StringIO(), _Clock(), _Loss()
    progress = _progress(stream, clock)
    for step in range(1, 50):
        progress.update(step, 0, {"loss": loss})
    assert loss.reads == 0
    clock.now += 5.0
    progress.update(50, 0)
    assert loss.reads == 1
    assert "loss 0.1235" in stream.getvalue()


def test_error_closes_without_reading_losses_again() -> None:
    stream, clock, loss = io.StringIO(), _Clock(), _Loss()
    progress = _progress(stream, clock)
    progress.update(1, 0, {"loss": loss})
    with pytest.raises(KeyError), progress:
        raise KeyError
    assert (loss.reads, stream.getvalue()) == (0, "")


def test_message_is_a_line_of_its_own() -> None:
    stream, clock = io.StringIO(), _Clock()
    progress = _progress(stream, clock)
    progress.message("task 1: 98 %")
    assert stream.getvalue() == "task 1: 98 %\n"


def test_disabled_prints_nothing() -> None:
    for stream in (io.StringIO(), _Terminal()):
        clock = _Clock()
        with _progress(stream, clock, enabled=False) as progress:
            clock.now += 100.0
            progress.update(50, 0, {"loss": 1.0})
            progress.message("hello")
        assert stream.getvalue() == ""


def _frames(stream: io.StringIO) -> list[str]:
    """What a terminal showed on its last line, one after the other, and the lines above."""
    plain = re.sub("\033\\[[0-9]*[mK]", "", stream.getvalue())
    return [frame for frame in re.split("[\r\n]", plain) if frame]


def test_a_terminal_shows_a_line_that_messages_do_not_break() -> None:
    stream, clock = _Terminal(), _Clock()
    with _progress(stream, clock, initial=50, accuracy=97.0) as progress:
        clock.now += 1.0
        progress.update(60, 0, {"loss": 0.5})
        progress.message("hello")
        progress.update(70, 0)  # not due
        clock.now += 1.0
        progress.update(100, 1)
    frames = _frames(stream)
    # 50 of 200 steps at first, 10 in a second, 80 columns.
    assert "25 %" in frames[0]
    assert "task 1/2 split 0/1" in frames[0]
    assert " 30 %" in frames[1]
    assert "loss 0.5" in frames[1]
    assert "10.0 steps/s" in frames[1]
    assert "ETA 0:14" in frames[1]
    assert frames[2] == "hello"
    assert not any(" 35 %" in frame for frame in frames)
    assert "2/2 split 2/3" in frames[-1]
    assert "100 %" in frames[-1]
    assert "accuracy 97.00 %" in frames[-1]
    assert stream.getvalue().endswith("\n")


def test_a_terminal_shows_the_last_state_on_close() -> None:
    stream, clock = _Terminal(), _Clock()
    with _progress(stream, clock) as progress:
        progress.update(90, 1)
    assert " 95 %" in _frames(stream)[-1]


def test_the_accuracy_is_the_mean_of_the_learned_tasks() -> None:
    stream, clock = io.StringIO(), _Clock()
    with _progress(stream, clock) as progress:
        progress.learned("split 0/1", [90.0])
        progress.learned("split 2/3", [80.0, 100.0])
        clock.now += 10.0
        progress.update(1, 1)
    assert stream.getvalue().splitlines()[:2] == [
        "learned split 0/1: 90.00 %, mean of the 1 learned 90.00 %",
        "learned split 2/3: 100.00 %, mean of the 2 learned 90.00 %",
    ]
    assert stream.getvalue().endswith("ETA 0:10, accuracy 90.00 %\n")


def test_lines_become_rarer_in_a_run_of_hours() -> None:
    stream, clock = io.StringIO(), _Clock()
    with Progress(10_800, stream=stream, clock=clock) as progress:
        for step in range(1, 10_801):
            clock.now += 1.0
            progress.update(step, 0)
    # 5 s apart in the first 100 s, 60 s from 1,200 s on: 160 lines, and fewer than 100 before.
    assert 160 < len(stream.getvalue().splitlines()) < 260


def test_time_of_stages_does_not_count_for_the_rate() -> None:
    stream, clock = io.StringIO(), _Clock()
    with _progress(stream, clock) as progress:
        progress._leave_out(30.0)
        clock.now += 40.0
        progress.update(20, 0)
    assert "2.0 steps/s" in stream.getvalue()


def test_a_terminal_may_be_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = os.openpty()
    clock = _Clock()
    name = "a task whose name is longer than many a terminal is wide " * 4 + "17"
    with open(theirs, "w", encoding="utf-8") as stream:
        progress = Progress(
            10**6, task_names=[name] * 10, stream=stream, clock=clock, accuracy=99.123
        )
        for place, columns in enumerate([80, 40, 200, 61, 41, 120, 40]):
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            clock.now += 1.0
            progress.update(12_345 + place, 6, {"loss": 1.234567e-5, "task": 1.0})
            written = os.read(ours, 10_000).decode()
            frame = re.sub("\033\\[[0-9]*[mK]", "", written).strip("\r")
            assert "\n" not in frame
            assert columns // 2 < len(frame) < columns
            assert "7/10 a " in frame or "7/10 a\u2026" in frame
            assert "61" in frame
            assert "1e-5" in frame or "1.23" in frame
            assert "acc" in frame
    os.close(ours)


@pytest.mark.parametrize(("no_color", "is_colored"), [("", True), ("1", False)])
def test_colours_are_for_terminals_whose_user_wants_them(
    monkeypatch: pytest.MonkeyPatch, no_color: str, is_colored: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    for stream, wanted in ((_Terminal(), is_colored), (io.StringIO(), False)):
        with Progress(10, stream=stream, clock=_Clock()) as progress:
            progress.update(10, 0)
        assert ("\033[32m" in stream.getvalue()) == wanted


@pytest.mark.parametrize("why", ["plain", "dumb"])
def test_a_plain_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    stream = _Terminal()
    monkeypatch.setenv("TERM", "dumb" if why == "dumb" else "xterm")
    mode = "plain" if why == "plain" else "auto"
    with shown_as(mode), Progress(10, stream=stream, clock=_Clock()) as progress:
        progress.update(10, 0)
    assert stream.getvalue() == "task 1/1, step 10/10, 100 %\n"


def test_quiet_prints_nothing() -> None:
    stream = _Terminal()
    with shown_as("quiet"), Progress(10, stream=stream, clock=_Clock()) as progress:
        progress.update(10, 0)
        progress.learned("a", [1.0])
    assert stream.getvalue() == ""


class _Failing(io.StringIO):
    """A stream that fails from a moment on."""

    is_terminal = fails = False

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        if self.fails:
            raise BrokenPipeError
        return super().write(text)


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_stream_that_fails_ends_the_progress_only(is_terminal: bool, is_closed: bool) -> None:
    stream, clock = _Failing(), _Clock()
    stream.is_terminal = is_terminal
    progress = _progress(stream, clock)
    progress.message("before")
    written = stream.getvalue()
    if is_closed:
        stream.close()
    stream.fails = True
    with progress:
        clock.now += 10.0
        progress.update(50, 0, {"loss": 1.0})
        progress.message("hello")
        progress.update(60, 0)
    assert is_closed or stream.getvalue() == written
    assert progress._enabled is False


def test_a_stream_that_is_closed_or_none_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Terminal()
    stream.close()
    with _progress(stream, _Clock()) as progress:
        progress.update(90, 1)
    monkeypatch.setattr("sys.stderr", None)
    with Progress(200) as progress:
        progress.update(90, 0)
        progress.message("hello")


def test_letters_that_a_stream_lacks_are_replaced() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    with Progress(10, stream=stream, clock=_Clock(), task_names=["\u00e9"]) as progress:
        progress.update(10, 0)
    assert raw.getvalue() == b"task 1/1 \\xe9, step 10/10, 100 %\n"
