"""The phases of a training step, and how long each takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from hypermask_fast.benching.names import (
    BACKWARD,
    HYPERNETWORK,
    MASKS,
    OPTIMIZER,
    REGULARIZER,
    REST,
    TARGET,
)
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.hypermask.masked import MaskedLearner
from hypermask_fast.methods.subnetwork import SubnetworkLearner

Enter = Callable[[str], None]
"""Called at the beginning of a phase, with its name."""


class Clock(Protocol):
    """Tells moments of a device's work."""

    def mark(self) -> Any:
        """Return what stands for this moment."""

    def seconds(self, begin: Any, end: Any) -> float:
        """Return the seconds between two moments."""

    def wait(self) -> None:
        """Wait until the device has done what it was given."""


class HostClock:
    """The clock of a CPU.

    Args:
        now: Returns seconds. Default: those that pass.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def mark(self) -> float:
        return self._now()

    def seconds(self, begin: float, end: float) -> float:
        return end - begin

    def wait(self) -> None:
        """Do nothing: what a CPU is given is done when the call returns."""


class CudaClock:
    """Events of the current CUDA stream."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end) / 1e3

    def wait(self) -> None:
        torch.cuda.synchronize()


def clock_of(device: str, name: str = "elapsed") -> Clock:
    """Return the clock of a device.

    Args:
        device: "cpu" or "cuda".
        name: One of :data:`~hypermask_fast.benching.names.CLOCKS`; on CUDA "elapsed".
    """
    if device == "cuda":
        return CudaClock()
    return HostClock(time.process_time if name == "processor" else time.perf_counter)


class Laps:
    """Times the phases of a step that says where each begins.

    Args:
        clock: Of the device.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: list[tuple[str, Any]] = []

    @property
    def phase(self) -> str:
        """The phase that runs; "" outside of a step that is timed."""
        return self._marks[-1][0] if self._marks else ""

    def enter(self, phase: str) -> None:
        """Note that a phase begins and the one before it ends."""
        if self._marks and phase != self.phase:
            self._marks.append((phase, self._clock.mark()))

    def timed(self, step: Callable[[], object], first: str) -> dict[str, float]:
        """Run a step; return the seconds of its phases, in the order that they began.

        Args:
            step: Calls :meth:`enter`.
            first: The phase that it begins with.
        """
        self._clock.wait()
        self._marks = [(first, self._clock.mark())]
        try:
            step()
            marks = [*self._marks, ("", self._clock.mark())]
        finally:
            self._marks = []
        self._clock.wait()
        found: dict[str, float] = {}
        for (phase, begin), (_, end) in pairwise(marks):
            found[phase] = found.get(phase, 0.0) + self._clock.seconds(begin, end)
        return found


def first_phase(learner: Learner) -> str:
    """Return the phase that a learner's step begins with."""
    if hasattr(learner, "hypernetwork"):
        return HYPERNETWORK
    return MASKS if isinstance(learner, SubnetworkLearner) else TARGET


def watch(learner: Learner, optimizers: list[Optimizer], laps: Laps) -> list[RemovableHandle]:
    """Let a learner's steps say where phases begin, until the handles that come back are removed.

    The step itself is to be given a ``before_update`` that enters the backward pass.

    Args:
        learner: The learner.
        optimizers: Of its steps.
        laps: What is told.
    """
    handles: list[RemovableHandle] = []
    hypernetwork = getattr(learner, "hypernetwork", None)
    if hypernetwork is not None:

        def begins(*_: object) -> None:
            late = laps.phase in (BACKWARD, REGULARIZER)
            laps.enter(REGULARIZER if late else HYPERNETWORK)

        def ends(*_: object) -> None:
            if laps.phase == REGULARIZER:
                laps.enter(BACKWARD)
            elif isinstance(learner, MaskedLearner):
                laps.enter(MASKS)

        handles += [
            hypernetwork.register_forward_pre_hook(begins),
            hypernetwork.register_forward_hook(ends),
        ]
    handles.append(learner.net.register_forward_pre_hook(lambda *_: laps.enter(TARGET)))
    for optimizer in optimizers:
        handles.append(optimizer.register_step_pre_hook(lambda *_: laps.enter(OPTIMIZER)))
        handles.append(optimizer.register_step_post_hook(lambda *_: laps.enter(REST)))
    return handles
