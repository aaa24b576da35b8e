"""Trains a learner on one task after the other and keeps the accuracy matrix."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.optim.optimizer import Optimizer

from hypermask_fast.fields import check_value, takes_options
from hypermask_fast.methods.base import Learner, check_learner
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.methods.protocol import Losses, Phase
from hypermask_fast.scenarios import BatchStream, Task
from hypermask_fast.scenarios.own import Data, as_task
from hypermask_fast.scenarios.task import check_task
from hypermask_fast.training import optimizers, states
from hypermask_fast.training.best import BestModel
from hypermask_fast.training.checks import check_trainable
from hypermask_fast.training.distributed.together import Together
from hypermask_fast.training.known_tasks import KnownTasks
from hypermask_fast.training.loss_watch import LossWatch
from hypermask_fast.training.measuring import Measuring
from hypermask_fast.training.phases import phases_of
from hypermask_fast.training.progress import Progress
from hypermask_fast.training.schedules import Schedule
from hypermask_fast.training.settings import TrainingSettings
from hypermask_fast.training.step import TrainingStep

_EPOCHS = 10
_FINITE_CHECK_STEPS = 50


@takes_options(TrainingSettings)
class Trainer(Measuring):
    """Trains a learner: new optimizers for each phase of a task, then the accuracy on all seen.

    Args:
        learner: The learner; the device of its parameters is the one that is used.
        progress: Show progress on standard error. Default True.
        seed: Of the data order and augmentation. Default 0.
        settings: The settings; default: those below, with their defaults. Where there are neither
            steps nor epochs, a task takes 10 epochs.
        {options}

    Attributes:
        hooks: Called with the trainer after every step.
        losses: Of the last step.
        losses_read: Those that were read back last, by name; reading them waits for nothing.
        step: Steps taken in the current task.

    Raises:
        ConfigError: A setting is unknown or wrong, or steps and epochs are both given.
        TypeError: The learner is none.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        progress: bool = True,
        seed: int = 0,
        settings: TrainingSettings | None = None,
        **options: Any,
    ) -> None:
        self.learner = check_learner(learner)
        self.settings = TrainingSettings.chosen("Trainer", settings, options)
        self.progress = check_value("progress", bool, progress)
        self.seed = check_value("seed", int, seed, low=0, high=2**64 - 1)
        self.hooks: list[Callable[[Trainer], None]] = []
        self.losses: Losses | None = None
        self.step = 0
        self._together = Together(learner, self.settings, self.seed)
        known = KnownTasks(learner, self._together.processes)
        super().__init__(known, self.settings.eval_batch_size)
        self._step_fn: TrainingStep | None = None
        self._watch: LossWatch | None = None
        self._graphed, self._compiler = self._together.graphed(), self._together.compiler()
        self._schedule: Schedule | None = None
        self._best = BestModel(learner)

    def steps_of(self, task: Task) -> int:
        """Return the number of training steps of a task."""
        check_task(task)
        if self.settings.steps is not None:
            return self.settings.steps
        return (self.settings.epochs or _EPOCHS) * self._epoch_steps(task)

    def _epoch_steps(self, task: Task) -> int:
        return -(-len(task.train) // self.settings.batch_size)

    def fit(self, task: Task | Data, **data: Any) -> npt.NDArray[np.float64]:
        """Train a task, or continue it after :meth:`load_state`; the learner is in evaluation mode
        afterwards.

        Args:
            task: A Task; tasks of one name are one task. Or the training data of one: a pair of
                tensors, a Dataset or a DataLoader, see :func:`scenarios.make_task`.
            **data: With data: ``name`` and ``test``, and what else ``make_task`` takes.

        Returns:
            Test accuracy in percent after it, of the tasks learned so far and the next one if it
            was added (NaN elsewhere), in the order of :attr:`columns`.

        Raises:
            TrainingError: The loss is not finite, or another task is being learned. The task stays
                the current one: call fit again to continue it, or ``learner.abandon_task()`` first
                to start over.
            TypeError: It is no Task and no data of one.
            ConfigError: The selection or schedule needs validation data and the task has none, or
                :meth:`add` refuses the task; nothing was changed.
        """
        task = as_task(task, data)
        check_trainable(task, self.settings)
        self._tasks.check_free(task, begun=self._step_fn is not None)
        self._together.start_alike()
        added = len(self.learner.tasks)
        task_id = self.add(task)
        record = copy.deepcopy(self._record)
        task = self._tasks[task_id]
        total = self.steps_of(task)
        stream = task.stream(self.settings.batch_size, seed=self.seed, task_id=task_id)
        stream = self._together.take_rows(stream)
        self.learner.compile_steps(self._compiler)
        if self.learner.current is None:
            try:
                self._begin(task_id, total, stream)
            except BaseException:
                self._record = record
                if len(self.learner.tasks) > added:
                    self._tasks.forget(task_id)
                raise
        try:
            return self._train(task, task_id, stream)
        finally:
            self.learner.eval()

    def _train(self, task: Task, task_id: int, stream: BatchStream) -> npt.NDArray[np.float64]:
        total = self.steps_of(task)
        self.learner.train()
        self._watch = LossWatch(task.name, self._tasks.device, every=_FINITE_CHECK_STEPS)
        with Progress(total, initial=self.step, enabled=self._shows) as progress:
            for phase, begin in self._phases(task_id):
                if self.step == begin and self.learner.phase != phase.name:
                    self._drop_optimizers()
                    self.learner.begin_phase(phase.name)
                    self._make_optimizers(task_id)
                if self.step < begin + phase.steps:
                    self._train_phase(stream, task_id, begin, phase.steps, progress)
        self._watch.flush()
        return self._finish(task_id)

    @property
    def _shows(self) -> bool:
        processes = self._together.processes
        return self.progress and (processes is None or processes.is_first)

    def _phases(self, task_id: int) -> list[tuple[Phase, int]]:
        return phases_of(self.learner, task_id, self.steps_of(self._tasks[task_id]))

    def _train_phase(
        self, stream: BatchStream, task_id: int, begin: int, count: int, progress: Progress
    ) -> None:
        assert self._step_fn is not None
        assert self._schedule is not None
        assert self._watch is not None
        self._graphed.begin(self._step_fn, stream, task_id)
        total = self.steps_of(self._tasks[task_id])
        for step in range(self.step, begin + count):
            self._schedule.before_step(step - begin)
            self._train_step(stream, step, task_id, total)
            read = self._watch.latest
            progress.update(self.step, 0, {"loss": read["total"]} if read else None)
            for hook in self.hooks:
                hook(self)

    @property
    def losses_read(self) -> Mapping[str, float | Tensor]:
        return {} if self._watch is None else self._watch.latest

    @property
    def learning_rate(self) -> float | None:
        """Of the last step, that of the first optimizer's first group; None outside of a task."""
        return None if self._step_fn is None else optimizers.first_rate(self._step_fn.optimizers)

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        """Those of the task that is being learned, by name; none between tasks."""
        return {} if self._step_fn is None else self._step_fn.optimizers

    def status(self) -> dict[str, str]:
        """Return whether steps are compiled and replayed as a CUDA graph, and if not, why."""
        return {"graph": self._graphed.status, "compile": self._compiler.status}

    def _begin(self, task_id: int, total: int, stream: BatchStream) -> None:
        with evaluating(self.learner):
            self.learner(stream.batch(0)[0][:2], task_id)
        self._record.begin(task_id, self.learner.learned, self._tasks, self.confusion)
        self.learner.begin_task(task_id, steps=total, data=self._tasks[task_id])
        try:
            self._make_optimizers(task_id)
        except BaseException:
            self.learner.abandon_task(restore=False)
            raise
        self.step = 0
        self._best.clear()
        if self.settings.selection == "best_published":
            # What stays where no check is taken.
            self._best.keep()

    def _drop_optimizers(self) -> None:
        """Free the moments of the phase before, where the next one begins."""
        self._graphed.end()
        self._step_fn = self._schedule = None

    def _make_optimizers(self, task_id: int) -> None:
        self._drop_optimizers()
        made = optimizers.make_optimizers(self.learner, self.settings)
        self._step_fn = self._together.step(made)
        steps = {phase.name: phase.steps for phase, _ in self._phases(task_id)}
        self._schedule = Schedule(
            self.settings.schedule,
            made.values(),
            steps=steps[self.learner.phase],
            warmup_steps=self.settings.warmup_steps,
            epoch_steps=self._epoch_steps(self._tasks[task_id]),
        )

    def _train_step(self, stream: BatchStream, step: int, task_id: int, total: int) -> None:
        ends_epoch = (step + 1) % stream.steps_per_epoch == 0
        selects = self.settings.selection != "last"
        measured = self.settings.measured
        is_due = ends_epoch or step + 1 == total
        if measured != "test":
            is_due |= step % self.settings.check_every == 0
        assert self._schedule is not None
        watches = self._schedule.watches and ends_epoch
        checks = (selects and is_due) or watches
        stale: dict[str, Tensor] = {}

        def keep_weights() -> None:
            stale.update(self.learner.task_weights(task_id, in_step=True))

        published = checks and self.settings.selection == "best_published"
        measures = not published or watches or self.learner.scores_by_accuracy
        assert self._step_fn is not None
        self._step_fn.number = step
        self.losses = self._graphed(step, keep_weights if published and measures else None)
        self.step = step + 1
        assert self._watch is not None
        self._watch.see(self.step, self.losses)
        if checks:
            accuracy = math.nan
            if measures:
                accuracy = self.evaluate(task_id, measured, weights=stale or None)
            score = self.learner.published_score(self.losses, accuracy) if published else accuracy
            if selects:
                self._best.offer(score)
            if watches:
                self._schedule.after_epoch(accuracy)

    def _finish(self, task_id: int) -> npt.NDArray[np.float64]:
        self._best.restore()
        self._graphed.end()
        self._together.draw_alike()
        self._step_fn = self._schedule = self._watch = None
        self.learner.end_task(data=self._tasks[task_id])
        self.step = 0
        self._record.end(task_id, self._tasks, self.confusion)
        return self.accuracy[self.tasks_done]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that training needs to continue bit-identically: tensors, and JSON.

        Raises:
            TrainingError: The loss of the last step is not finite.
            CheckpointError: A module of the network has a state of its own that is no tensor.
        """
        if self._watch is not None:
            self._watch.flush()
        tensors, of_learner = states.learner_state(self.learner)
        tensors |= {f"best/{name}": value for name, value in self._best.weights.items()}
        tensors |= states.random_state(self._tasks.device)
        of_optimizers, groups = optimizers.optimizer_state(self.optimizers)
        tensors |= of_optimizers
        state = {
            **of_learner,
            "step": self.step,
            "optimizer": groups.pop(optimizers.MAIN, []),
            "optimizers": groups,
            "plateau": None if self._schedule is None else self._schedule.state(),
            "best_accuracy": self._best.saved_score,
            **self._record.state(),
        }
        return tensors, state

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned; the tasks must have been added before.

        The task in training goes on with the optimizers' rates as the state has them.

        Raises:
            CheckpointError: The state belongs to another network, to other settings of the method,
                or to tasks that were not added.
        """
        parts = states.parts_of(self.learner, tensors, state)
        self._tasks.check_has(state["task"])
        states.load_learner(self.learner, parts, state)
        if self.learner.current is not None:
            self._make_optimizers(self.learner.current)
            groups = {optimizers.MAIN: state["optimizer"], **state.get("optimizers", {})}
            optimizers.load_optimizer_state(self.optimizers, tensors, groups)
        if self._schedule is not None:
            self._schedule.load(state["plateau"])
        device = self._tasks.device
        self._best.load(parts["best"], state["best_accuracy"], device)
        self.step = state["step"]
        self._record.load(state, self.learner.learned)
        self.learner.eval()
        states.load_random_state(parts, device)
