"""A training step as a CUDA graph: batch, forward, backward and update in one launch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from hypermask_fast.console.stages import stage
from hypermask_fast.errors import ConfigError, TrainingError
from hypermask_fast.kernels.captures import capture_pool
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.scenarios import BatchStream
from hypermask_fast.training.step import TrainingStep

MODES = (True, False, "auto")
_WARM_UP_STEPS = 3


class Captured(NamedTuple):
    """A captured step: repeats it, and holds the losses that each repetition overwrites."""

    replay: Callable[[], None]
    losses: Losses


class CudaGraphs:
    """What :class:`GraphedStep` asks of CUDA."""

    def __init__(self) -> None:
        # One for each device: the allocator keeps memory for each stream.
        self._sides: dict[torch.device, torch.cuda.Stream] = {}

    def unavailable(self, device: torch.device) -> str | None:
        """Return why a step on ``device`` cannot be captured, or None."""
        return None if device.type == "cuda" else f"the learner is on {device.type}"

    def _side(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._sides:
            self._sides[device] = torch.cuda.Stream(device)
        return self._sides[device]

    @contextmanager
    def warming_up(self, device: torch.device) -> Iterator[None]:
        """Run what is inside on a stream of its own, as what is to be captured must have run."""
        side, current = self._side(device), torch.cuda.current_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            yield
        current.wait_stream(side)

    def capture(self, run: Callable[[], Losses], device: torch.device) -> Captured:
        """Record what ``run`` launches on ``device``, without running it.

        After a failure the stream is the one from before, memory can be freed and random numbers
        can be drawn.
        """
        graph, side = torch.cuda.CUDAGraph(), self._side(device)
        # Without a stream PyTorch captures on the device of the first capture, and one that fails
        # stays the current stream: the outer context puts that back.
        with (
            torch.cuda.device(device),
            torch.cuda.stream(side),
            capture_pool(side.device) as pool,
            torch.cuda.graph(graph, pool=pool, stream=side),
        ):
            losses = run()
        return Captured(graph.replay, losses)


class _Steps(NamedTuple):
    """A task's steps: what takes one, where batches come from, and the id."""

    step: TrainingStep
    stream: BatchStream
    task: int


