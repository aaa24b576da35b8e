"""Runs: a configuration, a folder, checkpoints that can be resumed, results."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hypermask_fast.console.stages import stage
from hypermask_fast.errors import ConfigError, PlanError
from hypermask_fast.fields import check_value
from hypermask_fast.files import checkpoint
from hypermask_fast.files.fit import in_a_sentence
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.planning.plan import check_config, plan
from hypermask_fast.records import accuracy_files, page
from hypermask_fast.records.metrics_log import MetricsLog
from hypermask_fast.records.restoring import changes_since, settings_of
from hypermask_fast.records.sinks import Sinks, require
from hypermask_fast.runs.configured import ConfiguredSession
from hypermask_fast.runs.devices import device_named
from hypermask_fast.runs.signals import caught_signal
from hypermask_fast.runs.together import (
    Efficiency,
    NoLog,
    agreed,
    memory_of_each,
    resumable,
    run_folder,
    sharing_head,
    writes,
)
from hypermask_fast.scenarios import Scenario
from hypermask_fast.settings.build import make_learner, make_scenario, make_trainer
from hypermask_fast.settings.changes import Changes
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.busy import showing_stages
from hypermask_fast.training.checks import check_trainable
from hypermask_fast.training.distributed.launched import local_world_size, world_size
from hypermask_fast.training.distributed.processes import joined
from hypermask_fast.training.progress import Progress
from hypermask_fast.training.trainer import Trainer

AfterTask = Callable[[Trainer], None]


@dataclass(frozen=True)
class RunResult:
    """What a run ends with.

    Attributes:
        folder: Of its files.
        accuracy: The accuracy matrix in percent.
        task_names: Of its columns.
        changes: What was changed on the way: for each time the step and, by name, the values before
            and after of ``settings`` or of the ``environment``.
    """

    folder: Path
    accuracy: npt.NDArray[np.float64]
    task_names: list[str]
    changes: list[dict[str, Any]]


def _examples(scenario: Scenario) -> Iterator[Tensor]:
    """Yield two inputs of each shape that the tasks' evaluation has."""
    seen: set[tuple[int, ...]] = set()
    for task in scenario:
        for name in ("test", "validation"):
            split = task.split(name)
            if len(split) and split.source.shape not in seen:
                seen.add(split.source.shape)
                yield next(task.evaluation_batches(name, 2))[0]


def build(config: RunConfig, scenario: Scenario | None = None) -> tuple[Scenario, Trainer]:
    """Return the scenario and a trainer with a new learner, all tasks added, on the device.

    Args:
        config: The settings.
        scenario: That of the settings; default: it is made.

    Raises:
        ConfigError: A setting does not fit.
        DataError: A data file is missing or damaged.
    """
    device = device_named(config.run.device)
    with stage("reading the data"):
        scenario = (make_scenario(config) if scenario is None else scenario).to(device)
    if config.scenario.is_own:
        config = config.replace(tasks=len(scenario))
        for task in scenario:
            check_trainable(task, config.training)
    torch.manual_seed(config.run.seed)
    sizes = scenario.input_shape, scenario.num_classes
    with stage("building the learner"), sharing_head(config):
        learner = make_learner(config, *sizes, _examples(scenario)).to(device)
        trainer = make_trainer(config, learner)
        for task in scenario:
            trainer.add(task)
    return scenario, trainer


def _built(
    config: RunConfig, memory: int | None, *, resuming: bool = False
) -> tuple[Scenario, Trainer]:
    """Return what :func:`build` does, after a check that the run fits.

    Raises:
        ConfigError: It does not fit, or as :func:`build`.
        DataError: A data file is missing or damaged.
    """
    check_config(config)
    device = device_named(config.run.device)  # before a plan for one that is not there
    require(config.run.log)
    processes = joined()
    if config.run.shard_head and processes is None and world_size() > 1:
        raise ConfigError(
            f"shard_head=True, and the {world_size()} processes that torchrun started do not train "
            "together; call it inside `with hmf.data_parallel():`, or give shard_head=False"
        )
    world = 1 if processes is None else processes.world
    scenario = None
    if memory is None and (config.scenario.is_own or local_world_size() > 1):
        # Before the data are there, which the plan counts.
        memory = memory_of_each(str(device))
    if config.scenario.is_own:
        with stage("reading the data"):
            scenario = make_scenario(config)
    try:
        with stage("planning the memory"):
            found = plan(config, memory=memory, scenario=scenario, processes=world)
        found.require(resuming=resuming)
        if not resuming:
            found.require_resumable()
    except PlanError as error:
        made = build(config, scenario)  # which may tell more
        warnings.warn(f"the run starts without a plan: {error}", RuntimeWarning, stacklevel=3)
        return made
    return build(config, scenario)


