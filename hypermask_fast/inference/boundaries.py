"""Learning from a stream of tasks whose boundaries and ids are not given (SupSup, NNs)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hypermask_fast.errors import CheckpointError, ConfigError, shown
from hypermask_fast.fields import check_value
from hypermask_fast.inference.one_shot import recognized
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.methods.subnetwork import SubnetworkLearner


class Boundaries:
    """Begins and ends a learner's tasks by the batches it is shown.

    The first batch begins a task. Every ``every`` batches :func:`recognized` is asked whether the
    batch is of a task that is known: the one it names goes on, and where it names none a new one
    begins, added if there is none left. A task that is come back to goes on from its mask, with its
    scores where they are kept (``keep_scores=True``, published). In a loop::

        stream = Boundaries(learner)
        for x, y in batches:
            if stream.see(x):
                optimizer = torch.optim.RMSprop(learner.parameters(), lr=1e-4)
            learner.step(x, y, stream.task, {"main": optimizer})
        stream.end()

    Args:
        learner: SupSup, or another learner of subnetworks whose tasks have one phase.
        every: Batches from one question to the next. Default 100.
        objective: "entropy", or "g", which needs superfluous outputs; where inputs have few
            features, a mask learns to keep those low for other tasks' inputs too, and no new task
            is found. Default "entropy".
        classes: Outputs that stand for a class, which new tasks get. Default: those of the first
            task that was added; at least one has to say.
        factor, least: As of :func:`recognized`.

    Attributes:
        batches: How many were shown.
        found: For each task that began, the number of the batch that it began with, and its id.

    Raises:
        ConfigError: A number is out of range, the learner has several phases, or the number of
            classes is not known.
        TypeError: The learner selects no subnetworks.
    """

    def __init__(
        self,
        learner: SubnetworkLearner,
        *,
        every: int = 100,
        objective: str = "entropy",
        classes: int | None = None,
        factor: float = 1.125,
        least: int = 5,
    ) -> None:
        if not isinstance(learner, SubnetworkLearner):
            raise TypeError(f"learner is {shown(learner)}; give a learner such as SupSup(net)")
        phases = [phase.name for phase in learner.phases(0, 2)]
        if len(phases) > 1:
            raise ConfigError(
                f"a task of {type(learner).__name__} has the phases {phases}, which need to know "
                "where it ends; use SupSup"
            )
        self.learner = learner
        self.every = check_value("every", int, every, low=1)
        self.least = check_value("least", int, least, low=2)
        self.factor = check_value("factor", float, factor, low=1.0)
        known = next((len(r.classes) for r in learner.tasks if r.classes is not None), None)
        self.classes = check_value("classes", int, known if classes is None else classes, low=1)
        self.objective = objective
        self.batches = 0
        self.found: list[tuple[int, int]] = []

    @property
    def task(self) -> int:
        """The task that is being learned.

        Raises:
            RuntimeError: No batch was shown.
        """
        if self.learner.current is None:
            raise RuntimeError("no task is being learned; call see() with a batch before")
        return self.learner.current

    def see(self, x: Tensor) -> bool:
        """Look at a batch before it is learned from; return whether another task began with it.

        Then a new optimizer is due.

        Args:
            x: Inputs (batch, ...).

        Raises:
            ValueError: As of :func:`recognized`.
        """
        asked = self.batches % self.every == 0
        begins = None
        if self.learner.current is None:
            begins = self._recognized(x) if self.learner.learned else self._new()
        elif asked:
            task = self._recognized(x)
            if task != self.learner.current:
                begins = task
                self.learner.end_task()
        if begins is not None:
            self.learner.begin_task(begins)
            self.found.append((self.batches, begins))
        self.batches += 1
        return begins is not None

    def end(self) -> None:
        """End the current task, if there is one; the next batch is asked about at once."""
        if self.learner.current is not None:
            self.learner.end_task()

    def _recognized(self, x: Tensor) -> int:
        while len(self.learner.tasks) < max(self.least, len(self._begun()) + 1):
            self._add()
        with evaluating(self.learner):
            task = recognized(
                self.learner,
                x,
                objective=self.objective,
                factor=self.factor,
                least=self.least,
                classes=self.classes,
            )
        return self._new() if task is None else task

    def _begun(self) -> set[int]:
        current = self.learner.current
        return {*self.learner.learned, *([] if current is None else [current])}

    def _new(self) -> int:
        """Return a task that was not begun."""
        begun = self._begun()
        free = (task for task in range(len(self.learner.tasks)) if task not in begun)
        task = next(free, None)
        return self._add() if task is None else task

    def _add(self) -> int:
        names = {record.name for record in self.learner.tasks}
        number = len(names)
        while f"found {number}" in names:
            number += 1
        return self.learner.add_task(f"found {number}", range(self.classes))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the learner's own state, as JSON values."""
        return {"batches": self.batches, "found": [list(pair) for pair in self.found]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            CheckpointError: It is something else.
        """
        if not isinstance(state, Mapping) or {"batches", "found"} - state.keys():
            raise CheckpointError(f"state is {shown(state)}; give what Boundaries.state() returned")
        self.batches = int(state["batches"])
        self.found = [(int(batch), int(task)) for batch, task in state["found"]]
