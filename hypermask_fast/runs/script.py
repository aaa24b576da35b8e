"""A run of one's own, whose learner, trainer and tasks a script makes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hypermask_fast.errors import CheckpointError, ConfigError, shown
from hypermask_fast.fields import check_value
from hypermask_fast.files import checkpoint
from hypermask_fast.files.closing import Closing
from hypermask_fast.files.fit import in_a_sentence
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.files.plain_json import plain_json
from hypermask_fast.records import accuracy_files, page
from hypermask_fast.records.environment import environment_of
from hypermask_fast.records.metrics_log import START, MetricsLog, Position
from hypermask_fast.runs import checkpoints
from hypermask_fast.runs.session import Session
from hypermask_fast.runs.signals import caught_signal
from hypermask_fast.runs.together import NoLog, agreed, resumable, run_folder, wait_for_all, writes
from hypermask_fast.scenarios import Split, Task
from hypermask_fast.scenarios.own import Data, as_task
from hypermask_fast.settings.changes import FREE
from hypermask_fast.training.accuracy import AccuracyRecord
from hypermask_fast.training.progress import Progress
from hypermask_fast.training.states import load_learner, parts_of
from hypermask_fast.training.trainer import Trainer

_PROBED = 4
_SAME = 1e-3


def _settings_of(trainer: Trainer) -> dict[str, Any]:
    """Return what a run was made with, for JSON: by part and name."""
    learner = trainer.learner
    of_learner = {} if learner.settings is None else learner.settings.values()
    return {
        "learner": {"class": type(learner).__name__, **of_learner},
        "trainer": {"seed": trainer.seed, **trainer.settings.values()},
    }


def _probe(task: Task, split: Split) -> list[float]:
    """Return numbers that tell inputs apart: sums of a few of a split with weights by place."""
    x = task.eval_preprocess(split.source.take(split.index[:_PROBED]))
    leaves = [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]
    rows = torch.cat([leaf.detach().cpu().double().flatten(1) for leaf in leaves], 1)
    weights = torch.arange(rows.shape[1], dtype=torch.float64).cos()
    scale = rows.square().sum(1).sqrt().clamp(min=1e-30)
    sums: list[float] = (rows @ weights / scale).tolist()
    return [value if math.isfinite(value) else 0.0 for value in sums]


def _identity(task: Task) -> dict[str, Any]:
    """Return what tells a task from another one, for JSON."""
    splits = {name: task.split(name) for name in ("train", "validation", "test")}
    places = torch.arange(1, 1 + max(len(split) for split in splits.values()))
    return {
        "name": task.name,
        "classes": list(task.classes),
        **{name: len(split) for name, split in splits.items()},
        "labels": [int((s.labels.cpu() * places[: len(s)]).sum()) for s in splits.values()],
        "inputs": _probe(task, task.test),
        "training inputs": _probe(task, task.train),
    }


def _difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first name by which a task is not the saved one, or None."""
    for name in now:
        before, value = saved.get(name), now[name]
        if name == "training inputs" and before is None:
            continue  # a run of before they were noted
        if name in ("inputs", "training inputs"):
            # What reads and resizes images may round otherwise elsewhere.
            if before is None or len(before) != len(value):
                return name
            if not np.allclose(before, value, _SAME, _SAME):
                return name
        elif before != value:
            return name
    return None


class _ScriptSession(Session):
    """The session of a script's run, which is told its tasks one after the other."""

    continues_with = "start the script again, it continues"

    def __init__(self, folder: RunFolder, trainer: Trainer, **options: Any) -> None:
        device = next(trainer.learner.parameters()).device
        environment = environment_of(trainer.settings, device)
        super().__init__(folder, trainer, lambda: None, environment=environment, **options)
        self.identities: list[dict[str, Any]] = []

    def kept(self) -> dict[str, Any]:
        return {"script": _settings_of(self.trainer), "tasks": self.identities}

    @property
    def has_ended(self) -> bool:
        return False  # another task may follow

    @property
    def all_names(self) -> list[str]:
        return [self.trainer.learner.tasks[task].name for task in self.trainer.columns]

    def add(self, task: Task, identity: dict[str, Any]) -> None:
        """Take the next task."""
        self.names.append(task.name)
        self.steps.append(self.trainer.steps_of(task))
        self.identities.append(identity)

    def restore(self, saved: checkpoint.Checkpoint) -> Position:
        """Go on from a checkpoint, whose tasks were added."""
        return self._take(saved, {})


