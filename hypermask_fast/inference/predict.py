"""Predictions without task ids: the task of the highest score, and its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError, InferenceError
from hypermask_fast.inference.base import (
    UNKNOWN,
    Evidence,
    Score,
    check_score,
    competing,
    highest,
)
from hypermask_fast.inference.calibration import Calibration
from hypermask_fast.inference.evidence import ROWS, gather
from hypermask_fast.inference.registry import make_score
from hypermask_fast.methods.base import Learner, check_learner
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.methods.inputs import Batch, Given, inputs_of
from hypermask_fast.methods.protocol import Prediction


def predict(
    learner: Learner,
    x: Given,
    score: str | Score = "entropy",
    *,
    tasks: Sequence[int | str] | None = None,
    calibration: Calibration | None = None,
    batch_size: int = ROWS,
    training_mode: bool = False,
    second_pass: bool = False,
    **options: Any,
) -> Prediction:
    """Predict tasks and classes of inputs whose tasks are not known.

    The learner is evaluated without gradients and comes back in the mode that it was in.

    Args:
        learner: The learner.
        x: Inputs (batch, ...): a tensor, a tuple of several, or a dict of those by keyword.
        score: Name of a score, or one that was fitted or has options. Default "entropy".
        tasks: Ids or names of the tasks that compete. Default: those that were learned.
        calibration: From :func:`hypermask_fast.inference.calibration.calibrate` with the same
            score; it may answer "unknown".
        batch_size: Rows that run together. It matters where a network takes statistics of the
            batch, or the score gives one task for it; the published loop of HNET is 1. Default
            2000, as published for HyperMask.
        training_mode: Take the scores in training mode, as published for SupSup: batch norm uses
            the batch's statistics. Running statistics stay as they are. Default False.
        second_pass: Take the class from another forward, of the rows of each chosen task together;
            with statistics of the batch its outputs are others. Default False: from the outputs
            that the score was taken of.
        options: Of a score that is given by name.

    Raises:
        ValueError: No task was learned, the calibration is of other tasks or another score, or the
            learner's outputs are not finite.
        ConfigError: The score or an option is unknown or out of range, or the score cannot tell the
            tasks apart or was not fitted.
        TypeError: An argument has another type.
    """
    check_learner(learner)
    chosen = make_score(score, **options) if isinstance(score, str) else check_score(score)
    if options and not isinstance(score, str):
        raise ConfigError(f"options {list(options)} are given beside a score; give them to it")
    ids = competing(learner, tasks)
    if calibration is not None and calibration.score != chosen:
        raise ValueError(
            f"the calibration is of {calibration.score} and the score is {chosen}; calibrate the "
            "score that is used"
        )
    x = inputs_of(x)
    evidence = gather(learner, x, chosen, ids, batch_size=batch_size, training_mode=training_mode)
    return decide(
        learner, x, evidence, ids, calibration, batch_size=batch_size, second_pass=second_pass
    )


def decide(
    learner: Learner,
    x: Batch,
    evidence: Evidence,
    tasks: Sequence[int],
    calibration: Calibration | None = None,
    *,
    batch_size: int = ROWS,
    second_pass: bool = False,
) -> Prediction:
    """Return the prediction that evidence leads to; arguments as in :func:`predict`."""
    scores = evidence.scores if calibration is None else calibration(evidence.scores, tasks)
    best, places = highest(scores)
    ids = torch.tensor(tasks, device=x.device)[places]
    if evidence.outputs is None or second_pass:
        with evaluating(learner):
            parts = zip(x.split(batch_size), ids.split(batch_size), strict=True)
            found = [_classes(learner, rows, task) for rows, task in parts if len(rows)]
        outputs = torch.cat(found) if found else ids.new_zeros(0)
    else:
        outputs = evidence.outputs.gather(0, places[None])[0]
    classes = _global_ids(learner, tasks, places, outputs)
    if calibration is not None and calibration.threshold is not None:
        unknown = best < calibration.threshold
        ids, classes = ids.masked_fill(unknown, UNKNOWN), classes.masked_fill(unknown, UNKNOWN)
    return Prediction(ids, classes, scores, tuple(tasks))


def _classes(learner: Learner, x: Batch, tasks: Tensor) -> Tensor:
    """Return the places of the largest outputs, (batch,), of rows of different tasks."""
    best, places = learner(x, tasks).max(1)
    wrong = tasks[~best.isfinite()]
    if len(wrong):
        raise InferenceError(
            f"the largest output of task {int(wrong[0])} is not finite, and so in {len(wrong)} of "
            f"{len(x)} rows; the inputs or the weights are not finite"
        )
    return places


def _global_ids(learner: Learner, tasks: Sequence[int], places: Tensor, outputs: Tensor) -> Tensor:
    known = [learner.tasks[task].classes for task in tasks]
    classes = [ids for ids in known if ids is not None]
    if len(classes) < len(known):
        return outputs
    width = max(map(len, classes))
    table = torch.tensor([[*ids, *[UNKNOWN] * (width - len(ids))] for ids in classes])
    return table.to(outputs.device)[places, outputs]
