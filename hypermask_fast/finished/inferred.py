"""Inference of unknown tasks by several scores, in one run or in those of several seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hypermask_fast.errors import CheckpointError, ConfigError, HypermaskError
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.inference.base import Score
from hypermask_fast.inference.evaluation import Report, Shares, evaluate
from hypermask_fast.memory import available_memory
from hypermask_fast.runs import run
from hypermask_fast.studies import seeds
from hypermask_fast.training.trainer import Trainer

_COLUMNS = (("task_accuracy", "task"), ("class_accuracy", "class"))


class Summary(NamedTuple):
    """Values of the same in several runs.

    Attributes:
        values: In the order of the runs.
        mean, std: Their mean and sample standard deviation, which is NaN for one run.
    """

    values: Sequence[float]
    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Return the summary of at least one value."""
        std = np.std(values, ddof=1) if len(values) > 1 else np.nan
        return cls(values, float(np.mean(values)), float(std))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; a deviation that there is none of is None."""
        std = None if np.isnan(self.std) else self.std
        return {"mean": self.mean, "std": std, "n": len(self.values), "values": list(self.values)}

    def __str__(self) -> str:
        spread = "" if np.isnan(self.std) else f" +/- {self.std:.2f}"
        return f"{self.mean:.2f}{spread}"


@dataclass(frozen=True)
class Results:
    """What several scores gave in runs.

    Attributes:
        folders: Of the runs.
        left_out: Why others in the folder were not looked at, a sentence each.
        reports: For each score a report for each run, or the sentence by which it was refused.
    """

    folders: Sequence[Path]
    left_out: Sequence[str]
    reports: Mapping[str, Sequence[Report] | str]

    def single(self) -> Report | None:
        """Return the report where there is but one."""
        reports, *others = self.reports.values()
        return None if others or isinstance(reports, str) or len(reports) > 1 else reports[0]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        found: dict[str, Any] = {}
        for name, reports in self.reports.items():
            if isinstance(reports, str):
                found[name] = {"refused": reports}
                continue
            found[name] = {
                when: {key: summary.to_json() for key, summary in summaries.items()}
                for when, summaries in _summaries(reports).items()
            }
            found[name]["runs"] = [report.to_json() for report in reports]
        return {
            "runs": [str(folder) for folder in self.folders],
            "left_out": list(self.left_out),
            "scores": found,
        }

    def table(self) -> str:
        """Return a line for each score: means over tasks, of the runs' mean and deviation."""
        reports = [each for each in self.reports.values() if not isinstance(each, str)]
        times = list(_summaries(reports[0])) if reports else []
        heads = [f"{title}, {when}" for when in times for _, title in _COLUMNS]
        lines = [f"{len(self.folders)} runs" if len(self.folders) > 1 else str(self.folders[0])]
        lines.append("".join([f"{'percent':<14}", *(f"{head:>18}" for head in heads)]))
        for name, of_runs in self.reports.items():
            if isinstance(of_runs, str):
                lines.append(f"{name:<14}refused: {of_runs}")
                continue
            found = _summaries(of_runs)
            cells = [f"{found[when][key]!s:>18}" for when in times for key, _ in _COLUMNS]
            rows = of_runs[0].rows
            note = f"  a task for each {rows} images" if rows > 1 else ""
            lines.append(f"{name:<14}{''.join(cells)}{note}")
        return "\n".join([*lines, *(f"left out: {reason}" for reason in self.left_out)])


def _summaries(reports: Sequence[Report]) -> dict[str, dict[str, Summary]]:
    """Return summaries of the shares by "before" and, with a calibration, "after"."""
    means: dict[str, list[Shares]] = {"before": [report.mean() for report in reports]}
    after = [report.mean(after=True) for report in reports if report.after is not None]
    if after:
        means["after"] = after
    names = tuple(Shares(0, 0, 0).to_json())
    return {
        when: {name: Summary.of([shares.to_json()[name] for shares in of_runs]) for name in names}
        for when, of_runs in means.items()
    }


