"""Scores of tasks on one scale, and when to answer "unknown": chosen on validation data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.fields import check_value
from hypermask_fast.inference.base import Batches, Score, by_id, check_score, highest
from hypermask_fast.inference.evidence import ROWS, gather
from hypermask_fast.methods.base import Learner, check_learner

_RIDGE = 1e-3
"""Weight of the squared distance to scores of mean 0 and variance 1: it decides where tasks are
told apart without error, and the likelihood has no maximum."""


class Calibration(NamedTuple):
    """An increasing function of the scores of each task, and a threshold.

    Attributes:
        score: The score.
        kind: "none", which changes nothing, "standardize" or "logistic".
        scale, shift: (tasks,) float64; else it is ``scale * score.spread(scores) + shift``.
        threshold: Rows whose highest calibrated score is less are of no known task. None: all are.
        tasks: Ids, ascending.
        accuracies: Task accuracy on the validation data in percent, the mean over tasks, by kind.
    """

    score: Score
    kind: str
    scale: Tensor
    shift: Tensor
    threshold: float | None
    tasks: tuple[int, ...]
    accuracies: Mapping[str, float]

    def __call__(self, scores: Tensor, tasks: Sequence[int]) -> Tensor:
        """Return calibrated scores.

        Args:
            scores: (tasks, batch).
            tasks: Their ids.

        Raises:
            ValueError: They are not those of the calibration.
        """
        if tuple(tasks) != self.tasks:
            raise ValueError(
                f"the calibration is of tasks {list(self.tasks)} and tasks {list(tasks)} compete; "
                "calibrate with the same tasks"
            )
        if self.kind == "none":
            return scores
        return _affine(self.score.spread(scores), self.scale, self.shift)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "score": repr(self.score),
            "kind": self.kind,
            "tasks": list(self.tasks),
            "scale": self.scale.tolist(),
            "shift": self.shift.tolist(),
            "threshold": self.threshold,
            "validation_task_accuracy": dict(self.accuracies),
        }


def _affine(scores: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return scale.to(scores.device)[:, None] * scores + shift.to(scores.device)[:, None]


def _none(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    ones = scores.new_ones(len(scores))
    return ones, torch.zeros_like(ones)


def _standardize(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Give each task's scores of its own rows mean 0 and variance 1."""
    own = [scores[task, labels == task] for task in range(len(scores))]
    return _to_unit_variance(own)


def _to_unit_variance(of_tasks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    mean = torch.stack([values.mean() for values in of_tasks])
    deviation = torch.stack([values.std(unbiased=False) for values in of_tasks])
    scale = torch.where(deviation > 0, 1 / deviation, 1.0)
    return scale, -mean * scale


def _logistic(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Maximise the likelihood of the right tasks under softmax of the calibrated scores.

    Each task counts alike. The scales are positive: a higher score is never a lower one after it.
    """
    scale, shift = _to_unit_variance(list(scores))
    z = _affine(scores, scale, shift).T
    weight = labels.bincount(minlength=len(scores)).double().reciprocal()[labels] / len(scores)
    chosen = z.new_zeros(2, len(scores), requires_grad=True)  # logs of scales, and shifts
    optimizer = torch.optim.LBFGS(
        [chosen], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(z * chosen[0].exp() + chosen[1], labels, reduction="none")
        total = (weight * losses).sum() + _RIDGE * chosen.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    factor, more = chosen.detach()[0].exp(), chosen.detach()[1]
    return factor * scale, factor * shift + more


_KINDS = {"none": _none, "standardize": _standardize, "logistic": _logistic}
KINDS = tuple(_KINDS)


def calibrate(
    learner: Learner,
    score: Score,
    validation: Mapping[Any, Batches],
    *,
    kinds: Sequence[str] = KINDS,
    unknown_rate: float | None = None,
    batch_size: int = ROWS,
    training_mode: bool = False,
) -> Calibration:
    """Choose how to compare the scores of tasks, on validation data.

    Args:
        learner: The learner.
        score: The score, fitted.
        validation: Batches by task id or name; these tasks compete.
        kinds: What to choose from, by the task accuracy on the validation data; of equal ones the
            first is taken. "none"; "standardize", by which each task's scores of its own rows have
            mean 0 and variance 1, and which needs no other task's data; "logistic", the affine
            function of highest likelihood. Default: all.
        unknown_rate: The share of validation rows to be answered "unknown", from 0 to less than 1:
            those of the lowest scores. Default None: no row is.
        batch_size, training_mode: As in :func:`hypermask_fast.inference.predict.predict`.

    Raises:
        ValueError: As in ``predict``.
        ConfigError: A task has no validation rows, a kind is unknown, or the rate is out of range.
    """
    check_learner(learner)
    check_score(score)
    unknown_rate = check_value("unknown_rate", float, unknown_rate, None, low=0.0)
    if unknown_rate is not None and unknown_rate >= 1:
        raise ConfigError(f"unknown_rate={unknown_rate} is out of range; give less than 1")
    for kind in kinds or ("",):
        if kind not in _KINDS:
            raise ConfigError(
                f"kinds has {kind!r}{nearest(kind, KINDS)}; choose from {', '.join(KINDS)}"
            )
    given = by_id(learner, validation)
    tasks = tuple(sorted(given))
    scores, labels = _scores(learner, score, given, tasks, batch_size, training_mode)
    spread = score.spread(scores)
    accuracies: dict[str, float] = {}
    found = [
        Calibration(score, kind, *_KINDS[kind](spread, labels), None, tasks, accuracies)
        for kind in kinds
    ]
    accuracies |= {each.kind: _accuracy(each(scores, tasks), labels) for each in found}
    calibration = max(found, key=lambda each: accuracies[each.kind])
    if not unknown_rate:
        return calibration
    best = calibration(scores, tasks).amax(0).sort().values
    threshold = float(best[int(unknown_rate * len(best))])
    return calibration._replace(threshold=threshold)


def _scores(
    learner: Learner,
    score: Score,
    validation: Mapping[int, Batches],
    tasks: tuple[int, ...],
    batch_size: int,
    training_mode: bool,
) -> tuple[Tensor, Tensor]:
    """Return scores (tasks, rows) on the CPU, and each row's place in the tasks."""

    def scored(x: Tensor) -> Tensor:
        found = gather(learner, x, score, tasks, batch_size=batch_size, training_mode=training_mode)
        return found.scores.cpu()

    parts, labels = [], []
    for place, task in enumerate(tasks):
        own = [scored(x) for x, _ in validation[task]]
        rows = sum(part.shape[1] for part in own)
        if not rows:
            raise ConfigError(
                f"task {task} has no validation rows to calibrate with; hold some out, such as "
                "validation=40 of a scenario, or give training data"
            )
        parts += own
        labels.append(torch.full((rows,), place))
    return torch.cat(parts, 1), torch.cat(labels)


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    right = (highest(scores)[1] == labels).double()
    return 100.0 * float(torch.stack([right[labels == t].mean() for t in labels.unique()]).mean())