class GraphedStep:
    """Takes the steps of a task: the first ones as usual, the others as replays of a CUDA graph.

    The graph holds the whole step: batch, forward, backward, optimizer and counters. It is captured
    anew for each task, and where a number changes that it holds fixed (a learning rate that is no
    tensor, a setting of the learner); a few ordinary steps come before each capture. Parameters
    after each step are those of ordinary steps.

    Args:
        mode: "auto" (default): where the learner is on a CUDA device; a step that cannot be
            captured is taken as usual, with one warning. True: a failure raises. False: never.
        cuda: Replaces CUDA in tests.
        why_off: Why the mode is False. Default: it is off.

    Attributes:
        status: "yes", or "no" or "not yet" and why, for people.

    Raises:
        ConfigError: The mode is unknown.
    """

    def __init__(
        self,
        mode: bool | str = "auto",
        *,
        cuda: CudaGraphs | None = None,
        why_off: str = "it is off",
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"graph is {mode!r}; choose one of True, False, 'auto'")
        self._mode = mode
        self._cuda = CudaGraphs() if cuda is None else cuda
        self._failure = "" if mode else why_off
        self._why_not = self._failure
        self._steps: _Steps | None = None
        self._graph: Captured | None = None
        self._has_captured = self._has_stepped = False

    @property
    def status(self) -> str:
        if self._why_not:
            return f"no: {self._why_not}"
        return "yes" if self._has_captured else "not yet: no step was captured"

    def begin(self, step: TrainingStep, stream: BatchStream, task: int) -> None:
        """Begin a task, or continue it.

        Raises:
            ConfigError: The mode is True and the learner is not on a CUDA device.
        """
        self.end()
        self._steps = _Steps(step, stream, task)
        self._device = next(step.learner.parameters()).device
        self._position = torch.zeros((), dtype=torch.int64, device=self._device)
        self._expected = 0
        unavailable = self._cuda.unavailable(self._device)
        if not stream.is_resident:
            unavailable = "its batches are loaded one by one"
        if unavailable and self._mode is True:
            fix = "move it to cuda" if stream.is_resident else "give tensors that fit there"
            raise ConfigError(f"graph is True and {unavailable}; {fix}, or use 'auto'")
        self._why_not = self._failure or unavailable or ""

    def end(self) -> None:
        """Free the graph and its memory."""
        self._steps = self._graph = None
        self._key: tuple[object, ...] = ()
        self._warm = 0

    def __call__(self, number: int, before_update: Callable[[], None] | None = None) -> Losses:
        """Take a step and return its losses; those of a graph are valid until the next step.

        Args:
            number: Of the batch in the stream.
            before_update: As in :class:`TrainingStep`; such a step is an ordinary one.

        Raises:
            TrainingError: The mode is True and the step cannot be captured.
        """
        if self._has_stepped:
            return self._take(number, before_update)
        # In it kernels and passes are compiled.
        with stage("taking the first step"):
            losses = self._take(number, before_update)
        self._has_stepped = True
        return losses

    def _take(self, number: int, before_update: Callable[[], None] | None) -> Losses:
        assert self._steps is not None
        step, stream, task = self._steps
        if self._why_not or before_update is not None:
            return step(*stream.batch(number), task, before_update)
        if self._key != (key := self._fixed()):
            self._key, self._graph, self._warm = key, None, 0
        stream.prepare(number)
        if number != self._expected:
            self._position.fill_(number)
            self._expected = number
        if self._graph is None and self._warm < _WARM_UP_STEPS:
            self._warm += 1
            # All that is captured: no kernel can be loaded while a graph is.
            with self._cuda.warming_up(self._device):
                losses = self._run()
            self._expected = number + 1
            return losses
        self._graph = self._graph or self._captured(step)
        if self._graph is None:
            return step(*stream.batch(number), task)
        self._has_captured = True
        self._graph.replay()
        self._expected = number + 1
        step.learner.steps_taken += 1
        return self._graph.losses

    def _fixed(self) -> tuple[object, ...]:
        """What a graph would not see change."""
        assert self._steps is not None
        step = self._steps.step
        options = [
            id(value) if isinstance(value, Tensor) else value
            for optimizer in step.optimizers.values()
            for group in optimizer.param_groups
            for name, value in group.items()
            if name != "params"
        ]
        return (*step.learner.fixed_in_graph(), *options)

    def _run(self) -> Losses:
        assert self._steps is not None
        step, stream, task = self._steps
        losses = step(*stream.gather(self._position), task)
        self._position += 1
        return losses

    def _captured(self, step: TrainingStep) -> Captured | None:
        # Capturing runs Python and nothing else: what that counts is put back.
        taken = step.learner.steps_taken
        try:
            with stage("capturing a CUDA graph"):
                return self._cuda.capture(self._run, self._device)
        except RuntimeError as error:
            for optimizer in step.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
                if isinstance(optimizer, FactoredAdam):
                    optimizer.forget_update()
            # The end of a capture that failed raises once more.
            reason = " ".join(str(error.__context__ or error).split())
            if self._mode is True:
                raise TrainingError(
                    f"graph is True and a training step could not be captured as a CUDA graph "
                    f"({reason}); use graph='auto' to go on without"
                ) from error
            self._why_not = self._failure = f"the capture failed ({reason})"
            warnings.warn(
                "training steps run kernel by kernel, slower than as a CUDA graph: "
                f"{self._why_not}; graph=False accepts it",
                RuntimeWarning,
                stacklevel=4,
            )
            return None
        finally:
            step.learner.steps_taken = taken


def trial() -> str:
    """Try a CUDA graph on this machine: return "yes", or "no" and why."""
    if not torch.cuda.is_available():
        return "no: torch sees no CUDA device"
    value = torch.zeros((), device="cuda")

    def run() -> Losses:
        value.add_(1)
        return Losses(value, value, value, {})

    try:
        CudaGraphs().capture(run, value.device).replay()
        return "yes" if value == 1 else "no: a replay has no effect"
    except RuntimeError as error:
        return f"no: {' '.join(str(error).split())}"
