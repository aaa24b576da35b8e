"""Searches over settings: trials, each of runs with several seeds, in one folder.

The folder of a search holds ``sweep.json`` with its settings, the study's journal, the runs in
``trial-N/seed-S``, ordinary run folders, and the files of `sweep_files`. Trials are compared by the
mean validation accuracy of the tasks that their runs have learned, and never by test data.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypermask_fast.console.terminal import is_quiet
from hypermask_fast.errors import ConfigError, DataError, Stopped
from hypermask_fast.files.atomic import write_text_atomic
from hypermask_fast.files.folder import FolderLock, make_folder
from hypermask_fast.records import validated
from hypermask_fast.settings.build import make_scenario
from hypermask_fast.settings.sweep import SweepConfig
from hypermask_fast.studies import sweep_files
from hypermask_fast.studies.apart import (
    Job,
    Make,
    Pruned,
    Unit,
    at_once,
    failure_text,
    in_turn,
    stopping,
)
from hypermask_fast.studies.jobs import Share, share
from hypermask_fast.studies.seeds import say_unless_quiet
from hypermask_fast.studies.sweep_files import SweepResult
from hypermask_fast.studies.sweep_study import (
    ENDED,
    FAILED,
    PRUNED,
    RUNNING,
    Study,
    Trial,
    is_behind,
)

_FILE = "sweep.json"


def sweep(
    config: SweepConfig,
    out: Path,
    *,
    jobs: int | None = 1,
    memory: int | None = None,
    show_progress: bool = True,
    say: Callable[[str], None] | None = None,
    study: Callable[[Path, SweepConfig], Study] | None = None,
) -> SweepResult:
    """Try settings, and write the table of what they reach.

    The same call, or :func:`resume`, goes on with a search that was stopped: trials that ended are
    kept, those that were running go on.

    Args:
        config: What to try.
        out: The folder.
        jobs: Trials at once, each in a process of its own; None: as
            :func:`hypermask_fast.studies.jobs.share` says. Which trials are pruned depends on those
            that ended before, and so on ``jobs``. Default 1, in this process.
        memory: Bytes that the device has for all that run at once. Default: what it has left.
        show_progress: Print progress. Default True.
        say: Shows a line; default: standard error.
        study: Makes what chooses the trials; default: Optuna's.

    Raises:
        ConfigError: The folder holds another search or other files, Optuna is not installed, or a
            task has no validation data; or as :func:`hypermask_fast.runs.run.train`.
        DataError: A data file is missing or damaged.
        Stopped: A signal came; checkpoints were saved.
    """
    if config.base.scenario.is_own:
        _require_validation(config)
    _require_fitting(config, out)
    is_new = make_folder(out)
    with FolderLock(out):
        try:
            threads = _require_fitting(config, out)  # another process may have come first
            made = (study or open_study)(out, config)
            part = share(config.base, config.count, jobs, memory)
            record = {**config.to_json(), "threads": threads or part.threads}
            write_text_atomic(out / _FILE, json.dumps(record, indent=1) + "\n")
        except BaseException:
            if is_new:
                with contextlib.suppress(OSError):
                    (out / ".lock").unlink()
                    out.rmdir()
            raise
        part = Share(part.jobs, record["threads"], part.memory)
        shows = say_unless_quiet() if say is None else say
        show_progress = show_progress and not is_quiet()
        return _Sweep(config, out, made, part, show_progress, shows).run()


def holds_sweep(path: Path) -> bool:
    """Return whether ``path`` is the folder of a search."""
    return (path / _FILE).is_file()


def resume(path: Path, **options: Any) -> SweepResult:
    """Go on with the search in a folder.

    Args:
        path: The folder.
        **options: As in :func:`sweep`.

    Raises:
        ConfigError: Its settings were altered.
        ConfigError, DataError, Stopped: As in :func:`sweep`.
    """
    try:
        config = SweepConfig.from_json(json.loads((path / _FILE).read_bytes()))
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise _altered(path, error) from error
    return sweep(config, path, **options)


def _altered(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path / _FILE} was altered ({' '.join(str(error).split())}); restore it, or choose "
        "another --out"
    )


def _require_validation(config: SweepConfig) -> None:
    for task in make_scenario(config.base):
        if not len(task.validation):
            raise ConfigError(
                f"the task {task.name!r} of {config.base.scenario.name} has no validation data, by "
                "which a search chooses, and never by test data; give make_task(validation=)"
            )


def _require_fitting(config: SweepConfig, path: Path) -> int | None:
    """Raise unless a folder is new or holds this search; return the threads of its runs."""
    try:
        names = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    except OSError as error:
        raise ConfigError(
            f"cannot use {path} for a search: {error.strerror}; choose another --out"
        ) from error
    if _FILE not in names:
        foreign = [name for name in names if not name.startswith(".")]
        if foreign:
            raise ConfigError(
                f"{path} is not the folder of a search, it holds {foreign[0]!r}, expected none or "
                "an empty one; choose another --out"
            )
        return None
    try:
        found = json.loads((path / _FILE).read_bytes())
        threads = int(found["threads"])
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise _altered(path, error) from error
    # More trials of a sampler may be wanted later.
    wanted = json.loads(json.dumps(config.to_json()))
    others = [name for name in wanted if name != "trials" and found.get(name) != wanted[name]]
    if others:
        raise ConfigError(
            f"{path} holds a search with another {', '.join(others)}; give the same, or choose "
            "another --out"
        )
    return threads


def open_study(path: Path, config: SweepConfig) -> Study:
    """Return Optuna's study in the folder of a search, a new one where there is none.

    Raises:
        ConfigError: Optuna is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "a search needs Optuna, which is not installed; run `pip install "
            "'hypermask_fast[sweep]'`, or `pip install optuna`"
        ) from error
    from hypermask_fast.studies.sweep_optuna import OptunaStudy

    return OptunaStudy(path, config)


