"""A variant of a step, and what its first step from the recorded state did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from benchmarks.steps.case import Engine, StepCase
from hypermask_fast.backends.compiled import Compiler
from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.base import Learner
from hypermask_fast.scenarios import BatchStream
from hypermask_fast.training.graph import CudaGraphs, GraphedStep
from hypermask_fast.training.optimizers import make_optimizers
from hypermask_fast.training.settings import TrainingSettings
from hypermask_fast.training.step import TrainingStep

SEED = 1
LR = 1e-3
_CAPTURED_WITHIN = 12
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class Total(NamedTuple):
    """What a plain algorithm's step returns, where its loss has no parts."""

    total: Tensor


def everything(name: str, p: Tensor) -> Tensor:
    """Return a parameter."""
    return p


def some_rows(name: str, p: Tensor) -> Tensor:
    """Return about 64 rows of a parameter."""
    rows = p.reshape(len(p), -1)
    return rows[:: max(1, len(rows) // 64)]


class Trained(NamedTuple):
    """Parameters that a step trains, and what is compared of it.

    Attributes:
        named: The parameters by name. Those with the same name before the first "." are compared
            as one vector: a bias before a batch norm alone has no gradient but rounding.
        optimizers: Adam, of any kind.
        losses: Attributes of what a step returns.
        picked: Returns the entries of a parameter that are compared.
    """

    named: Mapping[str, Sequence[nn.Parameter]]
    optimizers: Sequence[Optimizer]
    losses: Sequence[str]
    picked: Callable[[str, Tensor], Tensor] = some_rows

    def vectors(self, value: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
        """Return what there is of each parameter, one float64 vector for each group of them."""
        parts: dict[str, list[Tensor]] = {}
        for name, many in self.named.items():
            group = parts.setdefault(name.partition(".")[0], [])
            group += [self.picked(name, value(p).detach()).flatten() for p in many]
        return {group: torch.cat(many).double().cpu() for group, many in parts.items()}

    def losses_of(self, found: Any) -> dict[str, Tensor]:
        """Return the losses that a step returned, by the names of :func:`errors`."""
        return {
            f"loss.{name}": getattr(found, name).detach().double().cpu() for name in self.losses
        }

    def _moment(self, p: nn.Parameter, key: str) -> Tensor:
        states = (o.state[p] for o in self.optimizers if p in o.state)
        state: dict[str, Tensor] = next(states, {})
        return state[key] if key in state else torch.zeros_like(p)

    def gradients(self, losses: Any) -> dict[str, Tensor]:
        """Return losses and gradients without a step, which memory for float64 is short of."""
        losses.total.backward()
        found = self.vectors(lambda p: torch.zeros_like(p) if p.grad is None else p.grad)
        return {f"gradient.{name}": g for name, g in found.items()} | self.losses_of(losses)

    def stepped(self, step: Callable[[Tensor, Tensor], Any], x: Tensor, y: Tensor) -> Any:
        """Take the first step and return losses, gradients and parameters.

        Gradients are read from Adam's first moment, which is (1 - beta1) g after one step, so that
        they are those the update used. ``after`` and ``expected`` are the parameters as the step
        left them and as those moments imply.
        """
        before = self.vectors(lambda p: p)
        losses = step(x, y)
        first = self.vectors(lambda p: self._moment(p, "exp_avg"))
        second = self.vectors(lambda p: self._moment(p, "exp_avg_sq"))
        after = self.vectors(lambda p: p)
        found = {}
        for name in before:
            gradient = first[name] / (1 - _BETA1)
            found[f"gradient.{name}"] = gradient
            found[f"after.{name}"] = after[name]
            change = LR * gradient / ((second[name] / (1 - _BETA2)).sqrt() + _EPS)
            found[f"expected.{name}"] = before[name] - change
        return found | self.losses_of(losses)

    def engine(self, step: Callable[[Tensor, Tensor], Any]) -> Engine:
        """Return the engine that steps like this."""
        return Engine(step, lambda x, y: self.stepped(step, x, y))


class _Recorded(BatchStream):
    """The recorded batch, again and again, where it lies on the device."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._batch = x, y

    def prepare(self, step: int) -> None:
        """Do nothing: the batch is there."""

    def gather(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        return self._batch

    def batch(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        return self._batch


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
    graph.begin(step, _Recorded(*batch), case.earlier)
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


def errors(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """Return relative errors (in root mean square) of :func:`first_step` against float64.

    Losses and gradients are compared with the float64 run's, updated parameters with what the
    variant's own moments imply: Adam's first step would blow up the rounding of small gradients.
    A NaN counts as infinite.
    """
    result = {}
    for name, value in found.items():
        if name.startswith("expected."):
            continue
        key = name.replace("after.", "expected.")
        truth = found[key] if key != name else exact[name]
        size = truth.norm()
        error = float((value - truth).norm() / size) if size else float(value.norm())
        result[name] = error if error == error else float("inf")
    return result
