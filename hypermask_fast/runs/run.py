"""Runs: a configuration, a folder, checkpoints that can be resumed, results."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hypermask_fast.errors import CheckpointError, ConfigError, Stopped
from hypermask_fast.planning.plan import plan
from hypermask_fast.runs import checkpoint, report
from hypermask_fast.runs.folder import RunFolder
from hypermask_fast.runs.metrics_log import MetricsLog
from hypermask_fast.scenarios import Scenario, make_scenario
from hypermask_fast.settings.build import make_learner
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.progress import Progress
from hypermask_fast.training.trainer import Trainer


@dataclass(frozen=True)
class RunResult:
    """What a run ends with: its folder, the accuracy matrix in percent, and the tasks' names."""

    folder: Path
    accuracy: npt.NDArray[np.float64]
    task_names: list[str]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={name!r} cannot be used ({reason}); use device='cpu'") from error


def build(config: RunConfig) -> tuple[Scenario, Trainer]:
    """Return the scenario and a trainer with a new learner, all tasks added, on the device.

    Raises:
        ConfigError: A setting does not fit.
        DataError: A data file is missing or damaged.
    """
    device = _device(config.device)
    scenario = make_scenario(
        config.scenario,
        config.data_dir,
        tasks=config.tasks,
        validation=config.validation,
        augment=config.augment,
        seed=config.seed,
    ).to(device)
    if len(scenario) > config.capacity:
        raise ConfigError(
            f"capacity={config.capacity} is less than the {len(scenario)} tasks; raise the capacity"
        )
    torch.manual_seed(config.seed)
    learner = make_learner(config, scenario.input_shape, scenario.num_classes).to(device)
    trainer = Trainer(
        learner,
        lr=config.lr,
        weight_decay=config.weight_decay,
        moments=config.moments,
        batch_size=config.batch_size,
        steps=config.steps,
        epochs=config.epochs,
        ramp=config.ramp,
        schedule=config.schedule,
        selection=config.selection,
        check_every=config.check_every,
        seed=config.seed,
        eval_batch_size=config.eval_batch_size,
        progress=False,
        graph="auto" if config.graph else False,
        compile="auto" if config.compile else False,
    )
    for task in scenario:
        trainer.add(task)
    return scenario, trainer


@contextmanager
def _signals() -> Iterator[Callable[[], int | None]]:
    """Catch the first SIGINT or SIGTERM; a second one acts as usual."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def catch(signum: int, _: object) -> None:
        caught.append(signum)
        restore()

    for signum in before:
        signal.signal(signum, catch)
    try:
        yield lambda: caught[0] if caught else None
    finally:
        restore()


class _Session:
    """A run in progress: its log, progress and checkpoints."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        scenario: Scenario,
        trainer: Trainer,
        stop: Callable[[], int | None],
    ) -> None:
        self.config, self.folder, self.scenario, self.trainer = config, folder, scenario, trainer
        self.stop = stop
        self.names = [task.name for task in scenario]
        self.steps = [trainer.steps_of(task) for task in scenario]
        self._saved_at = time.monotonic()

    def restore(self, metrics: MetricsLog) -> None:
        """Continue from the newest checkpoint, or from the start where there is none."""
        if checkpoint.latest(self.folder.checkpoints) is None:
            metrics.truncate(0)
            return
        saved = checkpoint.load_latest(self.folder.checkpoints)
        state = saved.state
        names = [record["name"] for record in state["trainer"]["task"]["tasks"]]
        if names != self.names:
            raise CheckpointError(
                f"the checkpoint was made with the tasks {names} and config.toml gives "
                f"{self.names}; put back the settings of the run"
            )
        self.trainer.load_state(saved.tensors, state["trainer"])
        metrics.truncate(state["metrics_position"])

    @property
    def done(self) -> int:
        """Steps taken in all tasks."""
        return sum(self.steps[: self.trainer.tasks_done]) + self.trainer.step

    def run(self, metrics: MetricsLog, progress: Progress) -> None:
        """Train the tasks that are left."""
        trainer, config = self.trainer, self.config

        def after_step(_: Trainer) -> None:
            losses = trainer.losses
            assert losses is not None
            index = trainer.tasks_done
            if trainer.step % config.log_every == 0 or trainer.step == self.steps[index]:
                metrics.write(
                    {
                        "task": index,
                        "step": trainer.step,
                        "loss": float(losses.total),
                        "task_loss": float(losses.task),
                        "output_reg": float(losses.output_reg),
                        "weight_reg": float(losses.weight_reg),
                    }
                )
            read = trainer.losses_read
            shown = {"loss": read["total"], "task": read["task"]} if read else None
            progress.update(trainer.step, index, shown)
            signum = self.stop()
            due = time.monotonic() - self._saved_at >= config.checkpoint_every
            if signum is not None or due:
                self.save(metrics)
            if signum is not None:
                raise Stopped(signum, self.folder.path)

        trainer.hooks.append(after_step)
        for task in self.scenario.tasks[trainer.tasks_done :]:
            row = trainer.fit(task)
            index = trainer.tasks_done - 1
            metrics.write(
                {
                    "after_task": index,
                    "accuracy": [None if np.isnan(a) else round(float(a), 4) for a in row],
                }
            )
            report.write_accuracy(self.folder.path, trainer.accuracy, self.names)
            self.save(metrics)
            seen = row[: index + 1]
            progress.message(
                f"learned {task.name}: {row[index]:.2f} %, mean of the {index + 1} learned "
                f"{np.nanmean(seen):.2f} %"
            )

    def save(self, metrics: MetricsLog) -> None:
        """Write a checkpoint."""
        tensors, state = self.trainer.state()
        position = metrics.position()
        checkpoint.save(
            self.folder.checkpoints,
            self.done,
            tensors,
            {"trainer": state, "metrics_position": position},
        )
        self._saved_at = time.monotonic()


