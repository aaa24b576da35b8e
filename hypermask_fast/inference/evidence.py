"""Scores of inputs in batches, in evaluation mode or, as published for some, in training mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import check_value
from hypermask_fast.inference.base import Evidence, Score
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.batches import check_devices
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.methods.inputs import Batch, Inputs

ROWS = 2000
"""Rows that run together: as published for HyperMask."""


def gather(
    learner: Learner,
    x: Batch,
    score: Score,
    tasks: Sequence[int],
    *,
    batch_size: int = ROWS,
    training_mode: bool = False,
) -> Evidence:
    """Return what a score tells of inputs; arguments as in `predict`."""
    check_value("batch_size", int, batch_size, low=1)
    check_devices(next(learner.parameters()).device, inputs=x)
    if isinstance(x, Inputs) and not score.takes_several:
        raise ConfigError(
            f"the score is {score} and looks at one tensor, and {x} are given; use one of the "
            "networks' outputs, such as 'entropy'"
        )
    with _mode(learner, training_mode):
        return score.evidence(learner, x, tasks, batch_size)


@contextmanager
def _mode(learner: Learner, training: bool) -> Iterator[None]:
    with evaluating(learner):
        if not training:
            yield
            return
        learner.train()
        before = [(buffer, buffer.clone()) for buffer in learner.buffers()]
        try:
            yield
        finally:
            for buffer, value in before:
                buffer.copy_(value)
