"""Where a step that is measured begins: in a run's last task, the others being learned in name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from hypermask_fast.backends.choice import backend
from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.fields import text_of
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.converted import ConvertedLearner
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.methods.subnetwork import SubnetworkLearner
from hypermask_fast.planning.simulation import ScenarioSize
from hypermask_fast.planning.sizes import scenario_size
from hypermask_fast.records.environment import processor
from hypermask_fast.settings.build import make_learner
from hypermask_fast.settings.config import RunConfig

_STEPS = 1000


def device_name(device: torch.device) -> str:
    """Return the name of a device, of a CPU with the threads that PyTorch takes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{processor()}, {count} thread{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Start:
    """The start of a step: it makes learners in the same state, and the batch.

    Attributes:
        config: The settings, with the number of tasks.
        size: Of the scenario.
        device: Where all is made.
        phase: Of the task, where a method has several. Default: the first.
    """

    config: RunConfig
    size: ScenarioSize
    device: torch.device
    phase: str = ""

    @classmethod
    def of(cls, config: RunConfig, device: torch.device, phase: str = "") -> Start:
        """Return the start that settings describe; no data of the catalogue are read.

        Raises:
            ConfigError, DataError: As of :func:`scenario_size`.
        """
        size = scenario_size(config)
        return cls(
            config if config.tasks else config.replace(tasks=size.tasks), size, device, phase
        )

    @property
    def task(self) -> int:
        """The id of the last task, and the number of those before it."""
        return self.size.tasks - 1

    def describe(self) -> str:
        """Return what the step is of, for people."""
        config = self.config
        options = ", ".join(f"{k} {text_of(v)}" for k, v in config.network.values().items())
        network = config.network.name + (f" ({options})" if options else "")
        phase = f", in the phase {self.phase}" if self.phase else ""
        return (
            f"a step of {config.method_name} on {config.scenario.name}: network {network}, task "
            f"{self.size.tasks} of {self.size.tasks}, batch {config.training.batch_size}{phase}"
        )

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return inputs in [0, 1] and labels, drawn at random."""
        generator = torch.Generator().manual_seed(self.config.run.seed % 2**63)
        count = self.config.training.batch_size
        x = torch.rand(count, *self.size.input_shape, generator=generator)
        y = torch.randint(self.size.classes, (count,), generator=generator)
        return x.to(self.device), y.to(self.device)

    @torch.no_grad()
    def learner(self, dtype: torch.dtype | None = None) -> Learner:
        """Return a learner in its last task, always with the same numbers.

        What trains has moved since the task began, so that no residual and no drift is zero.
        Dropout is off: it would draw other entries in each dtype.

        Args:
            dtype: To convert it to. Default: none.

        Raises:
            ConfigError: The method has no such phase.
        """
        torch.manual_seed(self.config.run.seed % 2**63)
        # No kernel or native pass takes part in what all begin with.
        with self.device, backend("reference"):
            made = make_learner(self.config, self.size.input_shape, self.size.classes)
            for module in made.net.modules():
                if isinstance(module, _DropoutNd):
                    module.p = 0.0
            for task in range(self.size.tasks):
                made.add_task(str(task), range(self.size.classes))
            x, _ = self.batch()
            with evaluating(made):
                made(x[:2], self.task)
            self._learn_in_name(made)
            made.begin_task(self.task)
            self._move(made)
        made.to(self.device, dtype)
        names = [phase.name for phase in made.phases(self.task, _STEPS)]
        if self.phase and self.phase not in names:
            raise ConfigError(
                f"phase={self.phase!r} is unknown{nearest(self.phase, names)}; a task of "
                f"{self.config.method_name} has {', '.join(names)}"
            )
        if self.phase and made.phase != self.phase:
            made.begin_phase(self.phase)
        return made.train()

    def _learn_in_name(self, learner: Learner) -> None:
        """Let the earlier tasks be learned, without a step."""
        if isinstance(learner, SubnetworkLearner):
            # Each leaves the mask of its scores.
            for task in range(self.task):
                learner.begin_task(task)
                learner.end_task()
            return
        tensors, state = learner.task_state()
        state |= learner.learned_state(range(self.task))
        learner.load_task_state(tensors, state)

    def _move(self, learner: Learner) -> None:
        hypernetwork = getattr(learner, "hypernetwork", None)
        embeddings = None if hypernetwork is None else hypernetwork.embeddings
        parts = [learner.net, *([learner.norms] if isinstance(learner, ConvertedLearner) else [])]
        moved = [p for part in parts for p in part.parameters() if p.requires_grad]
        for p in (*([] if embeddings is None else [embeddings]), *moved):
            p.add_(torch.randn_like(p), alpha=0.1 if p is embeddings else 1e-3)
