"""Warnings of commands: each once, in one line, from this process and from those it forks."""

from __future__ import annotations

import os
import warnings

import pytest

from hypermask_fast.console.terminal import shown_as
from hypermask_fast.console.warned import in_a_line, plain_warnings


def test_a_message_is_shown_once_and_without_its_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with plain_warnings():
        warnings.simplefilter("always")
        for kind in (UserWarning, RuntimeWarning):
            for place in range(3):
                exec("warnings.warn('twice\\nor more', kind)")
                warnings.warn(f"number {place}", kind, stacklevel=1)
    assert capsys.readouterr().err.splitlines() == [
        f"hypermask: warning: {text}"
        for text in ("twice or more", "number 0", "number 1", "number 2")
    ]


def test_places_in_the_sources_of_pytorch_are_left_out() -> None:
    said = (
        "The given buffer is not writable. (Triggered internally at "
        "/pytorch/torch/csrc/utils/tensor_new.cpp:1586.)"
    )
    assert in_a_line(UserWarning(said)) == "The given buffer is not writable."
    assert in_a_line("a\x1b[2Jb\n  c") == "a\\x1b[2Jb c"


def test_forked_workers_repeat_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with plain_warnings():
        warnings.simplefilter("always")
        warnings.warn("of all", stacklevel=1)
        for worker in range(2):
            child = os.fork()
            if child == 0:
                warnings.warn("of all", stacklevel=1)
                warnings.warn("of workers", stacklevel=1)
                os._exit(worker)
            os.waitpid(child, 0)
    assert capfd.readouterr().err.splitlines() == [
        f"hypermask: warning: {text}" for text in ("of all", "of workers")
    ]


def test_quiet_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    with plain_warnings(), shown_as("quiet"):
        warnings.warn("once", stacklevel=1)
    assert capsys.readouterr().err == ""
