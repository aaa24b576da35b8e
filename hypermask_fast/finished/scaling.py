"""How much faster several processes train than one, as a share of what they could."""

from __future__ import annotations

import json
import math
from pathlib import Path

from hypermask_fast.errors import ConfigError
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.records import timing
from hypermask_fast.records.restoring import settings_of
from hypermask_fast.settings.changes import changed, described
from hypermask_fast.settings.config import RunConfig

_SPEEDS = ("device", "graph", "compile")
"""Settings that change no number and the time of a step."""


class Reference:
    """A run of one process, which the efficiency of several is measured against.

    Args:
        path: The folder of the run.
        config: The settings of the run of several processes.
        processes: How many they are.

    Raises:
        ConfigError: The folder holds no run, or one of other settings or of several processes, or
            one whose steps were not measured.
    """

    def __init__(self, path: Path, config: RunConfig, processes: int) -> None:
        folder = RunFolder.open(path, lock=False)
        before = settings_of(folder)
        changes = changed(before, config)
        old, new = before.options(), config.options()
        changes |= {n: (old[n], new[n]) for n in _SPEEDS if old[n] != new[n]}
        if changes:
            raise ConfigError(
                f"{path} has other settings ({described(changes)}), so its steps are no measure of "
                "this run's; give a run that differs in nothing"
            )
        there = _processes_of(folder)
        if there != 1:
            raise ConfigError(
                f"{path} is a run of {there} processes, expected one of one process; train it "
                "without torchrun"
            )
        self._path, self._processes = path, processes
        self._ms = timing.median_ms(folder.timing_path)
        if math.isnan(self._ms):
            raise ConfigError(
                f"{path} has no time of a step, which takes two rows of the log in a task; give a "
                "lower log_every"
            )

    def line(self, run: Path) -> str:
        """Return the efficiency of a run of several processes, for people.

        That is the time of a step of one process over N times that of N processes, with the same
        batch in all: 100 % where N processes are N times as fast.

        Args:
            run: The folder of the run.
        """
        ms = timing.median_ms(RunFolder(run).timing_path)
        if math.isnan(ms):
            return "scaling efficiency: not measured, for no task has two rows of the log"
        efficiency = 100 * self._ms / (self._processes * ms)
        return (
            f"scaling efficiency: {efficiency:.0f} % ({self._processes} processes: "
            f"{1e3 / ms:.1f} steps/s; one, {self._path}: {1e3 / self._ms:.1f})"
        )


def _processes_of(folder: RunFolder) -> int:
    try:
        found = json.loads(folder.manifest_path.read_bytes())["environment"]
        return int(found.get("processes", 1))
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder.manifest_path} cannot be read ({error}); continue the run, which writes it"
        ) from error
