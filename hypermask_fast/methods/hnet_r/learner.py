"""HNET+R: one network for all tasks, which learns from images that a protected decoder replays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.fields import takes_options
from hypermask_fast.methods.batches import WithWeights, check_weights, run
from hypermask_fast.methods.evaluating import evaluating, modes_of
from hypermask_fast.methods.hnet.heads import (
    check_blendable,
    check_classes,
    refuse_criterion,
    rows_of,
    shrink,
    with_rows,
)
from hypermask_fast.methods.hnet_r.distillation import Teacher, distillation, growing_loss
from hypermask_fast.methods.hnet_r.output_layer import output_layer
from hypermask_fast.methods.hnet_r.settings import HNETRSettings
from hypermask_fast.methods.inputs import Batch, Given
from hypermask_fast.methods.protocol import Losses, Prediction
from hypermask_fast.methods.replay.learner import ReplayLearner, checked_shape
from hypermask_fast.methods.replay.replay import REPLAY_EMBEDDING, REPLAY_OPTIMIZER, Replayed
from hypermask_fast.methods.steps import Steps
from hypermask_fast.methods.tasks import TaskId

MAIN = "main"


@takes_options(HNETRSettings)
class HNETR(ReplayLearner):
    """HNET+R (von Oswald et al. 2020): an ordinary network with replay of earlier tasks' images.

    From the second task on the loss has two parts, mixed by ``replay_weight``: the cross-entropy of
    the batch, and for images that are replayed from earlier tasks
    (:class:`~hypermask_fast.methods.replay.replay.Replay`) the distillation of what the network
    said of them before the task. No hypernetwork generates the network; one generates the decoders.
    :meth:`step` steps everything; inputs are images in [0, 1].

    With ``task_heads="growing"`` all outputs so far are one softmax, and "max_logit" infers tasks
    by it, and classes with them.

    Args:
        net: The network; it is not converted.
        input_shape: (C, H, W) of an image.
        settings: The settings; default: those below, with their defaults.
        {options}

    Raises:
        ConfigError: A setting is wrong, or images of the shape do not run through the network.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        input_shape: Sequence[int],
        settings: HNETRSettings | None = None,
        **options: Any,
    ) -> None:
        chosen = HNETRSettings.chosen("HNETR", settings, options)
        shape = checked_shape(input_shape)
        like, self._last, outputs = output_layer(net, shape)
        super().__init__(net, capacity=chosen.capacity)
        self._settings = chosen
        self.task_heads, self.temperature = chosen.task_heads, chosen.temperature
        self._outputs = outputs
        self._steps = Steps(like.device)
        self.teacher = Teacher()
        self._make_replay(shape, chosen, like)

    def add_task(self, name: str | None = None, classes: Sequence[int] | None = None) -> int:
        check_classes(classes, self.task_heads)
        return super().add_task(name, classes)

    def begin_task(self, task: TaskId, *, steps: int = 0, data: object = None) -> None:
        super().begin_task(task, steps=steps, data=data)
        if self.replay.earlier:
            self.teacher.record(self.net)

    def _leave(self) -> None:
        super()._leave()
        self.teacher.copy = None

    def _rows(self, task: int, *, so_far: bool = False) -> slice:
        """Return the outputs that a task has, or those of the tasks up to it."""
        if self.task_heads == "shared":
            return slice(0, self._outputs)
        return rows_of(self.tasks, task, self._outputs, so_far=so_far)

    def step(
        self,
        x: Given,
        y: Any,
        task: TaskId,
        optimizers: Mapping[str, Optimizer],
        before_update: Callable[[], None] | None = None,
    ) -> Losses:
        """Learn from a batch: the network's step, then the autoencoder's.

        Args:
            x: Images in [0, 1], (batch, C, H, W).
            y: Local labels int64 (batch,).
            task: The id given to :meth:`begin_task`.
            optimizers: Over :meth:`parameter_groups`, by name.
            before_update: Called after the forward, before anything is updated.

        Raises:
            ConfigError: An optimizer is missing, or its look-ahead is not known.
            RuntimeError: The task was not begun.
            ValueError: Shapes, devices or labels do not fit, or the images are not in [0, 1].
        """
        x, task = self._checked_batch(x, y, task)
        self._check_names(optimizers)
        number = self._steps.next()
        optimizers[MAIN].zero_grad(set_to_none=True)
        task_loss, distilled, outputs = self._of_batch(x, y, task, number)
        loss = task_loss
        if self.replay.earlier:
            loss = (1 - self.replay_weight) * task_loss + self.replay_weight * distilled
        if before_update is not None:
            before_update()
        loss.backward()
        optimizers[MAIN].step()
        of_replay = {name: optimizers[name] for name in (REPLAY_OPTIMIZER, REPLAY_EMBEDDING)}
        vae, replay_reg = self.replay.learn(x, task, number, of_replay, self.share)
        self._steps.count()
        terms = {"distillation": distilled, "vae": vae, "replay_reg": replay_reg}
        total = loss.detach() + vae + self.replay.beta * replay_reg
        return Losses(total, task_loss, outputs, terms)

    def _of_batch(
        self, x: Tensor, y: Tensor, task: int, number: int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses of a batch and of replayed images, and the batch's outputs."""
        replayed = self.replay.sample(self._whole(x), task, number, self.share)
        if replayed is None or not len(replayed.x):
            with modes_of(self):
                outputs = run(self.net, x)
            distilled = x.new_zeros(())
        else:
            images = replayed.x.to(x)
            with evaluating(self, self.net):
                said = self.teacher(self.net, images)
            with modes_of(self):
                outputs = run(self.net, torch.cat((x, images)))
            distilled = self._distilled(outputs[len(x) :], said, task, replayed)
        grows = self.task_heads == "growing"
        if grows:
            refuse_criterion(self.criterion)
        rows = self._rows(task)
        own = self._rows(max((task, *self.replay.earlier)), so_far=True) if grows else rows
        outputs = outputs[: len(x), own]
        if not grows:
            task_loss, outputs = self._loss_of(outputs, y, task, None)
            return task_loss, distilled, outputs
        self._tasks.check_labels(y, task, rows.stop - rows.start)
        return F.cross_entropy(outputs, y + rows.start), distilled, outputs

    def _distilled(self, logits: Tensor, said: Tensor, task: int, replayed: Replayed) -> Tensor:
        part = replayed.rows_of_mean(self.share)
        if self.task_heads == "growing":
            so_far = self._rows(max((task, *replayed.tasks)), so_far=True)
            rows = [self._rows(earlier) for earlier in replayed.tasks]
            return growing_loss(logits[:, so_far], said[:, so_far], rows, self.temperature, part)
        if self.task_heads == "shared":
            return distillation(logits, said, self.temperature, part)
        count = len(replayed.tasks)
        parts = zip(replayed.tasks, logits.chunk(count), said.chunk(count), strict=True)
        part = None if part is None else part / count
        losses = [
            distillation(each[:, self._rows(j)], kept[:, self._rows(j)], self.temperature, part)
            for j, each, kept in parts
        ]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _copy_rows(self, source: int, task: int) -> None:
        """Copy the outputs of a task too, where tasks have outputs of their own: the first ones."""
        super()._copy_rows(source, task)
        if self.task_heads == "shared":
            return
        old, new = self._rows(source), self._rows(task)
        count = min(old.stop - old.start, new.stop - new.start)
        for value in self.net.get_submodule(self._last).parameters(recurse=False):
            value[new.start : new.start + count] = value[old.start : old.start + count]

    def _own_weights(self, task: int) -> dict[str, Tensor]:
        """Return the network's parameters by name, with the rows of a task's outputs alone."""
        return with_rows(dict(self.net.named_parameters()), self._last, self._rows(task))

    def activated(
        self, task: TaskId, weights: Mapping[str, Tensor] | None = None
    ) -> AbstractContextManager[nn.Module]:
        task = self._tasks.checked(task)
        check_weights(weights)
        return nullcontext(
            WithWeights(self.net, self._own_weights(task) if weights is None else weights)
        )

    def task_weights(self, task: TaskId, *, in_step: bool = False) -> dict[str, Tensor]:
        task = self._tasks.checked(task)
        return {name: p.detach().clone() for name, p in self._own_weights(task).items()}

    def blended(self, alpha: Tensor) -> AbstractContextManager[nn.Module]:
        check_blendable(self.tasks, self.task_heads)
        return super().blended(alpha)

    def install_norms(self, net: nn.Module, task: TaskId) -> None:
        """Leave a plain copy of the network the task's outputs alone."""
        if self.task_heads != "shared":
            shrink(net, self._last, self._rows(self._tasks.checked(task)))

    def _outputs_at_once(
        self, x: Batch, ids: Sequence[int], task_of_row: Tensor | None = None
    ) -> Tensor | None:
        """Run the network once, and take each task's outputs of it."""
        outputs = run(self.net, x, self._input)
        rows = [self._rows(task) for task in ids]
        width = max(self._rows(i).stop - self._rows(i).start for i in range(len(self.tasks)))
        parts = [
            F.pad(outputs[:, own], (0, width - (own.stop - own.start)), value=-torch.inf)
            for own in rows
        ]
        if task_of_row is None:
            return torch.cat(parts)
        return torch.stack(parts)[task_of_row, torch.arange(len(x), device=x.device)]

    def predict(self, x: Given, score: Any = "max_logit", **options: Any) -> Prediction:
        """Predict tasks and classes of inputs whose tasks are not known, in evaluation mode.

        Args:
            x: Inputs (batch, ...).
            score: How tasks are told apart. Default "max_logit": the task of the largest output.
            options: As in :meth:`Learner.predict`.

        Raises:
            ValueError, ConfigError, TypeError: As there.
        """
        return super().predict(x, score, **options)

    def memory_parts(self) -> dict[str, Sequence[Tensor]]:
        return {
            **super().memory_parts(),
            "copy of the network before the task": self.teacher.held_tensors(),
        }

    def facts(self) -> dict[str, int]:
        return {"parameters": sum(p.numel() for p in self.net.parameters()), **super().facts()}

    def fixed_in_graph(self) -> tuple[object, ...]:
        return *super().fixed_in_graph(), self.task_heads, self.temperature

    def task_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().task_state()
        copy = self.teacher.copy
        return tensors if copy is None else {**tensors, "teacher": copy}, state

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().load_task_state(tensors, state)
        copy = tensors.get("teacher")
        self.teacher.copy = None if copy is None else copy.to(self._device)
