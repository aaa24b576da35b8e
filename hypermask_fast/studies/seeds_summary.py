"""What runs of several seeds ended with, in two files of their folder and as a table."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hypermask_fast.console.words import percent
from hypermask_fast.errors import DataError
from hypermask_fast.files.atomic import write_text_atomic
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.metrics import continual
from hypermask_fast.metrics.statistics import interval
from hypermask_fast.records import accuracy_files, timing
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.expected import LEAST_TOLERANCE, Expected, expected_of

JSON, CSV = "summary.json", "summary.csv"
_ENDED = "ended"


class Figure(NamedTuple):
    """A value over seeds; what there is none of is NaN.

    Attributes:
        mean, std: Of the runs that ended; the sample standard deviation.
        half: Half the 95 % interval of the mean by Student's t.
        size: Number of the runs.
    """

    mean: float
    std: float
    half: float
    size: int


@dataclass(frozen=True)
class Row:
    """A run.

    Attributes:
        seed: Its seed.
        state: "ended", or how far it is, or why it failed.
        values: Its metrics by name; none before it has ended.
    """

    seed: int
    state: str
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SeedsSummary:
    """What runs of several seeds ended with.

    Attributes:
        config: Settings, with the first seed.
        rows: The runs.
    """

    config: RunConfig
    rows: list[Row]

    @property
    def ended(self) -> list[Row]:
        """The runs that ended."""
        return [row for row in self.rows if row.state == _ENDED]

    @property
    def figures(self) -> dict[str, Figure]:
        """The values over the runs that ended, by name."""
        names = dict.fromkeys(name for row in self.ended for name in row.values)
        return {name: _figure([row.values[name] for row in self.ended]) for name in names}

    @property
    def expected(self) -> tuple[Expected | None, list[str]]:
        """As :func:`hypermask_fast.settings.expected.expected_of`."""
        return expected_of(self.config)

    @property
    def is_as_expected(self) -> bool | None:
        """Whether the mean accuracy lies within the tolerance; None where it is not compared."""
        expected, others = self.expected
        if expected is None or others or not self.ended:
            return None
        tolerance = expected.tolerance(len(self.ended))
        if tolerance is None:
            return None
        return abs(self.figures["acc_final"].mean - expected.acc) <= tolerance

    def table(self, marks: tuple[str, str] = ("yes:", "NO:")) -> str:
        """Return it for a terminal.

        Args:
            marks: What stands before a mean that is as expected, and before one that is not.
        """
        count = len(self.ended)
        title = "1 seed" if count == 1 else f"{count} seeds"
        lines = [f"{title}, mean +/- standard deviation, 95 % interval of the mean:"]
        known = {name: f for name, f in self.figures.items() if not math.isnan(f.mean)}
        for name, figure in known.items():
            line = f"  {name:<20} {percent(figure.mean):>8}"
            if not math.isnan(figure.std):
                low, high = figure.mean - figure.half, figure.mean + figure.half
                line += f" +/- {figure.std:<8.2f} {percent(low):>8} to {percent(high)}"
            lines.append(line)
        lines += [f"seed {row.seed}: {row.state}" for row in self.rows if row.state != _ENDED]
        return "\n".join([*lines, *self._compared(marks)])

    def _compared(self, marks: tuple[str, str]) -> list[str]:
        expected, others = self.expected
        if expected is None or not self.ended:
            return []
        line = f"expected of {self.config.preset}: {expected}"
        tolerance = expected.tolerance(len(self.ended))
        if others:
            return [f"{line}; not compared, for these settings are others: {', '.join(others)}"]
        if tolerance is None:
            return [f"{line}; not compared, for it has no deviation"]
        is_good, mean = self.is_as_expected, self.figures["acc_final"].mean
        where = "within" if is_good else "not within"
        return [
            line,
            f"{marks[0] if is_good else marks[1]} ACC {mean:.2f} is {where} {tolerance:.2f} of it "
            f"(three standard errors of the difference, at least {LEAST_TOLERANCE:.2f})",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; what is NaN is None."""
        expected, others = self.expected
        found: dict[str, Any] = {
            "preset": self.config.preset,
            "method": self.config.method_name,
            "scenario": self.config.scenario.name,
            "ended": len(self.ended),
            "figures": {
                name: {
                    "mean": _plain(f.mean),
                    "std": _plain(f.std),
                    "half_interval_95": _plain(f.half),
                    "n": f.size,
                }
                for name, f in self.figures.items()
            },
            "runs": [
                {"seed": row.seed, "state": row.state}
                | {name: _plain(value) for name, value in row.values.items()}
                for row in self.rows
            ],
        }
        if expected is not None:
            found["expected"] = {
                **vars(expected),
                "tolerance": expected.tolerance(max(1, len(self.ended))),
                "other_settings": others,
                "is_as_expected": self.is_as_expected,
            }
        return found

    def csv(self) -> str:
        """Return a row for each run, and then mean, deviation and half the interval."""
        figures = self.figures
        buffer = io.StringIO()
        write = csv.writer(buffer, lineterminator="\n").writerow
        write(["seed", "state", *figures])
        for row in self.rows:
            write([row.seed, row.state, *(_cell(row.values.get(n, math.nan)) for n in figures)])
        for title, of in (("mean", "mean"), ("std", "std"), ("half_interval_95", "half")):
            write([title, "", *(_cell(getattr(figure, of)) for figure in figures.values())])
        return buffer.getvalue()


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _cell(value: float) -> object:
    return "" if math.isnan(value) else value


def _figure(values: list[float]) -> Figure:
    known = np.array([value for value in values if not math.isnan(value)])
    found = interval(known)
    std = float(known.std(ddof=1)) if len(known) > 1 else math.nan
    return Figure(found.mean, std, found.half, found.size)


def summarize(
    config: RunConfig, folders: Mapping[int, Path], failures: Mapping[int, str]
) -> SeedsSummary:
    """Return what runs of several seeds have ended with.

    Args:
        config: Their settings, with the first seed.
        folders: Of the runs, by seed.
        failures: Why runs failed, by seed.
    """
    rows = [_row(seed, folder, failures.get(seed)) for seed, folder in folders.items()]
    return SeedsSummary(config, rows)


def _row(seed: int, folder: Path, failure: str | None) -> Row:
    if failure is not None:
        return Row(seed, f"failed: {failure}")
    files = RunFolder(folder)
    if not files.config_path.exists():
        return Row(seed, "not begun")
    try:
        matrix, names = accuracy_files.read_accuracy(files.accuracy_npz)
    except DataError:
        return Row(seed, "begun")
    learned = int(np.flatnonzero(~np.isnan(matrix).all(axis=1)).max(initial=0))
    if learned < len(names):
        return Row(seed, f"{learned} of {len(names)} tasks")
    values = continual.summary(matrix)
    seconds = timing.whole(files.timing_path).seconds or math.nan
    values |= {"ms_a_step": timing.median_ms(files.timing_path), "wall_s": seconds}
    return Row(seed, _ENDED, values)


def write(path: Path, found: SeedsSummary) -> None:
    """Write both files, each atomically.

    Raises:
        ConfigError: A file cannot be written.
    """
    write_text_atomic(path / JSON, json.dumps(found.to_json(), indent=1) + "\n")
    write_text_atomic(path / CSV, found.csv())