def infer(
    path: Path,
    scores: Mapping[str, Score],
    *,
    device: str | None = None,
    data_dir: str | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Results:
    """Infer the tasks of the test images of a run, or of those of several seeds.

    Args:
        path: Folder of the run, or of several; of these, those count that have ended.
        scores: What to infer by. Where there are several, one that is refused says so.
        device, data_dir: As in :func:`hypermask_fast.runs.run.load`.
        batch_size: Images that run together. Default: as in the run's settings.
        options: Of :func:`hypermask_fast.inference.evaluation.evaluate`.

    Raises:
        ConfigError: No run has learned a task, or the only score is refused.
        CheckpointError, DataError, InferenceError: Of the only run or score.
    """
    folders: list[Path] = []
    left_out: list[str] = []
    found: dict[str, list[Report]] = {name: [] for name in scores}
    refused: dict[str, str] = {}

    for folder, trainer in ended(path, left_out, device=device, data_dir=data_dir):
        folders.append(folder)
        rows = trainer.settings.eval_batch_size if batch_size is None else batch_size
        for name, score in scores.items():
            if name in refused:
                continue
            try:
                found[name].append(_report(trainer, score, rows, options))
            except HypermaskError as error:
                if len(scores) == 1:
                    raise
                refused[name] = str(error)
    return Results(folders, left_out, {n: refused.get(n, r) for n, r in found.items()})


def ended(
    path: Path, left_out: list[str], *, device: str | None, data_dir: str | None
) -> Iterator[tuple[Path, Trainer]]:
    """Yield the trainer of a run that has learned a task, or of those of several that have ended.

    Args:
        path: Folder of the run, or of several.
        left_out: Gets a sentence for each other run.
        device, data_dir: As in :func:`hypermask_fast.runs.run.load`.

    Raises:
        ConfigError: There is none.
        CheckpointError, DataError: As in :func:`loaded`, of the only run.
    """
    if not seeds.holds_seeds(path):
        yield path, loaded(path, device=device, data_dir=data_dir)
        return
    is_any = False
    for folder in seeds.folders(path):
        if not RunFolder(folder).config_path.exists():
            left_out.append(f"{folder} has not begun")
            continue
        try:
            trainer = loaded(folder, device=device, data_dir=data_dir)
        except (CheckpointError, ConfigError) as error:
            left_out.append(str(error))
            continue
        learner = trainer.learner
        if len(learner.learned) < len(learner.tasks):
            left_out.append(
                f"{folder} has learned {len(learner.learned)} of {len(learner.tasks)} tasks"
            )
            continue
        is_any = True
        yield folder, trainer
    if not is_any:
        raise ConfigError(
            f"no run in {path} has ended; continue them with `hypermask resume {path}`"
        )


def _report(trainer: Trainer, score: Score, rows: int, options: Mapping[str, Any]) -> Report:
    device = next(trainer.learner.parameters()).device
    has, wants = available_memory(str(device)), score.memory_bytes()
    if has is not None and wants > has:
        raise ConfigError(
            f"{score} takes {wants / 2**30:.1f} GiB and {device} has {has / 2**30:.1f} GiB left; "
            "give it a smaller width"
        )
    return evaluate(trainer.learner, trainer.tasks, score, batch_size=rows, **options)


def loaded(path: Path, *, device: str | None = None, data_dir: str | None = None) -> Trainer:
    """Return the trainer of a run that has learned a task; arguments as in `run.load`.

    Raises:
        ConfigError: It has not.
        CheckpointError, DataError: As there.
    """
    trainer = run.load(path, device=device, data_dir=data_dir)
    if not trainer.learner.learned:
        raise ConfigError(
            f"{path} has learned no task to the end yet; continue it with `hypermask resume {path}`"
        )
    return trainer