def _run(
    config: RunConfig,
    folder: RunFolder,
    scenario: Scenario,
    trainer: Trainer,
    show_progress: bool,
) -> RunResult:
    with ExitStack() as stack:
        stop = stack.enter_context(_signals())
        session = _Session(config, folder, scenario, trainer, stop)
        metrics = stack.enter_context(MetricsLog(folder.metrics_path))
        session.restore(metrics)
        progress = Progress(
            sum(session.steps),
            task_names=session.names,
            task_steps=session.steps,
            initial=session.done,
            enabled=show_progress,
        )
        stack.enter_context(progress)
        session.run(metrics, progress)
    report.write_accuracy(folder.path, trainer.accuracy, session.names)
    report.write_heatmap(folder.accuracy_png, trainer.accuracy, session.names)
    return RunResult(folder.path, trainer.accuracy, session.names)


def train(
    config: RunConfig, out: str | Path, *, show_progress: bool = True, memory: int | None = None
) -> RunResult:
    """Train all tasks of a configuration in a new folder.

    Args:
        config: The settings; the resolved ones are written to ``config.toml``.
        out: The folder of the run; it must not hold one already.
        show_progress: Print progress to standard error. Default True.
        memory: Bytes that the device has for the run. Default: what it has left.

    Raises:
        ConfigError: A setting is wrong, the folder is in use, or the memory does not suffice.
        DataError: A data file is missing or damaged.
        TrainingError: The loss is not finite; the last checkpoint stays.
        Stopped: SIGINT or SIGTERM came; a checkpoint was saved.
    """
    plan(config, memory=memory).require()
    # The folder comes second: a run that cannot start leaves none behind.
    scenario, trainer = build(config)
    with RunFolder.create(out, config.to_toml()) as folder:
        return _run(config, folder, scenario, trainer, show_progress)


def resume(path: str | Path, *, show_progress: bool = True, memory: int | None = None) -> RunResult:
    """Continue the run in the folder ``path`` from its newest checkpoint, bit-identically.

    Args:
        path: The folder.
        show_progress, memory: As in :func:`train`.

    Raises:
        CheckpointError: The newest checkpoint is damaged or does not fit.
        ConfigError, DataError, TrainingError, Stopped: As in :func:`train`.
    """
    with RunFolder.open(path) as folder:
        config = RunConfig.from_toml(folder.config_path)
        plan(config, memory=memory).require(resuming=True)
        return _run(config, folder, *build(config), show_progress)


def load(path: str | Path, *, device: str | None = None, data_dir: str | None = None) -> Trainer:
    """Return the trainer of a run with its learner, as the newest checkpoint has them.

    Args:
        path: The folder of the run.
        device, data_dir: In place of those in its settings.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged.
        ConfigError, DataError: As in :func:`train`.
    """
    folder = RunFolder.open(path, lock=False)
    config = RunConfig.from_toml(folder.config_path)
    changes = {"device": device, "data_dir": data_dir}
    config = config.replace(**{k: v for k, v in changes.items() if v is not None})
    saved = checkpoint.load_latest(folder.checkpoints)
    _, trainer = build(config)
    trainer.load_state(saved.tensors, saved.state["trainer"])
    return trainer
