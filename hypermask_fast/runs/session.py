"""A run in progress: its log, progress and checkpoints, whoever chooses its tasks."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hypermask_fast.errors import CheckpointError, Stopped
from hypermask_fast.files import checkpoint
from hypermask_fast.files.atomic import write_text_atomic
from hypermask_fast.files.fit import require_same
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.records import accuracy_files, confusion, learned
from hypermask_fast.records.environment import differences
from hypermask_fast.records.machine import machine, peak_memory
from hypermask_fast.records.metrics_log import MetricsLog, Position
from hypermask_fast.records.restoring import as_json
from hypermask_fast.records.sinks import Sinks
from hypermask_fast.records.summary import is_recorded, summary
from hypermask_fast.records.timing import StepClock
from hypermask_fast.runs import checkpoints
from hypermask_fast.runs.checkpoints import agreed_due, takes_part
from hypermask_fast.runs.together import told_by_first, wait_for_all, writes
from hypermask_fast.scenarios import Task
from hypermask_fast.settings.changes import Changes, described
from hypermask_fast.training.kept_logits import logits_of
from hypermask_fast.training.progress import Progress
from hypermask_fast.training.trainer import Trainer

_FIRST_CHECKPOINT = 30.0
"""Seconds: what a kill may cost at first, and when a folder that takes none is found out."""


class Session:
    """Trains tasks, and writes their log and checkpoints on the way.

    Args:
        folder: Where the run's files are.
        trainer: Its trainer.
        stop: Returns the number of the signal that asks the run to stop, or None.
        log_every: Steps between rows of the log.
        checkpoint_every: Seconds between checkpoints inside a task; the first one comes after 30 at
            the latest.
        environment: What the bits depend on beside settings.

    Attributes:
        names: Of the tasks.
        steps: Of each task; of those that are learned, what they took.
        changes: What was changed on the way: for each time the step and, by name, the values before
            and after of ``settings`` or of the ``environment``.
        sinks: Where copies of the log go.
        after_task: Called after each task, before the checkpoint that ends it.
    """

    continues_with: str | None = None
    """How a run goes on that a signal stopped; None: with the command."""

    def __init__(
        self,
        folder: RunFolder,
        trainer: Trainer,
        stop: Callable[[], int | None],
        *,
        log_every: int,
        checkpoint_every: float,
        environment: dict[str, Any],
    ) -> None:
        self.folder, self.trainer, self.stop = folder, trainer, stop
        self.log_every, self.checkpoint_every = log_every, checkpoint_every
        self.names: list[str] = []
        self.steps: list[int] = []
        self.changes: list[dict[str, Any]] = []
        self.sinks = Sinks()
        self.after_task: Callable[[Trainer], None] | None = None
        self._environment = environment
        self._saved_at, self._wait = time.monotonic(), min(_FIRST_CHECKPOINT, checkpoint_every)
        self._has_manifest = False
        self._writes, self._takes_part = writes(), takes_part(trainer.learner)
        self._due = agreed_due(self._own_due, trainer.learner)
        device = next(trainer.learner.parameters()).device
        on_cuda = device.type == "cuda"
        wait = partial(torch.cuda.synchronize, device) if on_cuda else lambda: None
        self.clock = StepClock(folder.timing_path, wait, memory=partial(peak_memory, device))
        self._machine = machine(device)

    def kept(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the run's settings, by name, for JSON."""
        raise NotImplementedError

    def _take(self, saved: checkpoint.Checkpoint, changes: Changes) -> Position:
        """Go on from a checkpoint, whose tasks the trainer has.

        Args:
            saved: The checkpoint.
            changes: Of the settings since then, which were accepted.

        Returns:
            Where the log goes on.

        Raises:
            CheckpointError: It does not fit.
        """
        state = saved.state
        self.trainer.load_state(saved.tensors, state["trainer"])
        require_same(state["trainer"], self.trainer.state()[1])
        self.changes = list(state.get("changes", ()))
        self._check_place(saved.step, state.get("steps_taken"))
        if not self.has_ended:
            self._note(saved.step, changes, state.get("environment"))
        return Position(int(state["metrics_position"]), state.get("metrics_sha256"))

    @property
    def has_ended(self) -> bool:
        """Whether no step is left of the tasks that there are."""
        return self.done >= sum(self.steps)

    def _check_place(self, step: int, steps_taken: list[int] | None) -> None:
        """Raise CheckpointError where the trainer is at no step of the run, or not at ``step``."""
        trainer = self.trainer
        index = trainer.tasks_done
        if steps_taken is not None:
            self.steps[:index] = steps_taken
        if index < len(self.names) and trainer.step > self.steps[index]:
            raise CheckpointError(
                f"the checkpoint is at step {trainer.step} of the task {self.names[index]!r}, to "
                f"which the settings give {self.steps[index]} steps; give at least {trainer.step}"
            )
        if len(self.steps) != len(self.names) or trainer.step < 0 or self.done != step:
            raise CheckpointError(
                f"the checkpoint is of step {step} and what it holds of step {self.done}, of the "
                f"{sum(self.steps)} of the run; another version or other settings made it"
            )
        current = trainer.learner.current
        if current is None:
            return
        begin = 0
        for phase in trainer.learner.phases(current, self.steps[index]):
            if phase.name == trainer.learner.phase and 0 <= trainer.step - begin <= phase.steps:
                return
            begin += phase.steps
        raise CheckpointError(
            f"the checkpoint is at step {trainer.step} of the task {self.names[index]!r} in the "
            f"phase {trainer.learner.phase!r}, which the settings end elsewhere; put back the "
            "task's steps"
        )

    def _note(self, step: int, changes: Changes, before: Mapping[str, Any] | None) -> None:
        """Keep what is not as it was at the checkpoint, and warn of another environment."""
        if changes:
            self.changes.append({"step": step, "settings": as_json(changes)})
        if before is None:
            warnings.warn(
                "an earlier version made the checkpoint, without the settings and the environment "
                "it was made in: if any of them changed, the run does not go on bit-identically",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        found = differences(before, self._environment)
        if found:
            self.changes.append({"step": step, "environment": as_json(found)})
            warnings.warn(
                f"the run goes on in another environment, so not bit-identically: "
                f"{described(found)}",
                RuntimeWarning,
                stacklevel=2,
            )

    @property
    def done(self) -> int:
        """Steps taken in all tasks."""
        return sum(self.steps[: self.trainer.tasks_done]) + self.trainer.step

    @property
    def mean_accuracy(self) -> float | None:
        """Mean in percent of the learned tasks' last measured accuracies; None where none is."""
        done = self.trainer.tasks_done
        known = [value for value in self.trainer.accuracy[done, :done] if not np.isnan(value)]
        return float(np.mean(known)) if known else None

    def fit(self, task: Task, metrics: MetricsLog, progress: Progress) -> npt.NDArray[np.float64]:
        """Train a task, the next one of :attr:`names`, or what is left of it.

        Returns:
            What :meth:`Trainer.fit` does.

        Raises:
            Stopped: A signal came; a checkpoint was saved.
            TrainingError: The loss is not finite.
        """
        trainer = self.trainer

        def after_step(_: Trainer) -> None:
            losses = trainer.losses
            assert losses is not None
            index = trainer.tasks_done
            if trainer.step % self.log_every == 0 or trainer.step == self.steps[index]:
                row = self._row(index, losses)
                metrics.write(row)
                told = {k: v for k, v in row.items() if k not in ("step", "time")}
                self.sinks.add(told, self.done)
            read = trainer.losses_read
            shown = {"loss": read["total"], "task": read["task"]} if read else None
            progress.update(trainer.step, index, shown)
            signum = self.stop()
            if signum is not None or self._due():
                self.save(metrics)
            if signum is not None:
                wait_for_all()  # and what was saved is there
                raise Stopped(signum, self.folder.path, self.continues_with)

        trainer.hooks.append(after_step)
        try:
            row = trainer.fit(task)
        finally:
            trainer.hooks.remove(after_step)
        index = trainer.tasks_done - 1
        metrics.write(
            {
                "after_task": index,
                "task_name": task.name,
                "accuracy": [None if np.isnan(a) else round(float(a), 4) for a in row],
                "time": round(self.clock.seconds, 3),
            }
        )
        self.sinks.accuracies(self.all_names, row, self.done)
        # Before the checkpoint: a run that goes on from it does not come back here.
        if self._takes_part:
            self._keep_logits()
        if self.after_task is not None:
            self.after_task(trainer)
        self.save(metrics)
        if self._writes:
            self.write_results()
        progress.learned(task.name, row[: index + 1])
        return row

    def _row(self, index: int, losses: Losses) -> dict[str, Any]:
        """Return the row of the log after a step, whose losses are read here."""
        trainer = self.trainer
        read = {
            "loss": float(losses.total),
            "task_loss": float(losses.task),
            **{name: float(value) for name, value in losses.terms.items()},
        }
        ms = self.clock.lap(index, trainer.step)
        return {
            "task": index,
            "task_name": self.names[index],
            "step": trainer.step,
            **read,
            "lr": trainer.learning_rate,
            "time": round(self.clock.seconds, 3),
            "steps_per_second": round(1e3 / ms, 2) if ms else None,
        }

    def write_results(self) -> None:
        """Write what tells how far the run is: accuracies, summary and manifest.

        The last two stay where they tell it already, with the times and the machine of then.
        """
        trainer = self.trainer
        accuracy_files.write_accuracy(self.folder.path, trainer.accuracy, self.all_names)
        written = summary(trainer, self.all_names, self.clock, self.done, sum(self.steps))
        if not is_recorded(self.folder.summary_path, written):
            write_text_atomic(self.folder.summary_path, json.dumps(written, indent=1) + "\n")
            self._write_manifest()

    def write_confusions(self) -> None:
        """Write which classes of the learned tasks are taken for which, in all processes."""
        path, trainer = self.folder.path, self.trainer
        if told_by_first(lambda: confusion.is_written(path, trainer)):
            return
        found = confusion.confusions(trainer)
        if self._writes:
            confusion.write(path, found)

    def _write_manifest(self) -> None:
        made_with = {
            "environment": self._environment,
            "changes": self.changes,
            "machine": self._machine,
            "seconds": round(self.clock.seconds, 3),
        }
        write_text_atomic(self.folder.manifest_path, json.dumps(made_with, indent=1) + "\n")
        self._has_manifest = True

    @property
    def all_names(self) -> list[str]:
        """Names of the columns of the trainer's accuracies."""
        return self.names

    def _keep_logits(self) -> None:
        """Keep the logits of the task that was learned last, by which `verify` tells its drift."""
        learner = self.trainer.learner
        task = self.trainer.columns[self.trainer.tasks_done - 1]
        logits = logits_of(learner, task, self.trainer.tasks[task])
        if self._writes:
            learned.keep(self.folder.learned, task, learner.tasks[task].name, logits)

    def _own_due(self) -> bool:
        """Return whether a checkpoint is due by this process's clock."""
        return time.monotonic() - self._saved_at >= self._wait

    def save(self, metrics: MetricsLog) -> None:
        """Write a checkpoint and the times, and after the first one the manifest.

        Of several processes only the first one writes, but where they share a head.
        """
        if not self._takes_part:
            return
        with self.clock.paused():
            self._save(metrics)
            if self._writes:
                self.clock.write()

    def _save(self, metrics: MetricsLog) -> None:
        position = metrics.position()
        more = {
            "metrics_position": position.size,
            "metrics_sha256": position.sha256,
            "steps_taken": self.steps[: self.trainer.tasks_done],
            **self.kept(),
            "environment": self._environment,
            "changes": self.changes,
        }
        checkpoints.save(self.folder.checkpoints, self.done, self.trainer, more)
        if self._writes and not self._has_manifest:
            self._write_manifest()
        self._saved_at, self._wait = time.monotonic(), self.checkpoint_every
