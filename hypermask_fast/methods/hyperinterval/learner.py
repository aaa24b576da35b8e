"""HyperInterval: each task's weights are a box, and one network may serve all tasks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.conversion.convert import freeze, unconvert
from hypermask_fast.conversion.patterns import Patterns
from hypermask_fast.fields import takes_options
from hypermask_fast.hypernetworks.kept import KeptOutputs
from hypermask_fast.layers.intervals import Interval, intersection
from hypermask_fast.layers.norms import check_module
from hypermask_fast.methods.batches import (
    check_devices,
    check_weights,
    random_state_kept,
    run,
    sum_of,
)
from hypermask_fast.methods.evaluating import modes_of
from hypermask_fast.methods.generated import GeneratedLearner
from hypermask_fast.methods.hyperinterval.hypernetwork import IntervalHypernetwork
from hypermask_fast.methods.hyperinterval.ramps import extent_at, kappa_at
from hypermask_fast.methods.hyperinterval.settings import HyperIntervalSettings
from hypermask_fast.methods.hyperinterval.target import (
    BoxNetwork,
    Exchanged,
    check_monotone,
    weights_of,
)
from hypermask_fast.methods.protocol import Losses, ParameterGroup

_ENTRIES_AT_ONCE = 2**25
"""Target weights that are generated for several tasks together, with their radii 256 MiB."""


@takes_options(HyperIntervalSettings)
class HyperInterval(GeneratedLearner):
    """HyperInterval (HINT), over any network.

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
        settings: The settings; default: those below, with their defaults.
        {options}

    Raises:
        ConfigError: A setting is wrong, or the network has a part whose weights cannot be replaced
            or whose bounds are not known; the network is left as it was.
    """

    hypernetwork: IntervalHypernetwork

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

    def begin_task(self, task: int, *, steps: int = 0, data: object = None) -> None:
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
        self, task: int, weights: Mapping[str, Tensor] | None = None
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
    def task_weights(self, task: int, *, in_step: bool = False) -> dict[str, Tensor]:
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
    def weight_bounds(self, task: int) -> dict[str, Interval]:
        """Return the bounds of the target parameters over a task's own box, by name.

        Args:
            task: A task that was added.

        Raises:
            ValueError: The task was not added.
        """
        return self._boxes.bounds(self._emitted(self._tasks.checked(task), self.extent))

    @torch.no_grad()
    def bounds(self, x: Tensor, task: int) -> Interval:
        """Return bounds (batch, outputs) of the logits over a task's own box, and the center's.

        Those of three passes are none: networks of the box may lie outside.

        Args:
            x: Inputs (batch, ...).
            task: A task that was added.

        Raises:
            ValueError: The task was not added.
        """
        task = self._tasks.checked(task)
        check_devices(self._device, inputs=x)
        self._prepare(x)
        emitted = self._emitted(task, self.extent)
        return self._boxes.outputs(x, emitted, self.norms.states(task, learning=False))

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
        self, x: Tensor, ids: Sequence[int], task_of_row: Tensor | None = None
    ) -> Tensor | None:
        """Generate the weights of many tasks together, in one pass over the head."""
        if len(ids) == 1 or torch.is_grad_enabled() or self._settings.center == "exchanged":
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
        joined = torch.cat(outputs)
        if task_of_row is None:
            return joined
        return joined[task_of_row.argsort(stable=True).argsort()]

    def losses(
        self, x: Tensor, y: Tensor, task: int, *, optimizer: Optimizer | None = None
    ) -> Losses:
        """Return the losses of a batch of the current task; call ``.total.backward()``.

        Each call counts as a step of the ramps. The task's loss is the sum of both cross-entropies,
        weighted; the logits are the center's.

        Args:
            x: Inputs (batch, ...), of the network's dtype.
            y: Local labels int64 (batch,).
            task: The id given to :meth:`begin_task`.
            optimizer: A :class:`~hypermask_fast.FactoredAdam` with ``step_in_backward=True``, which
                updates the head in the backward pass of these losses.

        Raises:
            RuntimeError: The task was not begun.
            ValueError: Shapes, dtypes, devices or labels do not fit.
        """
        task = self._checked_batch(x, y, task)
        self._prepare(x)
        step = self._steps.next()
        extent = extent_at(step, self._steps.ramp, self.extent)
        kappa = kappa_at(step, self._steps.ramp, self.kappa)
        update = self.hypernetwork.head_update(optimizer)
        ids, kept, _ = self._kept.at(step)
        assert kept is None or isinstance(kept, Tensor)
        emitted, output_reg = self.hypernetwork.regularized(ids, kept, extent, update)
        norms = self.norms.states(task, learning=True)
        with modes_of(self):
            found = self._boxes.outputs(x, emitted, norms, self._compiled_net, self._input)
        low, mid, up = (self._tasks.own_outputs(each, task) for each in found)
        center_loss = self._task_loss(mid, y, task)
        label = F.one_hot(y, low.shape[-1]).bool()
        worst_loss = F.cross_entropy(torch.where(label, low, up), y)
        if isinstance(kappa, Tensor):
            kappa = kappa.to(center_loss.dtype)
        task_loss = kappa * center_loss + (1 - kappa) * worst_loss
        twice = self._settings.division == "twice"
        factor = self.beta / (max(1, self._kept.earlier) if twice else 1)
        total = task_loss + factor * output_reg
        if update is not None:
            update.completes(total, factor)
        self._steps.count()
        terms = {"output_reg": output_reg, "center": center_loss, "worst_case": worst_loss}
        return Losses(total, task_loss, mid, terms)

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
                f"kept while training: {kept * each / 2**20:,.1f} MiB for each earlier task",
            ]
        )

    def facts(self) -> dict[str, int]:
        head = self.hypernetwork.head
        return {
            "target_weights": self._network.size,
            "head_width": head.in_features,
            "head_parameters": sum(p.numel() for p in head.parameters()),
        }
