"""HNET+TIR: HNET, and a classifier of tasks that learns from replayed images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.conversion.convert import unconvert
from hypermask_fast.fields import takes_options
from hypermask_fast.methods.base import ordinary_step
from hypermask_fast.methods.hnet.learner import EMBEDDING, HNET, MAIN
from hypermask_fast.methods.hnet_tir.classifier import TASK_CLASSIFIER, TaskClassifier
from hypermask_fast.methods.hnet_tir.settings import HNETTIRSettings
from hypermask_fast.methods.inputs import Given
from hypermask_fast.methods.protocol import Losses, ParameterGroup, Prediction
from hypermask_fast.methods.replay.learner import ReplayLearner, checked_shape
from hypermask_fast.methods.tasks import TaskId


@takes_options(HNETTIRSettings)
class HNETTIR(ReplayLearner, HNET):
    """HNET+TIR (von Oswald et al. 2020): HNET, and a classifier that infers the task of an input.

    From the second task on the classifier of tasks learns from the batch and from images that are
    replayed from earlier tasks (:class:`~hypermask_fast.methods.replay.replay.Replay`), with the
    task as a hard target; each half of its loss is a mean cross-entropy. HNET itself learns as
    without them, to the bit. :meth:`step` steps everything; inputs are images in [0, 1].

    Args:
        net: The target network.
        input_shape: (C, H, W) of an image.
        exclude, example_input: As in :class:`~hypermask_fast.methods.hnet.learner.HNET`.
        settings: The settings; default: those below, with their defaults.
        {options}

    Attributes:
        task_classifier: From inputs to tasks.

    Raises:
        ConfigError: A setting is wrong, or the network has a part whose weights cannot be replaced;
            the network is left as it was.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        input_shape: Sequence[int],
        exclude: str | Sequence[str] = (),
        example_input: Given | None = None,
        settings: HNETTIRSettings | None = None,
        **options: Any,
    ) -> None:
        chosen = HNETTIRSettings.chosen("HNETTIR", settings, options)
        shape = checked_shape(input_shape)
        super().__init__(net, exclude=exclude, example_input=example_input, settings=chosen)
        try:
            like = self.hypernetwork.embeddings
            self._make_replay(shape, chosen, like)
            made = TaskClassifier(math.prod(shape), chosen.task_hidden, chosen.capacity)
            self.task_classifier = made.to(device=like.device, dtype=like.dtype)
        except BaseException:
            unconvert(net)
            raise

    def _grow(self, capacity: int) -> None:
        super()._grow(capacity)
        self.task_classifier.grow(capacity)

    def parameter_groups(self, phase: str = "train") -> Sequence[ParameterGroup]:
        """Return those of HNET, of the replay and, after a first task, of the task classifier."""
        own = {id(p) for p in self.task_classifier.parameters()}
        groups = [
            group._replace(params=[p for p in group.params if id(p) not in own])
            for group in super().parameter_groups(phase)
        ]
        return groups + (self.task_classifier.parameter_groups() if self.replay.earlier else [])

    def step(
        self,
        x: Given,
        y: Any,
        task: TaskId,
        optimizers: Mapping[str, Optimizer],
        before_update: Callable[[], None] | None = None,
    ) -> Losses:
        """Learn from a batch: HNET's step, then the task classifier's and the autoencoder's.

        Args:
            x: Images in [0, 1], (batch, C, H, W).
            y: Local labels int64 (batch,).
            task: The id given to :meth:`begin_task`.
            optimizers: Over :meth:`parameter_groups` of the task that was begun, by name.
            before_update: Called after HNET's forward, before anything is updated.

        Raises:
            ConfigError: An optimizer is missing, or its look-ahead is not known.
            RuntimeError: The task was not begun.
            ValueError: Shapes, devices or labels do not fit, or the images are not in [0, 1].
        """
        x, task = self._checked_batch(x, y, task)
        self._check_names(optimizers)
        number = self._steps.next()
        of_hnet = {name: optimizers[name] for name in (MAIN, EMBEDDING)}
        if self.lookahead:
            found = super().step(x, y, task, of_hnet, before_update)
        else:
            found = ordinary_step(
                super(ReplayLearner, self).losses, x, y, task, of_hnet, before_update
            )
        terms = dict(found.terms)
        replayed = self.replay.sample(self._whole(x), task, number, self.share)
        terms["task_inference"] = found.task.new_zeros(())
        if replayed is not None:
            optimizer, ids = optimizers[TASK_CLASSIFIER], self.replay.kept.ids
            assert ids is not None
            optimizer.zero_grad(set_to_none=True)
            count = replayed.rows_of_mean(self.share)
            loss = self.task_classifier.loss(x, replayed, ids, self.replay_weight, count)
            loss.backward()
            optimizer.step()
            terms["task_inference"] = loss.detach()
        terms["vae"], terms["replay_reg"] = self.replay.learn(
            x, task, number, optimizers, self.share
        )
        more = terms["task_inference"] + terms["vae"] + self.replay.beta * terms["replay_reg"]
        return found._replace(total=found.total.detach() + more, terms=terms)

    @torch.no_grad()
    def task_logits(self, x: Tensor, tasks: Sequence[TaskId]) -> Tensor:
        """Return what the task classifier says of inputs, (batch, tasks), in the tasks' order.

        Args:
            x: Inputs (batch, ...).
            tasks: Ids of tasks that were added.
        """
        ids = torch.tensor([self._tasks.checked(task) for task in tasks], device=x.device)
        return self.task_classifier.logits(x, ids)

    def predict(self, x: Given, score: Any = "tir", **options: Any) -> Prediction:
        """Predict tasks and classes of inputs whose tasks are not known, in evaluation mode.

        Args:
            x: Inputs (batch, ...).
            score: How tasks are told apart. Default "tir": by the task classifier.
            options: As in :meth:`Learner.predict`.

        Raises:
            ValueError, ConfigError, TypeError: As there.
        """
        return super().predict(x, score, **options)

    def memory_parts(self) -> dict[str, Sequence[Tensor]]:
        return {
            **super().memory_parts(),
            "task classifier": list(self.task_classifier.parameters()),
        }
