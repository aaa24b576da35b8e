"""Test accuracies of a run's tasks now, or of those of several seeds: mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypermask_fast.console.columns import aligned
from hypermask_fast.console.words import percent
from hypermask_fast.finished.inferred import Summary, ended


@dataclass(frozen=True)
class Evaluation:
    """What the tasks of several runs reach.

    Attributes:
        folders: Of the runs.
        tasks: Names of their tasks, in the order of the first run.
        accuracies: In percent, of each run a list in the order of ``tasks``.
        left_out: Why others in the folder were not looked at, a sentence each.
    """

    folders: Sequence[Path]
    tasks: Sequence[str]
    accuracies: Sequence[Sequence[float]]
    left_out: Sequence[str]

    @property
    def rows(self) -> list[tuple[str, Summary]]:
        """For each task, and for their mean, the accuracies of the runs."""
        columns = list(zip(*self.accuracies, strict=True))
        means = [sum(run) / len(run) for run in self.accuracies]
        return [
            (n, Summary.of(c))
            for n, c in zip([*self.tasks, "mean"], [*columns, means], strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        *tasks, (_, mean) = self.rows
        return {
            "runs": [str(folder) for folder in self.folders],
            "left_out": list(self.left_out),
            "tasks": [{"name": name, "accuracy": found.to_json()} for name, found in tasks],
            "mean": mean.to_json(),
        }

    def table(self) -> str:
        """Return a line for each task: mean and deviation, and each run."""
        names = [folder.name for folder in self.folders]
        head = [f"{len(names)} run{'' if len(names) == 1 else 's'}, percent", "mean", "std", *names]
        rows = [head]
        for name, found in self.rows:
            rows.append([name, *map(percent, (found.mean, found.std, *found.values))])
        return "\n".join([*aligned(rows), *(f"left out: {reason}" for reason in self.left_out)])


def evaluate(path: Path, *, device: str | None = None, data_dir: str | None = None) -> Evaluation:
    """Measure the test accuracy of each task in the newest checkpoints of runs of several seeds.

    Args:
        path: Their folder; those count that have ended.
        device, data_dir: As in :func:`hypermask_fast.runs.run.load`.

    Raises:
        ConfigError: None has ended.
        DataError: As in :func:`hypermask_fast.runs.run.load`.
    """
    left_out: list[str] = []
    folders, names, found = [], list[str](), []
    for folder, trainer in ended(path, left_out, device=device, data_dir=data_dir):
        learner = trainer.learner
        of_run = {learner.tasks[task].name: trainer.evaluate(task) for task in learner.learned}
        names = names or list(of_run)
        folders.append(folder)
        found.append([of_run[name] for name in names])
    return Evaluation(folders, names, found, left_out)
