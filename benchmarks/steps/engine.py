"""A variant of a step, and what its first step from the recorded state did."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.steps.case import Engine, StepCase
from hypermask_fast.backends.compiled import Compiler
from hypermask_fast.benching import first_step as first_steps
from hypermask_fast.benching.batch import OneBatch
from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.base import Learner
from hypermask_fast.training.graph import CudaGraphs, GraphedStep
from hypermask_fast.training.optimizers import make_optimizers
from hypermask_fast.training.settings import TrainingSettings
from hypermask_fast.training.step import TrainingStep

SEED = 1
LR = 1e-3
_CAPTURED_WITHIN = 12


class Total(NamedTuple):
    """What a plain algorithm's step returns, where its loss has no parts."""

    total: Tensor


def everything(name: str, p: Tensor) -> Tensor:
    """Return a parameter."""
    return p


class Trained(first_steps.Trained):
    """What is compared of a step, and the engine that takes it."""

    def engine(self, step: Callable[[Tensor, Tensor], Any]) -> Engine:
        """Return the engine that steps like this."""
        return Engine(step, lambda x, y: self.stepped(step, x, y))


def trainers_step(learner: Learner) -> TrainingStep:
    """Return the step that the trainer would take in the learner's phase."""
    return TrainingStep(learner, make_optimizers(learner, TrainingSettings(lr=LR)))


def make_ours(
    learner: Learner, variant: str, case: StepCase, device: str, trained: Trained
) -> Engine:
    """Return this package's step: on a GPU "ours" compiled and as a CUDA graph.

    Args:
        learner: In the recorded state.
        variant, case, device: As of :meth:`StepCase.make_engine`.
        trained: What is compared; optimizers are filled in.
    """
    step = trainers_step(learner)
    trained = trained._replace(optimizers=[*step.optimizers.values()])
    if variant == "ours" and device != "cpu":
        return graphed(learner, step, case, device, trained)
    return trained.engine(lambda x, y: step(x, y, case.earlier))


def graphed(
    learner: Learner,
    step: TrainingStep,
    case: StepCase,
    device: str,
    trained: Trained,
    cuda: CudaGraphs | None = None,
) -> Engine:
    """Return an engine whose first step is already a replay, from the recorded state.

    Args:
        learner, step, case, device, trained: As elsewhere.
        cuda: Replaces CUDA in tests.
    """
    batch = [value.to(device) for value in case.make_batch()]
    recorded = [t.detach().to("cpu", copy=True) for t in _state(learner)]
    compiler = Compiler("auto")
    learner.compile_steps(compiler)
    graph = GraphedStep(True, cuda=cuda)
    graph.begin(step, OneBatch(*batch), case.earlier)
    numbers = count()
    # Some steps warm up, then one is captured and replayed.
    while graph.status != "yes":
        number = next(numbers)
        if number == _CAPTURED_WITHIN:
            raise ConfigError(f"no graph was captured in {number} steps: {graph.status}")
        graph(number)
    with torch.no_grad():
        for tensor, value in zip(_state(learner), recorded, strict=True):
            tensor.copy_(value)
        for optimizer in step.optimizers.values():
            for state in optimizer.state.values():
                for value in state.values():
                    value.zero_()
    engine = trained.engine(lambda x, y: graph(next(numbers)))
    return engine._replace(status=lambda: {"graph": graph.status, "compile": compiler.status})


def _state(learner: Learner) -> list[Tensor]:
    return [*learner.parameters(), *learner.buffers()]


def first_step(engine: Engine, case: StepCase, device: str = "cpu") -> dict[str, Tensor]:
    """Take the first step from the recorded state and return what it did, in float64."""
    return engine.check(*(value.to(device) for value in case.make_batch()))
