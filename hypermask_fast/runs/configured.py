"""The session of a run whose settings tell all of it: its tasks, its learner, its training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypermask_fast.errors import CheckpointError
from hypermask_fast.files import checkpoint
from hypermask_fast.files.fit import in_a_sentence
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.records.environment import environment
from hypermask_fast.records.metrics_log import START, MetricsLog, Position
from hypermask_fast.runs import checkpoints
from hypermask_fast.runs.session import Session
from hypermask_fast.runs.together import wait_for_all, writes
from hypermask_fast.scenarios import Scenario
from hypermask_fast.settings.changes import Changes, carry_into, check_within_task
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.progress import Progress
from hypermask_fast.training.trainer import Trainer


class ConfiguredSession(Session):
    """Trains what is left of a run.

    Args:
        config: The run's settings.
        folder: Where its files are.
        scenario: Its tasks.
        trainer: Its trainer, with all tasks added.
        stop: As in :class:`Session`.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        scenario: Scenario,
        trainer: Trainer,
        stop: Callable[[], int | None],
    ) -> None:
        device = next(trainer.learner.parameters()).device
        super().__init__(
            folder,
            trainer,
            stop,
            log_every=config.run.log_every,
            checkpoint_every=config.run.checkpoint_every,
            environment=environment(config, device),
        )
        self.config, self.scenario = config, scenario
        self.names = [task.name for task in scenario]
        self.steps = [trainer.steps_of(task) for task in scenario]

    def kept(self) -> dict[str, Any]:
        return {"settings": self.config.to_toml()}

    def restore(self, changes: Changes) -> Position:
        """Continue from the newest checkpoint, if there is one; no file is written.

        Args:
            changes: Of the settings since then, which were accepted.

        Returns:
            Where the log goes on.

        Raises:
            CheckpointError: The checkpoint is damaged, or does not fit.
        """
        path = checkpoint.latest(self.folder.checkpoints)
        if path is None:
            return START
        saved = checkpoints.load_latest(self.folder.checkpoints, self.trainer.learner)
        state = saved.state
        with in_a_sentence(path):
            names = [record["name"] for record in state["trainer"]["task"]["tasks"]]
            if names != self.names:
                raise CheckpointError(
                    f"the checkpoint was made with the tasks {names} and config.toml gives "
                    f"{self.names}; put back the settings of the run"
                )
            current = state["trainer"]["task"]["current"]
            if current is not None:
                check_within_task(changes, names[current])
            groups = [
                state["trainer"]["optimizer"],
                *state["trainer"].get("optimizers", {}).values(),
            ]
            for of_one in groups:
                carry_into(of_one, changes, self.config.training.schedule)
            return self._take(saved, changes)

    def run(self, metrics: MetricsLog, progress: Progress) -> None:
        """Train the tasks that are left."""
        wait_for_all()  # until they have read the checkpoint
        if writes():
            checkpoint.tidy(self.folder.checkpoints)
        for task in self.scenario.tasks[self.trainer.tasks_done :]:
            self.fit(task, metrics, progress)
