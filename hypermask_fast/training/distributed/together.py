"""What a trainer does where several processes train its learner together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.optim.optimizer import Optimizer

from hypermask_fast.backends.compiled import Compiler
from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.base import Learner
from hypermask_fast.scenarios import BatchStream
from hypermask_fast.training.distributed.alike import check_same_layout, copy_weights
from hypermask_fast.training.distributed.batch_norm import has_batch_norm
from hypermask_fast.training.distributed.exchange import SharedStep
from hypermask_fast.training.distributed.processes import Processes, joined
from hypermask_fast.training.graph import GraphedStep
from hypermask_fast.training.settings import TrainingSettings
from hypermask_fast.training.step import TrainingStep


class Together:
    """The processes that train a learner together, or this one alone.

    Args:
        learner: The learner, built alike in all processes.
        settings: Of its training.
        seed: Of the data order, and of what the processes draw apart.

    Attributes:
        processes: The processes; None where this one trains alone.

    Raises:
        ConfigError: A batch has fewer rows than there are processes, or steps are to be what steps
            with exchanges cannot be.
    """

    def __init__(self, learner: Learner, settings: TrainingSettings, seed: int) -> None:
        self.processes: Processes | None = joined()
        self._learner, self._settings, self._seed = learner, settings, seed
        self._is_checked = False
        if self.processes is not None:
            self._share = self.processes.share(settings.batch_size)
            self._refuse(self.processes.world)

    def _refuse(self, world: int) -> None:
        if self._settings.graph is True:
            raise ConfigError(
                f"graph is True, and a step of {world} processes is none: they exchange gradients "
                "within it; use graph='auto', or one process"
            )
        if self._settings.compile is True and has_batch_norm(self._learner):
            raise ConfigError(
                f"compile is True, and the network's batch norms exchange statistics between "
                f"{world} processes, which is not compiled; use compile='auto', or one process"
            )

    def graphed(self) -> GraphedStep:
        """Return what takes the steps."""
        if self.processes is None:
            is_captured = self._settings.optimizer == "adam"
            return GraphedStep(self._settings.graph if is_captured else False)
        why = f"{self.processes.world} processes exchange gradients within a step"
        return GraphedStep(False, why_off=why)

    def compiler(self) -> Compiler:
        """Return what compiles parts of the steps."""
        if self.processes is None or not has_batch_norm(self._learner):
            return Compiler(self._settings.compile)
        why = f"batch norms of {self.processes.world} processes exchange statistics"
        return Compiler(False, why_off=why)

    def take_rows(self, stream: BatchStream) -> BatchStream:
        """Let a stream give this process's rows of each batch, and return it."""
        if self.processes is not None:
            stream.part = self._share.rows
        return stream

    def start_alike(self) -> None:
        """Give all processes the weights and the random state of the first one, between tasks."""
        if self.processes is None or self._learner.current is not None:
            return
        if not self._is_checked:
            check_same_layout(self._learner, self.processes)
            self._is_checked = True
        copy_weights(self._learner, self.processes)
        self.draw_alike()

    def draw_alike(self) -> None:
        """Give all processes the random state of the first one."""
        if self.processes is None:
            return
        state = torch.get_rng_state()
        self.processes.copy_([state])
        torch.set_rng_state(state)
        device = next(self._learner.parameters()).device
        if device.type == "cuda":
            state = torch.cuda.get_rng_state(device)
            self.processes.copy_([state])
            torch.cuda.set_rng_state(state, device)

    def step(self, optimizers: Mapping[str, Optimizer]) -> TrainingStep:
        """Return a training step over optimizers."""
        if self.processes is None:
            return TrainingStep(self._learner, optimizers)
        return SharedStep(self._learner, optimizers, self.processes, self._share, self._seed)
