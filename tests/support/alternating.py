"""A small method of another shape than HyperMask's: a plain network, two phases, two optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.fields import setting
from hypermask_fast.methods import registry
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.inputs import Given
from hypermask_fast.methods.outputs import Criterion
from hypermask_fast.methods.protocol import Losses, ParameterGroup, Phase
from hypermask_fast.methods.settings import MethodSettings
from hypermask_fast.methods.tasks import TaskId

NAME = "alternating"


@dataclass(frozen=True, kw_only=True)
class AlternatingSettings(MethodSettings):
    """Settings of :class:`AlternatingLearner`."""

    body_lr: float = setting(1e-2, "learning rate of all but the classifier", above=0.0)
    decay: float = setting(0.1, "weight of the squared distance to the last task's weights")

    def cheaper(self) -> list[dict[str, Any]]:
        return [{"decay": 0.0}]


class AlternatingLearner(Learner):
    """One network for all tasks, which is held near its weights before each task.

    In the first half of a task's steps, classifier and body are stepped one after the other on each
    batch, by two optimizers; in the second half together, by one.
    """

    def __init__(
        self, net: nn.Module, *, settings: AlternatingSettings | None = None, **options: Any
    ) -> None:
        chosen = AlternatingSettings.chosen("AlternatingLearner", settings, options)
        super().__init__(net, capacity=4)
        self._settings = chosen
        self.body_lr, self.decay = chosen.body_lr, chosen.decay
        self.seen: list[object] = []
        self.register_buffer("anchor", None, persistent=False)

    def _flat(self) -> Tensor:
        return torch.cat([p.flatten() for p in self.net.parameters()])

    def phases(self, task: TaskId, steps: int) -> Sequence[Phase]:
        return [Phase("apart", steps // 2), Phase("together", steps - steps // 2)]

    def parameter_groups(self, phase: str = "together") -> Sequence[ParameterGroup]:
        *body, weight, bias = self.net.parameters()
        if phase == "together":
            return [ParameterGroup([*body, weight, bias])]
        return [
            ParameterGroup([weight, bias], "classifier"),
            ParameterGroup(body, "body", lr=self.body_lr),
        ]

    def begin_task(self, task: TaskId, *, steps: int = 0, data: object = None) -> None:
        super().begin_task(task, steps=steps, data=data)
        self.anchor = self._flat().detach().clone() if self.learned and self.decay else None
        self.seen.append(data)

    def end_task(self, data: object = None) -> None:
        super().end_task(data)
        self.anchor = None

    def losses(
        self,
        x: Given,
        y: Any,
        task: TaskId,
        *,
        optimizer: Optimizer | None = None,
        criterion: Criterion | None = None,
    ) -> Losses:
        plain = super().losses(x, y, task, criterion=criterion)
        drift = plain.task.new_zeros(())
        if self.anchor is not None:
            drift = (self._flat() - self.anchor).square().sum()
        return Losses(plain.task + self.decay * drift, plain.task, plain.logits, {"drift": drift})

    def step(
        self,
        x: Given,
        y: Any,
        task: TaskId,
        optimizers: Mapping[str, Optimizer],
        before_update: Callable[[], None] | None = None,
    ) -> Losses:
        if self.phase == "together":
            return super().step(x, y, task, optimizers, before_update)
        assert list(optimizers) == ["classifier", "body"]
        for i, optimizer in enumerate(optimizers.values()):
            self.zero_grad()
            losses = self.losses(x, y, task)
            if i == 0 and before_update is not None:
                before_update()
            losses.total.backward()
            optimizer.step()
        return losses

    def memory_parts(self) -> Mapping[str, Sequence[Tensor]]:
        return {"weights to stay near": [] if self.anchor is None else [self.anchor]}

    def facts(self) -> Mapping[str, int]:
        return {"parameters": sum(p.numel() for p in self.net.parameters())}

    def task_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().task_state()
        return tensors if self.anchor is None else {"anchor": self.anchor}, state

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().load_task_state(tensors, state)
        self.anchor = tensors.get("anchor")


def register() -> None:
    module = AlternatingLearner.__module__
    registry.register(NAME, f"{module}:AlternatingSettings", f"{module}:AlternatingLearner")
