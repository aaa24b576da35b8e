"""What a run's newest checkpoint still knows of each task, recomputed."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hypermask_fast.console.columns import aligned
from hypermask_fast.errors import CheckpointError
from hypermask_fast.fields import check_value
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.finished.inferred import loaded
from hypermask_fast.records import learned
from hypermask_fast.training.kept_logits import logits_of
from hypermask_fast.training.trainer import Trainer


@dataclass(frozen=True)
class Verified:
    """A learned task.

    Attributes:
        name: Its name.
        when_learned: Test accuracy in percent just after it was learned; None: not measured.
        now: Recomputed from the checkpoint.
        recorded: As the run measured it last; None: not since the weights changed.
        drift: The largest change of a logit since it was learned; None: none were kept.
    """

    name: str
    when_learned: float | None
    now: float
    recorded: float | None
    drift: float | None

    @property
    def differs(self) -> bool:
        """Whether the accuracy is not the recorded one."""
        return self.recorded is not None and self.recorded != self.now


@dataclass(frozen=True)
class Verification:
    """The learned tasks of a run, in the order learned.

    Attributes:
        tasks: The tasks.
        learning: The name of the task that the checkpoint is within, or None.
    """

    tasks: Sequence[Verified]
    learning: str | None

    @property
    def differing(self) -> list[str]:
        """Names of the tasks whose accuracy is not the recorded one."""
        return [task.name for task in self.tasks if task.differs]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "tasks": [{**asdict(task), "differs": task.differs} for task in self.tasks],
            "learning": self.learning,
            "ok": not self.differing,
        }

    def table(self) -> str:
        """Return a row for each task, and what they say together."""
        rows = [("task", "when learned", "now", "change", "recorded", "largest drift of a logit")]
        for task in self.tasks:
            before = task.when_learned
            change = "" if before is None else f"{task.now - before:+.2f}"
            drift = "not kept" if task.drift is None else f"{task.drift:.3g}"
            accuracies = (before, task.now, task.recorded)
            learned_at, now, recorded = map(_percent, accuracies)
            rows.append((task.name, learned_at, now, change, recorded, drift))
        lines = aligned(rows)
        if self.learning is not None:
            lines.append(
                f"the checkpoint is within the task {self.learning!r}; what is recorded is of "
                "before it"
            )
        if self.differing:
            lines.append(f"differs from what is recorded: {', '.join(self.differing)}")
        else:
            lines.append("no accuracy differs from what is recorded")
        return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"


def verify(
    path: str | os.PathLike[str], *, device: str | None = None, data_dir: str | None = None
) -> Verification:
    """Recompute the test accuracy of every learned task from a run's newest checkpoint.

    Args:
        path: The folder of the run, which is only read.
        device, data_dir: As in :func:`hypermask_fast.runs.run.load`.

    Raises:
        CheckpointError: The checkpoint, or what was kept of a task, is damaged.
        ConfigError, DataError: As there, or no task was learned.
    """
    folder = RunFolder(check_value("path", str, path, path=True))
    trainer = loaded(Path(folder.path), device=device, data_dir=data_dir)
    learner = trainer.learner
    current = learner.current
    last = {task: column for column, task in enumerate(trainer.columns)}
    tasks = [_verified(trainer, folder.learned, task, last[task]) for task in learner.learned]
    return Verification(tasks, None if current is None else learner.tasks[current].name)


def _verified(trainer: Trainer, folder: Path, task: int, column: int) -> Verified:
    """Return what is left of a task whose last end is in a column of the trainer's matrix."""
    learner, matrix = trainer.learner, trainer.accuracy
    name = learner.tasks[task].name
    newest = float(matrix[trainer.tasks_done, column])
    before = float(matrix[column + 1, column])
    return Verified(
        name,
        None if math.isnan(before) else before,
        trainer.evaluate(task),
        None if math.isnan(newest) or learner.current is not None else newest,
        _drift(
            learned.kept(folder, task, name), logits_of(learner, task, trainer.tasks[task]), name
        ),
    )


def _drift(before: Tensor | None, now: Tensor, name: str) -> float | None:
    """Return the largest absolute difference; where both are infinite there is none."""
    if before is None:
        return None
    if before.shape != now.shape:
        raise CheckpointError(
            f"the logits that were kept of the task {name!r} have the shape {tuple(before.shape)} "
            f"and it has {tuple(now.shape)} now; verify the run with the data that it was made with"
        )
    return float(torch.where(before == now, 0, before - now).abs().max())