class _Sweep:
    """Makes the trials of a search."""

    def __init__(
        self,
        config: SweepConfig,
        path: Path,
        study: Study,
        part: Share,
        show_progress: bool,
        say: Callable[[str], None],
    ) -> None:
        self._config, self._path, self._study, self._part = config, path, study, part
        self._show_progress, self._say = show_progress, say
        self._lock = threading.Lock()
        self._finals: dict[int, list[float]] = {}

    def run(self) -> SweepResult:
        """Return what all trials reached."""
        made: Any
        if self._part.jobs == 1:
            made = in_turn(self._units(), goes=self._goes)
        else:
            made = at_once(self._units(), self._part.jobs, say=self._say, goes=self._goes)
        try:
            with contextlib.closing(made), stopping(self._path):
                for _ in made:
                    pass
        finally:
            with self._lock:
                result = self._result()
            sweep_files.write(self._path, result)
        return result

    def _result(self) -> SweepResult:
        trials = list(self._study.trials())
        seeds = {trial.number: self._of_seeds(trial) for trial in trials}
        return SweepResult(self._config, trials, seeds)

    def _of_seeds(self, trial: Trial) -> list[float]:
        """Return the last mean validation accuracy of each run of a trial that ended."""
        folders = (self._folder(trial.number, seed) for seed in self._seeds())
        found = [validated.means(folder) for folder in folders]
        return [means[-1] for means in found if means] if trial.state == ENDED else []

    def _seeds(self) -> range:
        first = self._config.base.run.seed
        return range(first, first + self._config.seeds)

    def _folder(self, number: int, seed: int) -> Path:
        return self._path / f"trial-{number}" / f"seed-{seed}"

    def _units(self) -> Iterator[Unit[None]]:
        """Yield the trials that are left, each chosen when it can begin."""
        with self._lock:
            running = [trial for trial in self._study.trials() if trial.state == RUNNING]
        for trial in running:
            yield self._unit(trial)
        while True:
            with self._lock:
                if len(self._study.trials()) >= self._config.count:
                    return
                trial = self._study.ask()
            yield self._unit(trial)

    def _unit(self, trial: Trial) -> Unit[None]:
        return lambda make: self._make(trial, make)

    def _make(self, trial: Trial, make: Make) -> None:
        """Make the runs of a trial, and tell the study how it ended."""
        named = ", ".join(f"{name}={value}" for name, value in trial.values.items())
        with self._lock:
            same = [
                other
                for other in self._study.trials()
                if other.state == ENDED and other.values == trial.values
            ]
            if same:
                # The same seeds would give the same.
                note = f"as trial {same[0].number}"
                self._study.tell(trial.number, ENDED, same[0].value, note)
                return
        self._report(f"trial {trial.number}: {named}")
        state, value, note = self._ended(trial, make)
        with self._lock:
            self._study.tell(trial.number, state, value, note)
        reached = "" if value is None else f", validation accuracy {value:.2f} %"
        self._report(f"trial {trial.number}: {state}{reached}{note and f' ({note})'}")

    def _report(self, text: str) -> None:
        if self._show_progress:
            self._say(text)

    def _ended(self, trial: Trial, make: Make) -> tuple[str, float | None, str]:
        """Return how a trial ended: its state, its value and why it failed."""
        finals = self._finals[trial.number] = []
        try:
            config = self._config.settings(trial.values)
        except ConfigError as error:
            return FAILED, None, str(error)
        for seed in self._seeds():
            folder = self._folder(trial.number, seed)
            job = Job(
                name=f"trial {trial.number}, seed {seed}",
                config=config.replace(seed=seed),
                folder=folder,
                threads=self._part.threads,
                memory=self._part.memory,
                show_progress=self._show_progress,
                validates=True,
            )
            end = make(job).end
            if isinstance(end, Pruned):
                with self._lock:
                    reported = self._study.trials()[trial.number].reported
                return PRUNED, reported[max(reported)], ""
            if isinstance(end, Stopped):
                raise Stopped(end.exit_status - 128, self._path) from end
            if isinstance(end, Exception):
                if isinstance(end, DataError):  # of all runs
                    raise end
                return FAILED, None, failure_text(end)
            finals.append(validated.means(folder)[-1])
        return ENDED, statistics.fmean(finals), ""

    def _goes(self, job: Job, learned: int) -> bool:
        """Tell the study what a run has reached, and return whether its trial goes on."""
        number = int(job.folder.parent.name.rpartition("-")[2])
        # A task of a later seed is a later step.
        finals = self._finals[number]
        means = validated.means(job.folder)
        steps = len(finals) * (self._config.base.tasks or len(means)) + learned - 1
        with self._lock:
            self._study.report(number, steps, statistics.fmean([*finals, means[learned - 1]]))
            trials = self._study.trials()
            return not is_behind(trials[number], trials)
