"""What a method and those who train, plan and log it say to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from hypermask_fast.methods.outputs import detached


class Losses(NamedTuple):
    """What a training forward returns; all but the logits are 0-d.

    A term is also an attribute: ``losses.output_reg`` is ``losses.terms["output_reg"]``.

    Attributes:
        total: What to call ``backward`` on.
        task: The loss of the batch, such as its mean cross-entropy.
        logits: (batch, outputs); with a criterion what it was given, of whatever form.
        terms: What a method adds to the task's loss, by name, without its factors.
    """

    total: Tensor
    task: Tensor
    logits: Any
    terms: Mapping[str, Tensor]

    def __getattr__(self, name: str) -> Tensor:
        if name not in self.terms:
            raise AttributeError(
                f"these losses have no {name!r}; they have total, task, logits and the terms "
                f"{', '.join(self.terms) or 'of none'}"
            )
        return self.terms[name]

    def scalars(self) -> dict[str, Tensor]:
        """Return all but the logits, by name."""
        return {"total": self.total, "task": self.task, **self.terms}

    def detached(self) -> Losses:
        """Return the losses without their graph."""
        terms = {name: value.detach() for name, value in self.terms.items()}
        return Losses(self.total.detach(), self.task.detach(), detached(self.logits), terms)


class Prediction(NamedTuple):
    """Tasks and classes of inputs whose tasks were not known.

    Attributes:
        tasks: (batch,) int64, ids; -1 is unknown.
        classes: (batch,) int64; -1 is unknown. Global ids where all competing tasks have them, else
            places in the task.
        scores: (tasks, batch) float64, calibrated where there is a calibration; higher is likelier.
        competing: Ids of the tasks that the rows of ``scores`` are of, ascending.
    """

    tasks: Tensor
    classes: Tensor
    scores: Tensor
    competing: tuple[int, ...]


class Phase(NamedTuple):
    """A stretch of a task's steps with optimizers of its own."""

    name: str
    steps: int


class ParameterGroup(NamedTuple):
    """Parameters that are trained alike.

    Attributes:
        params: The parameters.
        optimizer: Name of the optimizer that takes them; a method that steps optimizers one after
            the other names several.
        lr: Learning rate in place of the run's; a schedule scales it alike.
        row_sparse: They are tables with a row for each task: rows without a gradient must not move,
            and do not, with any optimizer of PyTorch, from the beginning of a phase on.
        in_backward: Those of a head, which an optimizer may update in the backward pass.
    """

    params: Sequence[nn.Parameter]
    optimizer: str = "main"
    lr: float | None = None
    row_sparse: bool = False
    in_backward: Sequence[nn.Parameter] = ()
