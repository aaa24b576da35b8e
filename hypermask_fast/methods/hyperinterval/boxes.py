"""What is read of a learner's boxes: networks, bounds, the universal embedding."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hypermask_fast.conversion.convert import unconvert
from hypermask_fast.layers.intervals import Interval, intersection
from hypermask_fast.methods.batches import check_devices, check_weights, run, sum_of
from hypermask_fast.methods.generated import GeneratedLearner
from hypermask_fast.methods.hyperinterval.hypernetwork import IntervalHypernetwork
from hypermask_fast.methods.hyperinterval.ramps import extent_at
from hypermask_fast.methods.hyperinterval.settings import HyperIntervalSettings
from hypermask_fast.methods.hyperinterval.target import BoxNetwork, Exchanged, weights_of
from hypermask_fast.methods.inputs import Batch, Given, Inputs
from hypermask_fast.methods.outputs import cat, stack
from hypermask_fast.methods.tasks import TaskId

_ENTRIES_AT_ONCE = 2**25
"""Target weights that are generated for several tasks together, with their radii 256 MiB."""


class BoxedLearner(GeneratedLearner):
    """A learner whose hypernetwork gives each task a box of weights, beside how it learns.

    Attributes:
        nested: Whether all boxes hold the origin.
        extent: The sum of a box's radii.
    """

    alone = "the weights it was built with, which no task uses"

    hypernetwork: IntervalHypernetwork
    nested: bool
    extent: float
    _boxes: BoxNetwork
    _settings: HyperIntervalSettings

    @property
    def step_extent(self) -> float:
        """The sum of the radii in the step that was taken last."""
        return float(extent_at(max(1, self._steps.taken), self._steps.ramp, self.extent))

    def _ids(self, tasks: Sequence[int]) -> Tensor:
        return torch.tensor(list(tasks), device=self.hypernetwork.embeddings.device)

    def _is_universal(self, task: int) -> bool:
        """Return whether a task has the network that all learned tasks share."""
        shares = self.nested and self._settings.evaluates == "universal"
        return shares and bool(self._learned) and task != self._current

    def universal_box(self) -> tuple[Tensor, Tensor]:
        """Return the bounds (d,) of what the learned tasks' boxes have in common.

        Raises:
            RuntimeError: Embeddings are not nested, or no task was learned.
        """
        if not self.nested or not self._learned:
            state = "no task was learned" if self.nested else "mode is 'task'"
            raise RuntimeError(
                f"{state}, so there is no universal embedding; learn a task with mode='nested'"
            )
        with torch.no_grad():
            centers, radii = self.hypernetwork.box(self._ids(self._learned))
            return intersection(centers - radii, centers + radii)

    def _universal(self) -> Tensor:
        """Return centers and radii (2 N,) of the weights that all learned tasks share."""
        low, up = self.universal_box()
        middle = (low + up)[None] / 2
        radius = torch.full_like(middle, self.extent / self.hypernetwork.embedding_dim)
        return self.hypernetwork.emitted(middle, radius)[0]

    def _emitted(self, task: int, extent: float | None = None) -> Tensor:
        """Return centers and radii (2 N,) of a task's own box, or of those it is evaluated with.

        Args:
            task: A task that was added.
            extent: Of its own box. Default: of the box that it is evaluated with.
        """
        hypernetwork = self.hypernetwork
        if extent is None and self._is_universal(task):
            return self._universal()
        return hypernetwork.emitted(*hypernetwork.box(self._ids([task]), extent))[0]

    def universal_network(self) -> nn.Module:
        """Return a plain copy of the target network that serves all learned tasks without an id.

        It needs neither the hypernetwork nor this package. Where tasks have statistics of
        normalisation of their own, it has those of the task that was learned last.

        Raises:
            RuntimeError: Embeddings are not nested, or no task was learned.
        """
        with torch.no_grad():
            emitted = self._universal()
        net = unconvert(copy.deepcopy(self.net))
        self.install_norms(net, self._learned[-1])
        parameters = dict(net.named_parameters())
        for name, value in weights_of(self._network, emitted.chunk(2)[0]).items():
            parameters[name].data.copy_(value)
        return net.eval()

    @contextmanager
    def activated(
        self, task: TaskId, weights: Mapping[str, Tensor] | None = None
    ) -> Iterator[nn.Module]:
        task = self._tasks.checked(task)
        check_weights(weights)
        if weights is None and self._settings.center == "exchanged":
            states = self.norms.states(task, learning=False)
            yield Exchanged(self._boxes, self._emitted(task), states)
            return
        if weights is None:
            weights = weights_of(self._network, self._emitted(task).chunk(2)[0])
        norms = self.norms.states(task, learning=task == self._current)
        with self._network.applied(weights, norms) as net:
            yield net

    @torch.no_grad()
    def task_weights(self, task: TaskId, *, in_step: bool = False) -> dict[str, Tensor]:
        """Return copies of the center's target parameters that a task is evaluated with, by name.

        Args:
            task: A task that was added.
            in_step: Those of the task's own box, as large as in the step that was taken last.

        Raises:
            ValueError: The task was not added.
        """
        task = self._tasks.checked(task)
        emitted = self._emitted(task, self.step_extent if in_step else None)
        center = weights_of(self._network, emitted.chunk(2)[0])
        return {name: w.detach().clone() for name, w in center.items()}

    @torch.no_grad()
    def weight_bounds(self, task: TaskId) -> dict[str, Interval]:
        """Return the bounds of the target parameters over a task's own box, by name.

        Args:
            task: A task that was added.

        Raises:
            ValueError: The task was not added.
        """
        return self._boxes.bounds(self._emitted(self._tasks.checked(task), self.extent))

    @torch.no_grad()
    def bounds(
        self, x: Given, task: TaskId, *, extent: float | None = None, batch_size: int | None = None
    ) -> Interval:
        """Return bounds (batch, outputs) of the logits over a task's own box, and the center's.

        Those of three passes are none: networks of the box may lie outside.

        Args:
            x: Inputs (batch, ...).
            task: A task that was added.
            extent: The sum of the box's radii. Default: the learner's.
            batch_size: Rows that run together. Default: all.

        Raises:
            ValueError: The task was not added.
        """
        task = self._tasks.checked(task)
        x = self._checked_inputs(x)
        self._prepare(x)
        emitted = self._emitted(task, self.extent if extent is None else extent)
        norms = self.norms.states(task, learning=False)
        batches = x.split(batch_size or max(1, len(x)))
        found = [self._boxes.outputs(rows, emitted, norms) for rows in batches]
        return Interval(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    @torch.no_grad()
    def competing_outputs(
        self, x: Given, tasks: Sequence[TaskId], batch_size: int | None = None
    ) -> Tensor:
        """Return the logits (tasks, batch, outputs) of each task's own center.

        The universal network's are the same for all tasks, which it cannot tell apart.
        """
        ids = self._ids_of(tasks)
        if not any(map(self._is_universal, ids)):
            return super().competing_outputs(x, ids, batch_size)
        x = self._checked_inputs(x)
        found = []
        for task in ids:
            if self._settings.center == "exchanged":
                outputs = self.bounds(x, task, batch_size=batch_size).mid
            else:
                center = self._emitted(task, self.extent).chunk(2)[0]
                with self.activated(task, weights_of(self._network, center)) as net:
                    batches = x.split(batch_size or max(1, len(x)))
                    outputs = cat([run(net, rows, self._input) for rows in batches])
            found.append(self._tasks.own_outputs(outputs, task))
        return stack(found)

    @contextmanager
    def blended(self, alpha: Tensor) -> Iterator[nn.Module]:
        """Return a context in which :attr:`net` has a blend of the tasks' own centers.

        Statistics of normalisation are blended alike.

        Args:
            alpha: (tasks,), a factor for each task that was added; gradients flow to it.

        Raises:
            ValueError: There is not one factor for each task.
        """
        self._tasks.check_factors(alpha)
        check_devices(self._device, alpha=alpha)
        emitted = (self._emitted(task, self.extent) for task in range(len(alpha)))
        centers = (weights_of(self._network, each.chunk(2)[0]) for each in emitted)
        weights = sum_of(centers, alpha)
        with self._network.applied(weights, self.norms.blended(alpha)) as net:
            yield net

    def _outputs_at_once(
        self, x: Batch, ids: Sequence[int], task_of_row: Tensor | None = None
    ) -> Tensor | None:
        """Generate the weights of many tasks together, in one pass over the head."""
        if len(ids) == 1 or isinstance(x, Inputs) or torch.is_grad_enabled():
            return None
        if self._settings.center == "exchanged":
            return None
        together = max(1, _ENTRIES_AT_ONCE // self._network.size)
        if any(map(self._is_universal, ids)) or len(ids) > together:
            return None
        emitted = self.hypernetwork.logits(self._ids(ids))
        outputs = []
        for place, (task, each) in enumerate(zip(ids, emitted, strict=True)):
            rows = x if task_of_row is None else x[task_of_row == place]
            with self.activated(task, weights_of(self._network, each.chunk(2)[0])) as net:
                outputs.append(run(net, rows, self._input))
        joined = cat(outputs)
        if not isinstance(joined, Tensor):
            return None
        if task_of_row is None:
            return joined
        return joined[task_of_row.argsort(stable=True).argsort()]
