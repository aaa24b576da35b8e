"""A run in progress: its log, progress and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from hypermask_fast.errors import CheckpointError, Stopped
from hypermask_fast.runs import checkpoint, report
from hypermask_fast.runs.folder import RunFolder
from hypermask_fast.runs.metrics_log import MetricsLog
from hypermask_fast.scenarios import Scenario
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.progress import Progress
from hypermask_fast.training.trainer import Trainer


class Session:
    """Trains what is left of a run, and writes its log and its checkpoints on the way.

    Args:
        config: The run's settings.
        folder: Where its files are.
        scenario: Its tasks.
        trainer: Its trainer, with all tasks added.
        stop: Returns the number of the signal that asks the run to stop, or None.
    """

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
        checkpoint.tidy(self.folder.checkpoints)
        trainer, config = self.trainer, self.config

        def after_step(_: Trainer) -> None:
            losses = trainer.losses
            assert losses is not None
            index = trainer.tasks_done
            if trainer.step % config.run.log_every == 0 or trainer.step == self.steps[index]:
                metrics.write(
                    {
                        "task": index,
                        "step": trainer.step,
                        "loss": float(losses.total),
                        "task_loss": float(losses.task),
                        **{name: float(value) for name, value in losses.terms.items()},
                    }
                )
            read = trainer.losses_read
            shown = {"loss": read["total"], "task": read["task"]} if read else None
            progress.update(trainer.step, index, shown)
            signum = self.stop()
            due = time.monotonic() - self._saved_at >= config.run.checkpoint_every
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
