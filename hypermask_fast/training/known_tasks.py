"""The tasks that a trainer has the examples of, by the ids of its learner."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hypermask_fast.errors import CheckpointError, ConfigError, TrainingError, shown
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.scenarios import Task
from hypermask_fast.scenarios.task import check_task
from hypermask_fast.training.distributed.processes import Processes


class KnownTasks(dict[int, Task]):
    """Tasks by id, on the device of a learner.

    Args:
        learner: The learner, which gets the tasks that are new to it.
        processes: Those that evaluate together, each some of the batches. Default: this one alone.
    """

    def __init__(self, learner: Learner, processes: Processes | None = None) -> None:
        super().__init__()
        self._learner, self._processes = learner, processes
        self._seen = len(learner.renamed)

    @property
    def names(self) -> list[str]:
        """Names of the tasks."""
        return [task.name for task in self.values()]

    @property
    def device(self) -> torch.device:
        """Of the learner's parameters."""
        return next(self._learner.parameters()).device

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the network's floating-point parameters; None where they have several, or none."""
        found = {p.dtype for p in self._learner.net.parameters() if p.is_floating_point()}
        return found.pop() if len(found) == 1 else None

    def follow(self) -> set[int]:
        """Take the ids that the learner has for the tasks' names now; forget those it has not.

        A state that was loaded, or a task that was removed, gives an id to another task.

        Returns:
            The ids that are no longer those of the same task.
        """
        self._rename()
        records = self._learner.tasks
        same = [i < len(records) and records[i].name == task.name for i, task in self.items()]
        if all(same):
            return set()
        changed = {i for i, is_same in zip(self, same, strict=True) if not is_same}
        ids = {record.name: i for i, record in enumerate(records)}
        known = {ids[task.name]: task for task in self.values() if task.name in ids}
        self.clear()
        self.update(sorted(known.items()))
        return changed

    def _rename(self) -> None:
        """Give tasks the names that the learner gave them since the last call."""
        renamed = self._learner.renamed
        for old, new in renamed[self._seen :]:
            found = next((i for i, task in self.items() if task.name == old), None)
            if found is not None:
                self[found] = self[found].called(new)
        self._seen = len(renamed)

    def admit(self, task: Task) -> int:
        """Add a task to the learner, if it is new, and return its id.

        Raises:
            ConfigError: A task of this name has other classes or examples.
        """
        check_task(task)
        record = next((r for r in self._learner.tasks if r.name == task.name), None)
        if record is None:
            task_id = self._learner.add_task(task.name, task.classes)
        elif record.classes not in (None, task.classes):
            raise ConfigError(
                f"task {task.name!r} has the classes {task.classes} and was added with "
                f"{record.classes}; give the same in the same order, or another name"
            )
        else:
            task_id = self._learner.task_id(task.name)
        known, moved = self.get(task_id), task.to(self.device)
        if self.dtype is not None:
            moved = moved.cast(self.dtype)
        if known is not None and not known.has_same_examples(moved):
            other = "give it another name"
            last = len(self._learner.tasks) - 1
            if task_id == last and task_id not in self._learner.learned:
                begun = "abandon_task() and " if task_id == self._learner.current else ""
                other += f", or call {begun}remove_task() of the learner, for it was not learned"
            raise ConfigError(
                f"task {task.name!r} has other examples than the task that was added by this name; "
                f"{other}"
            )
        self.setdefault(task_id, moved)
        return task_id

    def forget(self, task_id: int) -> None:
        """Remove the task that was added last, from the learner too."""
        del self[task_id]
        self._learner.remove_task(task_id)

    def check_free(self, task: Task, *, begun: bool) -> None:
        """Raise TrainingError where the learner is within another task, or was not begun here.

        Args:
            task: What is to be trained, or continued.
            begun: Whether the trainer is within a task.
        """
        current = self._learner.current
        name = None if current is None else self._learner.tasks[current].name
        if name is None or (name == task.name and begun):
            return
        by = "" if name != task.name else " and was not begun by this trainer"
        raise TrainingError(
            f"task {name!r} is being learned{by}, so {task.name!r} cannot begin; end it, or call "
            "learner.abandon_task() to start over"
        )

    def check_has(self, saved: Mapping[str, Any]) -> None:
        """Raise CheckpointError where a task begun before a checkpoint is not known, or another.

        Args:
            saved: The JSON part of the learner's ``task_state``.
        """
        names = [record["name"] for record in saved["tasks"]]
        begun = {*saved["learned"], saved["current"]} - {None}
        missing = [names[task] for task in sorted(begun) if names[task] not in self.names]
        if missing:
            raise CheckpointError(
                f"the checkpoint has learned from {missing}, and this trainer has the tasks "
                f"{self.names}; call add() for each of them before"
            )
        classes = {record["name"]: record["classes"] for record in saved["tasks"]}
        for task in self.values():
            saved_classes = classes.get(task.name)
            if saved_classes is not None and tuple(saved_classes) != tuple(task.classes):
                raise CheckpointError(
                    f"task {task.name!r} has the classes {tuple(task.classes)} and the checkpoint "
                    f"was made with {tuple(saved_classes)}; add() the task that it learned from"
                )

    def confusion(
        self, task_id: int | str, split: str, weights: Mapping[str, Tensor] | None, batch_size: int
    ) -> npt.NDArray[np.int64]:
        """Return the predictions for a task's split; see :meth:`Trainer.confusion`."""
        if isinstance(task_id, str):
            task_id = self._learner.task_id(task_id)
        task = self.get(task_id) if isinstance(task_id, Hashable) else None
        if task is None:
            raise ValueError(
                f"task {shown(task_id)} is not among the tasks of this trainer, {list(self)}; "
                "call add() first"
            )
        if not len(task.split(split)):
            raise ValueError(f"task {task.name!r} has no {split} examples; choose another split")
        together = self._processes
        which = slice(None) if together is None else slice(together.rank, None, together.world)
        count = task.num_classes
        counts = torch.zeros(count * count, dtype=torch.int64, device=self.device)
        one = torch.ones(1, dtype=torch.int64, device=self.device)
        with evaluating(self._learner), self._learner.activated(task_id, weights) as net:
            for x, y in task.evaluation_batches(split, batch_size, which=which):
                places = y * count + net(x)[:, :count].argmax(1)
                counts.index_add_(0, places, one.expand(len(places)))
        if together is not None:
            together.sum_(counts)
        # A copy: the tensor lies among what the evaluation took, and would keep it from the system.
        return counts.view(count, count).cpu().numpy().copy()