class Run(Closing):
    """A run of one's own: a folder with log, checkpoints, accuracies, a picture and a report.

    The folder is that of ``hypermask train``, but for the settings (``script.json``). A script that
    was stopped or killed is started again as it is: it makes the same learner, trainer and tasks,
    the learner gets the weights of the newest checkpoint, :meth:`fit` returns at once for tasks
    that were learned and goes on within the one that was being learned, and the run ends with the
    bits of one that nothing interrupted. Data that are drawn at random need a seed of their own:
    after a task that is skipped the global generators are not where its training left them. ::

        run = hmf.Run("runs/mine", hmf.Trainer(learner, epochs=5))
        for task in tasks:
            run.fit(task)

    Args:
        out: The folder: a new or an empty one, or that of this run.
        trainer: Its trainer, which has trained nothing yet. Where it shows progress, so does the
            run.
        log_every: Steps between rows of the log. Default 50.
        checkpoint_every: Seconds between checkpoints inside a task, the first after 30 at most.
            Default 300.

    Raises:
        ConfigError: The folder holds another run or other files, or is in use; or the learner has
            learned tasks already.
        CheckpointError: The run was begun with other settings or another network, or its checkpoint
            is damaged.
        TypeError: It is no Trainer.
    """

    def __init__(
        self,
        out: str | Path,
        trainer: Trainer,
        *,
        log_every: int = 50,
        checkpoint_every: float = 300.0,
    ) -> None:
        check_value("out", str, out, path=True)
        options = {
            "log_every": check_value("log_every", int, log_every, low=1),
            "checkpoint_every": check_value("checkpoint_every", float, checkpoint_every, low=0.0),
        }
        if not isinstance(trainer, Trainer):
            raise TypeError(f"trainer is {shown(trainer)}; give a Trainer")
        learner = trainer.learner
        if learner.learned or learner.current is not None:
            names = [record.name for record in learner.tasks]
            raise ConfigError(
                f"the learner has learned of {names} already, which the run would not have; give a "
                "new learner, the run itself continues from its checkpoint"
            )
        checkpoints.check_joined(learner)
        self.trainer = trainer
        self._show = trainer.progress and writes()
        self._open, self._is_closed = ExitStack(), False
        self._metrics: MetricsLog | None = None
        self._saved: checkpoint.Checkpoint | None = None
        self._place = 0
        settings = json.dumps(plain_json(_settings_of(trainer), "settings", nonfinite_as_text=True))
        locked = partial(RunFolder.of_script, out, settings + "\n")
        self._folder = self._open.enter_context(run_folder(out, locked, anew=True))
        try:
            self._session = _ScriptSession(self._folder, trainer, **options)
            self._read(json.loads(settings))
        except BaseException:
            self.close()
            raise

    def _read(self, settings: dict[str, Any]) -> None:
        """Load the learner of the newest checkpoint, if there is one."""
        path = checkpoint.latest(self._folder.checkpoints)
        if path is None:
            self._folder.require_no_checkpoint_was_made()
            return
        saved = checkpoints.load_latest(self._folder.checkpoints, self.trainer.learner)
        with in_a_sentence(path):
            for part, now in settings.items():
                before = saved.state["script"][part]
                for name in dict.fromkeys((*before, *now)):
                    if name not in FREE and before.get(name) != now.get(name):
                        raise CheckpointError(
                            f"{name}={now.get(name)!r} of the {part} is not "
                            f"{name}={before.get(name)!r}, which the run in {self.path} was begun "
                            "with; put that back, or choose another folder"
                        )
            learner, state = self.trainer.learner, saved.state["trainer"]
            with torch.random.fork_rng():
                load_learner(learner, parts_of(learner, saved.tensors, state), state)
        self._saved = saved

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """As :attr:`Trainer.accuracy`; of a run that goes on, of the tasks given so far."""
        if self._saved is None:
            return self.trainer.accuracy
        return self._recorded(self._saved)[: self._place + 1]

    @property
    def changes(self) -> list[dict[str, Any]]:
        """The times that the environment changed: the step and, by name, both values."""
        return self._session.changes

    def fit(self, task: Task | Data, **data: Any) -> npt.NDArray[np.float64]:
        """Train a task, or what is left of it.

        Args:
            task, **data: As :meth:`Trainer.fit` takes them.

        Returns:
            As :meth:`Trainer.fit`; of a task that was learned before this start, the accuracies
            then of the tasks up to it.

        Raises:
            CheckpointError: The run has learned another task in this place.
            Stopped: SIGINT, SIGTERM or SIGHUP came; a checkpoint was saved.
            ConfigError, TrainingError, TypeError: As :meth:`Trainer.fit`.
            ValueError: The run was closed.
        """
        if self._is_closed:
            raise ValueError(f"the run in {self.path} was closed; make a new Run to go on")
        task = as_task(task, data)
        if self._saved is not None:
            return self._replayed(task, self._saved)
        return self._trained(task)

    def _replayed(self, task: Task, saved: checkpoint.Checkpoint) -> npt.NDArray[np.float64]:
        """Take a task that the checkpoint has, and go on from it at the last one."""
        session, state, place = self._session, saved.state, self._place
        before, identity = state["tasks"][place], _identity(task)
        differs = _difference(before, identity)
        if differs is not None:
            raise CheckpointError(
                f"task {place} of the run in {self.path} was {before['name']!r} and {task.name!r} "
                f"is given, with other {differs}; give the same tasks in the same order"
            )
        self.trainer.add(task)
        session.add(task, before)
        self._place += 1
        learned = len(state["steps_taken"])
        if self._place == len(state["tasks"]):
            with in_a_sentence(self._folder.checkpoints):
                position = session.restore(saved)
            self._begin(position)
        if place == learned:
            return self._fit(task)
        return self._recorded(saved)[place + 1]

    def _recorded(self, saved: checkpoint.Checkpoint) -> npt.NDArray[np.float64]:
        """Return the accuracies of a checkpoint, of the tasks that were given again."""
        record = AccuracyRecord()
        record.load(saved.state["trainer"], self.trainer.learner.learned)
        return record.matrix(())[:, : self._place]

    def _begin(self, position: Position) -> None:
        self._saved = None
        wait_for_all()  # until they have read the checkpoint
        if writes():
            checkpoint.tidy(self._folder.checkpoints)
            self._metrics = MetricsLog(self._folder.metrics_path, position)
        else:
            self._metrics = NoLog()
        if self.trainer.tasks_done:
            self._write_results()

    def _trained(self, task: Task) -> npt.NDArray[np.float64]:
        session = self._session
        if self._metrics is None:
            self._begin(START)
        if self.trainer.learner.current is None or len(session.names) == self.trainer.tasks_done:
            del session.names[self.trainer.tasks_done :]  # of a task that was refused
            del session.steps[self.trainer.tasks_done :]
            del session.identities[self.trainer.tasks_done :]
            session.add(task, _identity(task))
        return self._fit(task)

    def _fit(self, task: Task) -> npt.NDArray[np.float64]:
        session, metrics = self._session, self._metrics
        assert metrics is not None
        with ExitStack() as stack:
            stack.enter_context(resumable(self.path, "start the script again, it continues"))
            session.stop = agreed(stack.enter_context(caught_signal()))
            progress = Progress(
                sum(session.steps),
                task_names=session.names,
                task_steps=session.steps,
                initial=session.done,
                accuracy=session.mean_accuracy,
                enabled=self._show,
            )
            stack.enter_context(progress)
            shown, self.trainer.progress = self.trainer.progress, False
            try:
                row = session.fit(task, metrics, progress)
            finally:
                self.trainer.progress = shown
        self._write_results()
        return row

    def _write_results(self) -> None:
        self._session.write_confusions()
        if not writes():
            return
        self._session.write_results()
        accuracy, names = self.trainer.accuracy, self._session.all_names
        accuracy_files.write_heatmap(self._folder.accuracy_svg, accuracy, names)
        page.write_page(self.path)

    def close(self) -> None:
        """Close the log and free the folder; calling it again does nothing."""
        if self._metrics is not None:
            self._metrics.close()
        self._open.close()
        self._is_closed = True

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.trainer.tasks_done} tasks learned)"
