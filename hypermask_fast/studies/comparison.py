"""Comparisons: runs of several methods with the same seeds in one folder, and what they end with.

The folder of a comparison holds ``compare.toml``, a folder of runs of several seeds for each
method, as :mod:`hypermask_fast.studies.seeds` makes it, and the files of `comparison_files`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypermask_fast.console.terminal import is_quiet, say
from hypermask_fast.errors import ConfigError, Stopped, shown
from hypermask_fast.fields import check_value
from hypermask_fast.files.atomic import TEMPORARY, write_text_atomic
from hypermask_fast.files.folder import FolderLock, RunFolder, make_folder
from hypermask_fast.inference.evaluation import evaluate
from hypermask_fast.inference.registry import make_score
from hypermask_fast.metrics import continual
from hypermask_fast.planning.growth import (
    bytes_a_task,
    stored_bytes,
    target_parameters,
    trained_beside,
    trained_parameters,
)
from hypermask_fast.planning.plan import plan
from hypermask_fast.records import timing
from hypermask_fast.records.restoring import changes_since, settings_of
from hypermask_fast.runs import run
from hypermask_fast.runs.run import RunResult
from hypermask_fast.settings.changes import described
from hypermask_fast.settings.comparison import ComparisonConfig
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.studies import comparison_files, seeds
from hypermask_fast.studies.apart import failure_text
from hypermask_fast.studies.comparison_result import TARGET, X_TARGET, Comparison, RunFigures

_CONFIG = "compare.toml"
_LOCK = ".lock"


def holds_comparison(path: Path) -> bool:
    """Return whether ``path`` is the folder of a comparison."""
    return (path / _CONFIG).is_file()


def compare(
    config: ComparisonConfig,
    out: str | Path,
    *,
    show_progress: bool = True,
    memory: int | None = None,
    jobs: int = 1,
) -> Comparison:
    """Train each method with each seed, and write the tables and figures of what they reach.

    Runs that are in the folder already are taken over: those that ended are read, those that
    stopped go on, so that the same call continues a comparison that was stopped. They may have been
    made by ``hypermask train --seeds N --out OUT/METHOD``. The tables are of the methods that are
    given now. A run whose training fails is named in them, and the others are made nevertheless;
    the next call tries it again.

    For example ``compare(ComparisonConfig.from_preset("split-digits", ["hypermask", "hnet"]),
    "runs/c").figure("hnet", "acc").mean``.

    Args:
        config: The settings.
        out: The folder.
        show_progress: Print progress to standard error. Default True.
        memory: Bytes that the device has for a run. Default: what it has left.
        jobs: Runs of a method at once, as in :func:`hypermask_fast.studies.seeds.train`. Default 1.

    Raises:
        ConfigError: A setting is wrong, does not fit a method, or is not that of the runs there
            are, which are then left as they are; or the folder is in use or not of a comparison.
        CheckpointError, DataError: As in :func:`hypermask_fast.runs.run.resume`.
        Stopped: SIGINT, SIGTERM or SIGHUP came in a run, which saved a checkpoint.
    """
    if not isinstance(config, ComparisonConfig):
        raise TypeError(
            f"config is {shown(config)}; give a ComparisonConfig, as ComparisonConfig.from_preset()"
        )
    folder = Path(check_value("out", str, out, path=True))
    check_value("show_progress", bool, show_progress)
    check_value("memory", int, memory, None, low=0)
    check_value("jobs", int, jobs, low=1)
    _require_fitting(config, folder)
    sizes = {method: _sizes(config, method, memory) for method in config.runs}
    with _opened(config, folder):
        _require_fitting(config, folder)  # another process may have come first
        write_text_atomic(folder / _CONFIG, config.to_toml())
        made = _Maker(config, folder, sizes, show_progress, memory, jobs).run()
        comparison_files.write(folder, made)
    return made


def resume(path: str | Path, **options: Any) -> Comparison:
    """Continue the comparison in a folder, with the settings that are kept there.

    Args:
        path: The folder.
        **options: As in :func:`compare`.

    Raises:
        ConfigError: It holds no comparison, or its settings cannot be read.
        ConfigError, CheckpointError, DataError, Stopped: As in :func:`compare`.
    """
    folder = Path(check_value("path", str, path, path=True))
    return compare(ComparisonConfig.from_toml(folder / _CONFIG), folder, **options)


@contextmanager
def _opened(config: ComparisonConfig, folder: Path) -> Iterator[None]:
    """Make the folder and lock it; where no run could begin, leave nothing of it."""
    is_new = make_folder(folder)
    with FolderLock(folder):
        try:
            yield
        finally:
            if is_new and not any((folder / method).exists() for method in config.runs):
                with contextlib.suppress(OSError):  # somebody else has put a file there
                    (folder / _CONFIG).unlink(missing_ok=True)
                    (folder / _LOCK).unlink()
                    folder.rmdir()


def _require_fitting(config: ComparisonConfig, folder: Path) -> None:
    """Raise unless a folder is new, or holds a comparison or runs with these settings."""
    try:
        names = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise ConfigError(
            f"cannot use {folder} for a comparison: {error.strerror}; choose another --out"
        ) from error
    if not holds_comparison(folder):
        known = {_LOCK, *config.runs}
        foreign = [n for n in names if n not in known and not n.startswith(TEMPORARY)]
        if foreign:
            raise ConfigError(
                f"{folder} is not the folder of a comparison, it holds {foreign[0]!r}, expected "
                "none or an empty one, or runs of the methods; choose another --out"
            )
    for method in config.runs:
        _require_runs_of(config, method, folder / method)


def _require_runs_of(config: ComparisonConfig, method: str, path: Path) -> None:
    """Raise unless a method's folder is new, or its runs have the settings of the comparison."""
    if not seeds.holds_seeds(path):
        seeds.require_vacant_seeds(path)
        return
    first, count = seeds.read(path)
    _require_same(config, method, path, first)
    here, there = (config.first.run.seed, config.seeds), (first.run.seed, count)
    if here != there:
        raise ConfigError(
            f"{path} holds {there[1]} runs from seed {there[0]} on, expected {here[1]} from seed "
            f"{here[0]} on; give --seeds {there[1]} --seed {there[0]}, or choose another --out"
        )
    for seed in config.all_seeds:
        one = seeds.folder_of(path, seed)
        if one.config_path.exists():
            found = settings_of(one)
            _require_same(config, method, one.path, found)
            if found.run.seed != seed:
                raise ConfigError(
                    f"{one.path} holds a run with seed={found.run.seed}; put back its settings, or "
                    "choose another --out"
                )
            changes_since(one, found, allowed=False)


