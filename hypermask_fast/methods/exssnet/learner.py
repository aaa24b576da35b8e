"""ExSSNeT: a task selects weights by a mask, then trains those that no earlier task selected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.fields import takes_options
from hypermask_fast.masks.packed import union, unpack
from hypermask_fast.methods.exssnet import transfer
from hypermask_fast.methods.exssnet.editable import EditableWeights
from hypermask_fast.methods.exssnet.settings import ExSSNeTSettings
from hypermask_fast.methods.inputs import Given
from hypermask_fast.methods.protocol import Losses, ParameterGroup, Phase
from hypermask_fast.methods.subnetwork import SubnetworkLearner
from hypermask_fast.methods.tasks import TaskId

MASK, WEIGHTS = "mask", "weights"


def _write_back(learner: ExSSNeT, *_: Any) -> None:
    """Give the weights what was trained, before a ``state_dict`` is taken."""
    learner._write_back()


def _renew(learner: ExSSNeT, _: Any) -> None:
    """Follow a ``state_dict`` that was loaded, into the learner or into a module that has it."""
    learner._renew()


@takes_options(ExSSNeTSettings)
class ExSSNeT(SubnetworkLearner):
    """ExSSNeT and SSNeT (Yadav and Bansal), over linear, conv and normalisation layers.

    A task has two phases with an optimizer each. In "mask" its scores learn which weights to keep,
    the largest by magnitude, whatever the weights are by then. In "weights" the mask stays, and
    those of its weights are trained that are in no earlier task's mask; the others are used as they
    are. So nothing is forgotten. With ``editable="original"`` (SSNeT) all weights of the mask are
    trained, and earlier tasks change where masks overlap.

    Between :meth:`begin_phase` and the end of "weights", the parameter to train is :attr:`edited`;
    :meth:`parameter_groups` and ``parameters()`` have it.

    Args:
        net: The target network; see :class:`SubnetworkLearner` for what becomes of it.
        exclude: Names or globs of modules and parameters, classes of modules, or functions of a
            name and a part, for what stays plain and frozen. Default: nothing.
        settings: The settings; default: those below, with their defaults.
        {options}

    Attributes:
        edited: The weights in training, or None.

    Raises:
        ConfigError: A setting is wrong, or the network has a part that cannot be masked; the
            network is left as it was.
    """

    settings_class = ExSSNeTSettings
    _settings: ExSSNeTSettings
    edited: EditableWeights | None

    def _add_own(self) -> None:
        self.edited = None
        # Neither is bound to this learner, for a copy has them too.
        self.register_state_dict_pre_hook(_write_back)
        self.register_load_state_dict_post_hook(_renew)

    def phases(self, task: TaskId, steps: int) -> Sequence[Phase]:
        of_mask = min(steps, max(1, round(steps * self._settings.mask_share)))
        return [Phase(MASK, of_mask), Phase(WEIGHTS, steps - of_mask)]

    def parameter_groups(self, phase: str = MASK) -> Sequence[ParameterGroup]:
        if phase == WEIGHTS and self.edited is not None:
            return [ParameterGroup([self.edited.values], lr=self._settings.weight_lr)]
        return [ParameterGroup([self.scores])]

    def target_weights(self) -> Iterable[Tensor]:
        edited = () if self.edited is None else (self.edited.values,)
        return (*super().target_weights(), *edited)

    def begin_phase(self, name: str) -> None:
        if name == WEIGHTS:
            self._edit()
        else:
            self._write_back()
            self._train_scores()
        super().begin_phase(name)

    def begin_task(self, task: TaskId, *, steps: int = 0, data: object = None) -> None:
        """Start learning a task, with new scores or, by ``kkt``, those of earlier tasks.

        Args:
            task, steps: As in :meth:`Learner.begin_task`.
            data: What ``kkt`` looks at: a :class:`hypermask_fast.scenarios.Task`, or batches
                (x, y).

        Raises:
            ValueError, RuntimeError: As there.
            ConfigError: ``kkt`` is on, a task was learned, and there are no data or too few.
        """
        super().begin_task(task, steps=steps, data=data)

    def _scores_from(self, task: int, data: object) -> Tensor:
        copies = self._settings.kkt != "off" and not self._has_mask(task)
        if copies and self._learned and not self.scores.is_meta:
            chosen = transfer.donors(self, self._learned, task, data, self._settings, self._seed)
            if chosen:
                return torch.stack([self._scores_of(other, task) for other in chosen]).mean(0)
        return super()._scores_from(task, data)

    @torch.no_grad()
    def _edit(self) -> None:
        """Make the parameter of the weights that the current task may change."""
        assert self._current is not None
        mask = self._mask_of(self.scores)
        self.scores.requires_grad_(False)
        self.scores.grad = None
        self.edited = EditableWeights(
            self._network.weights(),
            mask,
            mask & ~self._taken(self._current),
            [n - d for n, d in zip(self._sizes, self._dropped, strict=True)],
        )

    def _taken(self, task: int) -> Tensor:
        """Return the weights that must not move for the sake of other tasks, bool (N,)."""
        others = [other for other in self._learned if other != task]
        if self._settings.editable == "original":
            others = []
        rows = [self.bits[other] for other in others]
        taken = unpack(union(rows, self.bits[task]), self._network.size)
        for part, is_frozen in zip(taken.split(self._sizes), self._frozen, strict=True):
            if is_frozen:
                part.fill_(True)
        return taken

    def editable(self) -> dict[str, Tensor]:
        """Return which weights the current task may change by its present mask, by name, bool.

        Raises:
            RuntimeError: No task was begun.
        """
        task = self._require_current("editable")
        mask = self._flat_mask(task) & ~self._taken(task)
        return self._named(self._shaped(mask))

    def _write_back(self) -> None:
        if self.edited is not None:
            self.edited.write_back(self._network.weights())

    def _training_weights(self) -> list[Tensor]:
        return super()._training_weights() if self.edited is None else self.edited.products()

    def step(
        self,
        x: Given,
        y: Any,
        task: TaskId,
        optimizers: Mapping[str, Optimizer],
        before_update: Callable[[], None] | None = None,
    ) -> Losses:
        losses = super().step(x, y, task, optimizers, before_update)
        self._write_back()
        return losses

    def task_weights(self, task: TaskId, *, in_step: bool = False) -> dict[str, Tensor]:
        self._write_back()
        return super().task_weights(task, in_step=in_step)

    @contextmanager
    def blended(self, alpha: Tensor) -> Iterator[nn.Module]:
        self._write_back()
        with super().blended(alpha) as net:
            yield net

    @torch.no_grad()
    def end_task(self, data: object = None) -> None:
        self._require_current("end_task")
        self._write_back()
        super().end_task(data)

    def _leave(self) -> None:
        super()._leave()
        self._train_scores()

    def _train_scores(self) -> None:
        """Train the scores, and no weights."""
        self.edited = None
        self.scores.requires_grad_(True)

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        super().restore(weights)
        self._renew()

    def _renew(self) -> None:
        """Follow weights and scores that were set from outside."""
        if self.edited is not None:
            self._edit()

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self._check_state(tensors, state)
        self._train_scores()
        super().load_task_state(tensors, state)

    def memory_parts(self) -> Mapping[str, Sequence[Tensor]]:
        edited = [] if self.edited is None else [*self.edited.parameters(), *self.edited.buffers()]
        return {
            **super().memory_parts(),
            "weights in training": edited,
        }
