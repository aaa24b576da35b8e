"""What is shown of stages before and between steps."""

from __future__ import annotations

import io
import re
import threading
import time

import pytest

from hypermask_fast.console.stages import listening, stage
from hypermask_fast.console.terminal import Screen, shown_as
from hypermask_fast.training import busy
from hypermask_fast.training.busy import Busy, showing_stages


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _frames(text: str) -> list[str]:
    plain = re.sub("\033\\[[0-9]*[mK]", "", text)
    return [frame for frame in re.split("[\r\n]", plain) if frame]


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_shows_stages_and_keeps_those_that_took() -> None:
    stream, clock, ended = _Terminal(), _Clock(), []
    with listening(Busy(Screen(stream), ended=ended.append, clock=clock)):
        with stage("planning"):
            clock.now += 0.25
        with stage("building"):
            clock.now += 1.0
            with stage("compiling"):
                clock.now += 20.0
            clock.now += 0.25
    assert _frames(stream.getvalue()) == [
        *("planning ...", "building ...", "compiling ..."),
        *("compiling: 20.0 s", "building ...", "building: 1.2 s"),
    ]
    assert ended == [0.25, 21.25]


def test_a_stage_that_fails_leaves_its_line_to_the_error() -> None:
    stream, clock = _Terminal(), _Clock()

    def read() -> None:
        with listening(Busy(Screen(stream), clock=clock)), stage("reading"):
            clock.now += 9.0
            raise KeyError

    with pytest.raises(KeyError):
        read()
    assert _frames(stream.getvalue()) == ["reading ..."]
    assert stream.getvalue().endswith("\r\033[K")


def test_elsewhere_a_line_comes_where_a_stage_takes_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(busy, "_LONG", 0.02)
    with showing_stages():
        with stage("planning"):
            pass
        with stage("downloading MNIST"):
            deadline = time.monotonic() + 10
            error = ""
            while "MNIST ..." not in error and time.monotonic() < deadline:
                time.sleep(0.005)
                error += capsys.readouterr().err
    error += capsys.readouterr().err
    assert re.fullmatch(r"downloading MNIST \.\.\.\ndownloading MNIST: \d\.\d s\n", error)


def test_nobody_is_told_in_quiet_or_in_other_threads(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []

    class Listener:
        def begin(self, what: str) -> None:
            told.append(what)

        def end(self, *, failed: bool) -> None:
            pass

    def run() -> None:
        with stage("reading ahead"):
            pass

    with listening(Listener()):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        with shown_as("quiet"), showing_stages(), stage("planning"):
            pass
        with showing_stages(enabled=False), stage("planning"):
            pass
        with stage("reading"):
            pass
    assert told == ["reading"]
    assert capsys.readouterr().err == ""