def _require_same(config: ComparisonConfig, method: str, path: Path, found: RunConfig) -> None:
    if found.method_name != method:
        raise ConfigError(
            f"{path} holds runs of {found.method_name}, expected {method}; choose another --out"
        )
    changes = config.differences(method, found)
    if changes:
        raise ConfigError(
            f"{path} holds runs with other settings ({described(changes)}); give those, or choose "
            "another --out"
        )


def _sizes(config: ComparisonConfig, method: str, memory: int | None) -> dict[str, float]:
    """Return what the settings of a method's runs tell already; refuse those that do not fit."""
    settings = config.runs[method]
    try:
        found = plan(settings, memory=memory)
        found.require()
        found.require_resumable()
        sizes: dict[str, float] = {
            "parameters": trained_parameters(settings),
            "mb_stored": stored_bytes(settings) / 1e6,
            "mb_a_task": bytes_a_task(settings) / 1e6,
        }
        if config.budget_params is not None:
            target = target_parameters(settings)
            sizes |= {TARGET: target, X_TARGET: trained_beside(settings) / target}
        return sizes
    except ConfigError as error:
        raise ConfigError(f"of {method}: {error}") from error


class _Maker:
    """Makes the runs of a comparison one after the other, and measures them."""

    def __init__(
        self,
        config: ComparisonConfig,
        folder: Path,
        sizes: dict[str, dict[str, float]],
        show_progress: bool,
        memory: int | None,
        jobs: int,
    ) -> None:
        self._config, self._folder, self._sizes = config, folder, sizes
        self._show_progress, self._memory, self._jobs = show_progress, memory, jobs
        self._runs: list[RunFigures] = []
        self._names: list[str] = []

    def run(self) -> Comparison:
        """Return what all runs ended with."""
        for method in self._config.runs:
            try:
                self._run_method(method)
            except Stopped as error:
                raise Stopped(error.exit_status - 128, self._folder) from error
        return Comparison(self._config, self._names, self._runs)

    def _say(self, text: str) -> None:
        if self._show_progress and not is_quiet():
            say(text)

    def _run_method(self, method: str) -> None:
        def begins(seed: int) -> None:
            count = len(self._config.runs) * self._config.seeds
            self._say(f"{method}, seed {seed}: run {len(self._runs) + 1} of {count}")

        def failed(seed: int, error: Exception) -> None:
            reason = failure_text(error)
            self._runs.append(RunFigures(method, seed, failure=reason))
            self._say(f"failed: {reason}")

        for result in self._results(method, begins, failed):
            self._runs.append(self._measured(method, result))

    def _results(
        self, method: str, begins: Callable[[int], None], failed: seeds.Failed
    ) -> Iterator[RunResult]:
        path = self._folder / method
        how: dict[str, Any] = {
            "show_progress": self._show_progress,
            "memory": self._memory,
            "jobs": self._jobs,
            "begins": begins,
            "failed": failed,
        }
        if seeds.holds_seeds(path):
            return seeds.resume(path, **how)
        return seeds.train(self._config.runs[method], path, self._config.seeds, **how)

    def _measured(self, method: str, result: RunResult) -> RunFigures:
        matrix = result.accuracy
        self._names = self._names or result.task_names
        values = {
            "acc": continual.acc_final(matrix),
            "bwt": continual.bwt_gem(matrix),
            "forgetting": continual.forgetting_max(matrix),
            **self._sizes[method],
            "ms_a_step": timing.median_ms(RunFolder(result.folder).timing_path),
        }
        inferred, notes = self._inferred(method, result.folder)
        values = {name: value for name, value in {**values, **inferred}.items() if value == value}
        self._say(f"ACC {values['acc']:.2f} %")
        seed = int(result.folder.name.rpartition("-")[2])
        return RunFigures(method, seed, values, matrix[-1].tolist(), notes=notes)

    def _inferred(self, method: str, folder: Path) -> tuple[dict[str, float], list[str]]:
        """Return the accuracies of inferred tasks, and why there are none by some scores."""
        values: dict[str, float] = {}
        notes: list[str] = []
        if not self._config.infer:
            return values, notes
        settings = self._config.runs[method]
        trainer = run.load(folder, device=settings.run.device, data_dir=settings.scenario.data_dir)
        for name in self._config.infer:
            try:
                report = evaluate(
                    trainer.learner,
                    trainer.tasks,
                    make_score(name),
                    calibrated=self._config.calibrate,
                    calibrate_on=self._config.calibrate_on,
                    batch_size=trainer.settings.eval_batch_size,
                )
            except (ConfigError, ValueError) as error:
                notes.append(f"nothing inferred by {name} ({' '.join(str(error).split())})")
                continue
            shares = report.mean(after=report.after is not None)
            values |= {f"task_{name}": shares.task, f"class_{name}": shares.class_}
        return values, notes