def _run(
    config: RunConfig,
    folder: RunFolder,
    scenario: Scenario,
    trainer: Trainer,
    show_progress: bool,
    changes: Changes,
    after_task: AfterTask | None,
) -> RunResult:
    with ExitStack() as stack:
        stack.enter_context(resumable(folder.path))
        stop = agreed(stack.enter_context(caught_signal()))
        session = ConfiguredSession(config, folder, scenario, trainer, stop)
        session.after_task = after_task
        position = session.restore(changes)
        log = MetricsLog(folder.metrics_path, position) if writes() else NoLog()
        metrics = stack.enter_context(log)
        progress = Progress(
            sum(session.steps),
            task_names=session.names,
            task_steps=session.steps,
            initial=session.done,
            accuracy=session.mean_accuracy,
            enabled=show_progress and writes(),
        )
        stack.enter_context(progress)
        begun, efficiency = session.done, Efficiency()
        where = config.run.log if writes() else ""
        sinks = Sinks(where, folder.path, config.options(), begun)
        session.sinks = stack.enter_context(sinks)
        session.run(metrics, progress)
        found = efficiency.line(session.done - begun)
        if found is not None:
            progress.message(found)
    session.write_confusions()
    if writes():
        _write_end(session, anew=session.done > begun)
    return RunResult(folder.path, trainer.accuracy, session.names, session.changes)


def _write_end(session: ConfiguredSession, *, anew: bool) -> None:
    """Write what tells how a run ended; the report stays where there is one, unless ``anew``."""
    folder, trainer = session.folder, session.trainer
    session.write_results()
    accuracy_files.write_heatmap(folder.accuracy_svg, trainer.accuracy, session.names)
    if anew or not folder.report_path.exists():
        page.write_page(folder.path, session.config)


def train(
    config: RunConfig,
    out: str | Path,
    *,
    show_progress: bool = True,
    memory: int | None = None,
    after_task: AfterTask | None = None,
) -> RunResult:
    """Train all tasks of a configuration in a new folder.

    Args:
        config: The settings; the resolved ones are written to ``config.toml``.
        out: The folder of the run; it must not hold one already.
        show_progress: Print progress to standard error. Default True.
        memory: Bytes that the device has for the run. Default: what it has left.
        after_task: Called with the trainer after each task, before the checkpoint that ends it.

    Raises:
        ConfigError: A setting is wrong, the folder is in use, or the memory does not suffice.
        DataError: A data file is missing or damaged.
        TrainingError: The loss is not finite; the last checkpoint stays.
        Stopped: SIGINT, SIGTERM or SIGHUP came; a checkpoint was saved.
    """
    check_value("out", str, out, path=True)
    # The folder comes second: a run that cannot start leaves none behind.
    with showing_stages(show_progress and writes()):
        scenario, trainer = _built(config, memory)
    make = partial(RunFolder.create, out, config.to_toml())
    with run_folder(out, make, anew=True) as folder:
        return _run(config, folder, scenario, trainer, show_progress, {}, after_task)


def resume(
    path: str | Path,
    *,
    show_progress: bool = True,
    memory: int | None = None,
    allow_changes: bool = False,
    after_task: AfterTask | None = None,
) -> RunResult:
    """Continue the run in the folder ``path`` from its newest checkpoint.

    Bit-identically in the environment that the checkpoint was made in; in another one there is a
    warning, which names what is not the same. Without a checkpoint it begins anew, with a warning.

    Args:
        path: The folder.
        show_progress, memory, after_task: As in :func:`train`.
        allow_changes: Go on with settings in ``config.toml`` that are not those of the checkpoint,
            and record them. Default False; those in `hypermask_fast.settings.changes.FREE` may
            always change.

    Raises:
        CheckpointError: The newest checkpoint is damaged, is missing, or does not fit, or settings
            were changed. The folder is then left as it is.
        ConfigError, DataError, TrainingError, Stopped: As in :func:`train`.
    """
    check_value("path", str, path, path=True)
    with run_folder(path, partial(RunFolder.open, path)) as folder:
        config = settings_of(folder)
        changes = changes_since(folder, config, allowed=allow_changes)
        if writes() and checkpoint.latest(folder.checkpoints) is None:
            warnings.warn(
                f"{path} was stopped before its first checkpoint, so it begins anew",
                RuntimeWarning,
                stacklevel=2,
            )
        with showing_stages(show_progress and writes()):
            made = _built(config, memory, resuming=True)
        return _run(config, folder, *made, show_progress, changes, after_task)


def load(path: str | Path, *, device: str | None = None, data_dir: str | None = None) -> Trainer:
    """Return the trainer of a run with its learner, as the newest checkpoint has them.

    The global random state stays the caller's.

    Args:
        path: The folder of the run.
        device, data_dir: In place of those in its settings.

    Raises:
        CheckpointError: There is no checkpoint, it is damaged, or settings were changed since.
        ConfigError, DataError: As in :func:`train`.
    """
    check_value("path", str, path, path=True)
    folder = RunFolder.open(path, lock=False)
    config = settings_of(folder)
    changes_since(folder, config, allowed=False)
    changes = {"device": device, "data_dir": data_dir, "shard_head": False}
    config = config.replace(**{k: v for k, v in changes.items() if v is not None})
    saved = checkpoint.load_latest(folder.checkpoints)
    with torch.random.fork_rng():
        _, trainer = build(config)
        with in_a_sentence(folder.checkpoints):
            trainer.load_state(saved.tensors, saved.state["trainer"])
    return trainer
