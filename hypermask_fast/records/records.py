"""What a run has recorded of itself, read from its folder; no learner, no data and no lock."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hypermask_fast.errors import DataError
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.metrics import continual
from hypermask_fast.records import confusion, summary
from hypermask_fast.records.accuracy_files import read_accuracy
from hypermask_fast.records.confusion import Confusion
from hypermask_fast.records.metrics_log import read
from hypermask_fast.records.restoring import settings_of
from hypermask_fast.settings.config import RunConfig


@dataclass(frozen=True)
class Records:
    """What there is of a run; a part that a version or the run's state lacks is empty.

    Attributes:
        path: Its folder.
        config: Its settings; None of a script's run.
        script: What a script's run was begun with, by part and name.
        accuracy: R (T + 1, T), percent.
        names: Of the tasks.
        rows: Of the log, those of steps.
        confusions: Of the learned tasks, at the end.
        summary, manifest: The files of these names.
    """

    path: Path
    config: RunConfig | None
    script: Mapping[str, Mapping[str, Any]]
    accuracy: npt.NDArray[np.float64]
    names: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    confusions: Sequence[Confusion]
    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """All settings, by name."""
        if self.config is not None:
            return self.config.options()
        return {name: value for part in self.script.values() for name, value in part.items()}

    @property
    def metrics(self) -> dict[str, float]:
        """By name, in percent."""
        counts = self.summary.get("test_examples")
        return continual.summary(self.accuracy, counts)


def records(path: Path, config: RunConfig | None = None) -> Records:
    """Read a run's records.

    Args:
        path: Its folder.
        config: Its settings. Default: they are read too.

    Raises:
        ConfigError: There is no run, or its settings cannot be read.
        DataError: It has learned no task yet, or a file is damaged.
    """
    folder = RunFolder.of_any(path)
    by_script = config is None and not folder.config_path.exists()
    if not folder.accuracy_npz.exists():
        raise DataError(
            f"{path} has learned no task to the end yet; continue it with `hypermask resume {path}`"
            " or the script that began it"
        )
    accuracy, names = read_accuracy(folder.accuracy_npz)
    rows = read(folder.metrics_path) if folder.metrics_path.exists() else []
    return Records(
        path=folder.path,
        config=None if by_script else config or settings_of(folder),
        script=_or_nothing(lambda: json.loads(folder.script_path.read_bytes()), {}),
        accuracy=accuracy,
        names=names,
        rows=[row for row in rows if "step" in row],
        confusions=_or_nothing(lambda: confusion.read(folder.path / confusion.FILE), []),
        summary=_or_nothing(lambda: summary.read(folder.summary_path), {}),
        manifest=_or_nothing(lambda: json.loads(folder.manifest_path.read_bytes()), {}),
    )


def _or_nothing(reads: Any, nothing: Any) -> Any:
    try:
        return reads()
    except (DataError, OSError, ValueError):
        return nothing
