"""HyperInterval: each task's weights are a box, and one network may serve all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.console.words import size
from hypermask_fast.conversion.convert import freeze
from hypermask_fast.conversion.patterns import Patterns
from hypermask_fast.fields import takes_options
from hypermask_fast.hypernetworks.autograd import HeadUpdate
from hypermask_fast.hypernetworks.kept import KeptOutputs
from hypermask_fast.layers.norms import check_module
from hypermask_fast.methods.batches import check_devices, check_labels, random_state_kept
from hypermask_fast.methods.evaluating import modes_of
from hypermask_fast.methods.hyperinterval.boxes import BoxedLearner
from hypermask_fast.methods.hyperinterval.hypernetwork import IntervalHypernetwork
from hypermask_fast.methods.hyperinterval.ramps import extent_at, kappa_at
from hypermask_fast.methods.hyperinterval.settings import HyperIntervalSettings
from hypermask_fast.methods.hyperinterval.target import BoxNetwork, check_monotone
from hypermask_fast.methods.inputs import Given
from hypermask_fast.methods.outputs import Criterion
from hypermask_fast.methods.protocol import Losses, ParameterGroup
from hypermask_fast.methods.tasks import TaskId


@takes_options(HyperIntervalSettings)
class HyperInterval(BoxedLearner):
    """HyperInterval (HINT), over any network with ``arithmetic="three_pass"``.

    The hypernetwork turns the box of a task's embedding into a box of target weights, center c and
    radius r. The loss is ``kappa CE(center) + (1 - kappa) CE(worst case) + beta output_reg``, where
    the worst case takes the lower bound of the label's logit and the upper bounds of the others,
    and output_reg is the mean over the t earlier tasks of ``|dc|^2 + 2/3 |dr|^2`` (nested: a third
    of the squared changes of low, center and up) or of ``|dc|^2``, with ``division="twice"``
    divided by t once more. The boxes grow from points over the first half of a task's steps.
    Earlier embeddings do not move. Use a new optimizer for each task.

    Nested boxes all hold the origin, so that the learned ones have an intersection. The network of
    its middle, :meth:`universal_network`, is what all learned tasks are evaluated with.

    The network is converted in place; :func:`hypermask_fast.unconvert` undoes it.

    Args:
        net: The target network. With ``arithmetic="interval"`` it has linear and convolution
            layers, and between them only what never falls as its input rises; dropout is off there.
        exclude: Names or globs of modules and parameters, classes of modules, or functions of a
            name and a part, for what stays plain and frozen; only with ``arithmetic="three_pass"``.
            Default: nothing.
        settings: The settings; default: those below, with their defaults.
        {options}

    Raises:
        ConfigError: A setting is wrong, or the network has a part whose weights cannot be replaced
            or whose bounds are not known; the network is left as it was.
    """

    @random_state_kept
    def __init__(
        self,
        net: nn.Module,
        *,
        exclude: Patterns = (),
        settings: HyperIntervalSettings | None = None,
        **options: Any,
    ) -> None:
        chosen = HyperIntervalSettings.chosen("HyperInterval", settings, options)
        self._settings = chosen
        self.nested = chosen.mode == "nested"
        self.extent, self.kappa, self.beta = chosen.extent, chosen.kappa, chosen.beta
        check_module(net)
        if chosen.arithmetic == "interval":
            check_monotone(net, exclude)
        super().__init__(
            net,
            capacity=chosen.capacity,
            exclude=exclude,
            source="generated",
            bn=chosen.bn,
            kept=KeptOutputs(chosen.targets),
            norms_too=True,
        )
        freeze(net, [name for name, _ in net.named_parameters()])
        self._boxes = BoxNetwork(self._network, by_passes=chosen.arithmetic == "three_pass")

    def _make_hypernetwork(self, size: int, like: Tensor) -> IntervalHypernetwork:
        chosen = self._settings
        return IntervalHypernetwork(
            size,
            nested=self.nested,
            extent=chosen.extent,
            embedding_dim=chosen.embedding_dim,
            hidden=chosen.hidden,
            capacity=chosen.capacity,
            device=like.device,
            dtype=like.dtype,
        )

    def parameter_groups(self, phase: str = "train") -> Sequence[ParameterGroup]:
        """Return all but the tables, with the head, and the tables of embeddings and radii."""
        radii = self.hypernetwork.radii
        shared, tables = super().parameter_groups(phase)
        if radii is None:
            return [shared, tables]
        return [
            shared._replace(params=[p for p in shared.params if p is not radii]),
            tables._replace(params=[*tables.params, radii]),
        ]

    def begin_task(self, task: TaskId, *, steps: int = 0, data: object = None) -> None:
        """Start learning a task: record what the earlier tasks' boxes become.

        Args:
            task: A task that was added.
            steps: Calls of :meth:`losses` that the task will have: over the first half of them the
                extent rises and kappa falls. Default 0: both are the final ones.
            data: Not looked at.

        Raises:
            ValueError: The task was not added, or the number of steps is negative.
            RuntimeError: Another task has not been ended.
        """
        super().begin_task(task, steps=steps, data=data)
        self._steps.start(steps // 2)
        assert self._current is not None
        task, earlier = self._current, self._earlier(self._current)
        is_new = task not in self._learned and self.tasks[task].like is None
        if self._settings.new_embedding == "previous" and earlier and is_new:
            with torch.no_grad():
                table = self.hypernetwork.embeddings
                table[task] = table[earlier[-1]]

    def losses(
        self,
        x: Given,
        y: Any,
        task: TaskId,
        *,
        optimizer: Optimizer | None = None,
        criterion: Criterion | None = None,
    ) -> Losses:
        """Return the losses of a batch of the current task; call ``.total.backward()``.

        Each call counts as a step of the ramps. The task's loss is the sum of both cross-entropies,
        weighted; the logits are the center's.

        Args:
            x, task: As in :meth:`Learner.losses`; inputs of the network's dtype.
            y: Local labels int64 (batch,), whatever the criterion: the worst case goes by them.
            criterion: As there, of outputs (batch, outputs); it is taken of the center and of the
                worst case.
            optimizer: A :class:`~hypermask_fast.FactoredAdam` with ``step_in_backward=True``, which
                updates the head in the backward pass of these losses.

        Raises:
            RuntimeError: The task was not begun.
            ValueError: Shapes, dtypes, devices or labels do not fit.
        """
        x, task = self._checked_batch(x, y, task, criterion)
        self._prepare(x)
        step = self._steps.next()
        kappa = kappa_at(step, self._steps.ramp, self.kappa)
        update = self.hypernetwork.head_update(optimizer)
        emitted, output_reg = self._regularized(step, update)
        norms = self.norms.states(task, learning=True)
        with modes_of(self):
            found = self._boxes.outputs(x, emitted, norms, self._compiled_net, self._input)
        is_own = criterion is not None or self.criterion is not None
        if is_own and found.mid.dim() != 2:
            raise ValueError(
                f"the outputs have shape {tuple(found.mid.shape)}, and the worst case is of those "
                "of one label a row, (batch, outputs); use another method for them"
            )
        low, mid, up = (self._own_outputs(each, task, alone=is_own) for each in found)
        center_loss, _ = self._loss_of(mid, y, task, criterion)
        label = F.one_hot(y, low.shape[-1]).bool()
        worst_loss, _ = self._loss_of(torch.where(label, low, up), y, task, criterion)
        if isinstance(kappa, Tensor):
            kappa = kappa.to(center_loss.dtype)
        task_loss = kappa * center_loss + (1 - kappa) * worst_loss
        total = task_loss + self._output_factor * output_reg
        if update is not None:
            update.completes(total, self._output_factor)
        self._steps.count()
        terms = {"output_reg": output_reg, "center": center_loss, "worst_case": worst_loss}
        return Losses(total, task_loss, mid, terms)

    def _regularized(
        self, step: int | Tensor, update: HeadUpdate | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what the current task's box becomes, (2 N,), and the output regularizer, 0-d."""
        ids, kept, _ = self._kept.at(step)
        assert kept is None or isinstance(kept, Tensor)
        extent = extent_at(step, self._steps.ramp, self.extent)
        emitted, output_reg = self.hypernetwork.regularized(ids, kept, extent, update)
        return self._exchanged(emitted), output_reg

    @property
    def _output_factor(self) -> float:
        twice = self._settings.division == "twice"
        return self.beta / (max(1, self._kept.earlier) if twice else 1)

    def regularization(self, task: TaskId) -> Tensor:
        """Return ``beta * output_reg``, divided as in :meth:`losses`; see :class:`Learner`.

        The worst case of a batch is a part of its loss, and not in here.
        """
        self._checked_current(task)
        _, output_reg = self._regularized(self._steps.next())
        self._steps.count()
        return self._output_factor * output_reg

    def _checked_batch(
        self, x: Given, y: Any, task: TaskId, criterion: Criterion | None = None
    ) -> tuple[Any, int]:
        batch, task = super()._checked_batch(x, y, task, criterion)
        check_devices(self._device, labels=y)
        check_labels(batch, y)
        return batch, task

    @property
    def scores_by_accuracy(self) -> bool:
        return not self.nested

    def published_score(self, losses: Losses, accuracy: float) -> float:
        """Return what the published selection keeps the highest of.

        Of nested tasks minus the loss of a step whose extent rounds to the final one, the others
        not being taken: where no step is, the model from the start of the task is kept, as with
        extents below 1.
        """
        if not self.nested:
            return accuracy
        return -float(losses.total) if round(self.step_extent) == self.extent else -torch.inf

    def fixed_in_graph(self) -> tuple[object, ...]:
        settings = (self.extent, self.kappa, self.beta, self._settings)
        return *super().fixed_in_graph(), *settings, self._steps.ramp

    def report(self) -> str:
        """Return a table of the target's parameters, and the size of the hypernetwork."""
        hypernetwork = self.hypernetwork
        tables = [hypernetwork.embeddings] + ([] if self.nested else [hypernetwork.radii])
        of_task = sum(table.shape[1] for table in tables if table is not None)
        shared = sum(p.numel() for p in hypernetwork.parameters())
        shared -= of_task * self.capacity
        kept = self._network.size * (2 if self.nested else 1)
        each = 2 if self._settings.targets == "bfloat16" else hypernetwork.head.weight.itemsize
        return "\n".join(
            [
                *self._network.table({}),
                f"hypernetwork: {shared:,} parameters and {of_task} for each task, for "
                f"{self._network.size:,} target weights",
                f"kept while training: {size(kept * each)} for each earlier task",
                self._outside,
            ]
        )

    def facts(self) -> dict[str, int]:
        head = self.hypernetwork.head
        return {
            "target_weights": self._network.size,
            "head_width": head.in_features,
            "head_parameters": sum(p.numel() for p in head.parameters()),
        }
