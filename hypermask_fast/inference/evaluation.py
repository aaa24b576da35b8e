"""How often inferred tasks and classes of test images are right, before and after calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hypermask_fast.fields import check_value
from hypermask_fast.inference.base import UNKNOWN, Score, competing
from hypermask_fast.inference.calibration import KINDS, Calibration, calibrate
from hypermask_fast.inference.evidence import ROWS, gather
from hypermask_fast.inference.predict import decide
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.methods.protocol import Prediction
from hypermask_fast.scenarios import Task


class Shares(NamedTuple):
    """Percent of a task's test images.

    Attributes:
        task: The task is right.
        class_: The class is right.
        unknown: The answer is "unknown"; it counts as wrong in the others.
    """

    task: float
    class_: float
    unknown: float

    def to_json(self) -> dict[str, float]:
        """Return them as JSON values."""
        return {"task_accuracy": self.task, "class_accuracy": self.class_, "unknown": self.unknown}


@dataclass(frozen=True)
class Report:
    """The result of :func:`evaluate`.

    Attributes:
        score: What tasks were inferred by.
        rows: That share a task: a batch's, where the score tells one task for it, else 1.
        calibrated_on: The split that the calibration saw, or None without one.
        names: Of the tasks.
        before: For each task, without calibration.
        after: For each task, with it; None without one.
        calibration: The calibration, or None.
    """

    score: Score
    names: Sequence[str]
    before: Sequence[Shares]
    after: Sequence[Shares] | None
    calibration: Calibration | None
    rows: int = 1
    calibrated_on: str | None = None

    def mean(self, *, after: bool = False) -> Shares:
        """Return the mean over tasks, without calibration or with it.

        Raises:
            ValueError: There is none.
        """
        shares = self.after if after else self.before
        if shares is None:
            raise ValueError("the report is without a calibration; evaluate with calibrated=True")
        return Shares(*(sum(values) / len(shares) for values in zip(*shares, strict=True)))

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, in percent."""

        def both(before: Shares, after: Shares | None) -> dict[str, Any]:
            found = {"before": before.to_json()}
            return found if after is None else {**found, "after": after.to_json()}

        after: Sequence[Shares | None] = self.after or [None] * len(self.names)
        rows = zip(self.names, self.before, after, strict=True)
        return {
            "score": repr(self.score),
            "images_that_share_a_task": self.rows,
            "calibrated_on": self.calibrated_on,
            "tasks": [{"name": name, **both(b, a)} for name, b, a in rows],
            "mean": both(self.mean(), None if self.after is None else self.mean(after=True)),
            "calibration": None if self.calibration is None else self.calibration.to_json(),
        }

    def table(self) -> str:
        """Return the report as lines of text."""
        columns = [[*self.before, self.mean()]]
        titles = f"{'':<24} {'task':>8} {'class':>8}"
        lines = [repr(self.score)]
        if self.rows > 1:
            lines.append(f"a task for each {self.rows} images, which are all of one")
        if self.after is not None and self.calibration is not None:
            columns.append([*self.after, self.mean(after=True)])
            how = self.calibration.kind
            if self.calibrated_on != "validation":
                how += f" (on {self.calibrated_on} data)"
            lines.append(f"{'':<24} {'before':>17}   after calibration: {how}")
            titles += f"   {'task':>8} {'class':>8} {'unknown':>8}"
        lines.append(titles)
        for name, *shares in zip([*self.names, "mean"], *columns, strict=True):
            cells = [f"{shares[0].task:8.2f} {shares[0].class_:8.2f}"]
            cells += [f"{s.task:8.2f} {s.class_:8.2f} {s.unknown:8.2f}" for s in shares[1:]]
            lines.append(f"{name:<24} {'   '.join(cells)}")
        return "\n".join(lines)


def evaluate(
    learner: Learner,
    data: Mapping[int, Task],
    score: Score,
    *,
    calibrated: bool = False,
    calibrate_on: str = "validation",
    unknown_rate: float | None = None,
    batch_size: int = ROWS,
    training_mode: bool = False,
    second_pass: bool = False,
) -> Report:
    """Infer tasks and classes of the test images of all learned tasks.

    A score that looks at training data is fitted first; the calibration sees validation data alone.

    Args:
        learner: The learner.
        data: Its tasks by id.
        score: The score; it need not be fitted.
        calibrated: Choose how to compare scores on validation data, and report both. Default False.
        calibrate_on: "validation", or "train" where no data was held out, of which the learner is
            more certain than of new data. Default "validation".
        unknown_rate: As in :func:`hypermask_fast.inference.calibration.calibrate`.
        batch_size, training_mode, second_pass: As in
            :func:`hypermask_fast.inference.predict.predict`.

    Raises:
        ValueError, ConfigError: As in ``predict`` and ``calibrate``.
    """
    tasks = competing(learner, None)
    check_value("calibrate_on", str, calibrate_on, choices=("validation", "train"))
    check_value("batch_size", int, batch_size, low=1)
    together = batch_size * max(1, ROWS // batch_size)
    mode: dict[str, Any] = {"batch_size": batch_size, "training_mode": training_mode}
    if score.needs_training_data:
        with evaluating(learner):
            train = {task: data[task].evaluation_batches("train", together) for task in tasks}
            score = score.fitted(learner, train)
    calibration = None
    if calibrated or unknown_rate is not None:
        held_out = {t: data[t].evaluation_batches(calibrate_on, together) for t in tasks}
        kinds = KINDS if calibrated else ("none",)
        calibration = calibrate(
            learner, score, held_out, kinds=kinds, unknown_rate=unknown_rate, **mode
        )
    ways = [None] if calibration is None else [None, calibration]
    shares: list[list[Shares]] = [[] for _ in ways]
    for task in tasks:
        counts = torch.zeros(len(ways), 3, dtype=torch.int64)
        for x, y in data[task].evaluation_batches("test", together):
            evidence = gather(learner, x, score, tasks, **mode)
            for count, way in zip(counts, ways, strict=True):
                prediction = decide(
                    learner, x, evidence, tasks, way, batch_size=batch_size, second_pass=second_pass
                )
                count += _counts(learner, prediction, task, y)
        for column, count in zip(shares, counts, strict=True):
            column.append(Shares(*(100.0 * count.double() / len(data[task].test)).tolist()))
    names = [learner.tasks[task].name for task in tasks]
    return Report(
        score,
        names,
        shares[0],
        None if calibration is None else shares[1],
        calibration,
        batch_size if score.shares_task else 1,
        None if calibration is None else calibrate_on,
    )


def _counts(learner: Learner, found: Prediction, task: int, y: Tensor) -> Tensor:
    """Return how many rows of a task have the right task, the right class, and none."""
    right_task = found.tasks == task
    classes = learner.tasks[task].classes
    if classes is None or any(learner.tasks[t].classes is None for t in found.competing):
        right_class = right_task & (found.classes == y)
    else:
        right_class = found.classes == torch.tensor(classes, device=y.device)[y]
    return torch.stack((right_task, right_class, found.tasks == UNKNOWN), 1).sum(0).cpu()
