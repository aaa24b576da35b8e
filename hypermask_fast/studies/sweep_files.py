"""The table of a search: as text, csv and JSON, and the settings that were best."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypermask_fast.console.columns import aligned
from hypermask_fast.fields import text_of
from hypermask_fast.files.atomic import write_text_atomic
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.sweep import SweepConfig
from hypermask_fast.studies.sweep_study import ENDED, Trial

BEST = "best.toml"
_CSV, _JSON = "trials.csv", "trials.json"


@dataclass(frozen=True)
class SweepResult:
    """What the trials of a search reached.

    Attributes:
        config: Of the search.
        trials: In their order.
        seeds: Of each trial that ended, by number, the mean validation accuracy of each seed.
    """

    config: SweepConfig
    trials: Sequence[Trial]
    seeds: Mapping[int, Sequence[float]]

    @property
    def ranked(self) -> list[Trial]:
        """The trials, the best of those that ended first, then the others in their order."""
        return sorted(self.trials, key=lambda t: -(t.value or 0) if t.state == ENDED else math.inf)

    @property
    def best(self) -> Trial | None:
        """The trial that ended with the highest validation accuracy, the first of equals."""
        found = [trial for trial in self.ranked if trial.state == ENDED]
        return found[0] if found else None

    @property
    def best_config(self) -> RunConfig | None:
        """The settings of the best trial."""
        return None if self.best is None else self.config.settings(self.best.values)

    def _std(self, trial: Trial) -> float | None:
        of_seeds = self.seeds.get(trial.number, ())
        return statistics.stdev(of_seeds) if len(of_seeds) > 1 else None

    def table(self) -> str:
        """Return it for a terminal."""
        names = list(self.config.grid)
        rows = [["trial", *names, "state", "tasks", "validation"]]
        for trial in self.ranked:
            std = self._std(trial)
            spread = "" if std is None else f" +/- {std:.2f}"
            value = "-" if trial.value is None else f"{trial.value:.2f}{spread}"
            values = [text_of(trial.values[name]) for name in names]
            rows.append([str(trial.number), *values, trial.state, str(len(trial.reported)), value])
        lines = [
            "validation accuracy in percent, mean of the tasks that were learned and of "
            f"{self.config.seeds} seed{'' if self.config.seeds == 1 else 's'}:",
            *aligned(rows),
        ]
        lines += [f"trial {t.number}: {t.note}" for t in self.trials if t.note]
        return "\n".join(lines)

    def command(self) -> str | None:
        """Return the command that trains with the settings of the best trial."""
        config = self.best_config
        if config is None:
            return None
        start = RunConfig.from_preset(config.preset) if config.preset else None
        words = ["hypermask", "train", *(["--preset", config.preset] if config.preset else [])]
        before = start.options() if start is not None else {}
        for name, value in config.options().items():
            # Of steps and epochs the one that is given unsets the other.
            is_unset = name in ("steps", "epochs") and value is None
            if name != "preset" and not is_unset and before.get(name, ...) != value:
                words += [f"--{name.replace('_', '-')}", text_of(value)]
        return shlex.join(words)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        best = self.best
        return {
            "sweep": self.config.to_json(),
            "best": None if best is None else best.number,
            "trials": [
                {
                    **vars(trial),
                    "values": dict(trial.values),
                    "reported": {str(step): value for step, value in trial.reported.items()},
                    "std": self._std(trial),
                    "seeds": list(self.seeds.get(trial.number, ())),
                }
                for trial in self.trials
            ],
        }

    def csv(self) -> str:
        """Return a row for each trial, in their order."""
        names = list(self.config.grid)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["trial", *names, "state", "reported", "validation", "std", "note"])
        for trial in self.trials:
            values = [text_of(trial.values[name]) for name in names]
            figures = ["" if v is None else v for v in (trial.value, self._std(trial))]
            writer.writerow(
                [trial.number, *values, trial.state, len(trial.reported), *figures, trial.note]
            )
        return buffer.getvalue()


def write(folder: Path, found: SweepResult) -> None:
    """Write the files of a search, each atomically.

    Raises:
        ConfigError: A file cannot be written.
    """
    write_text_atomic(folder / _CSV, found.csv())
    write_text_atomic(folder / _JSON, json.dumps(found.to_json(), indent=1) + "\n")
    if found.best_config is not None:
        write_text_atomic(folder / BEST, found.best_config.to_toml())
