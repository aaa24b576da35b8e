"""What SupSup and ExSSNeT share: binary masks from scores, of which a task leaves its bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim.optimizer import Optimizer

from hypermask_fast.conversion.convert import freeze, unconvert
from hypermask_fast.conversion.norm_tables import TaskNorms
from hypermask_fast.conversion.patterns import Patterns, patterns
from hypermask_fast.layers.norms import check_module, is_norm
from hypermask_fast.masks.packed import pack, packed_bytes, unpack
from hypermask_fast.masks.top_k import dropped_count, top_k_mask, top_k_weights
from hypermask_fast.methods.converted import ConvertedLearner
from hypermask_fast.methods.evaluating import modes_of
from hypermask_fast.methods.inputs import Given, call
from hypermask_fast.methods.outputs import Criterion
from hypermask_fast.methods.protocol import Losses, ParameterGroup
from hypermask_fast.methods.state_checks import check_count
from hypermask_fast.methods.subnetwork_blend import Blend
from hypermask_fast.methods.subnetwork_scores import arrange, draw
from hypermask_fast.methods.subnetwork_settings import SubnetworkSettings
from hypermask_fast.methods.tasks import TaskId

_LAYERS = (nn.Linear, _ConvNd)


def _biases(net: nn.Module) -> list[str]:
    """Return the names of the biases of layers that are to be masked."""
    return [
        f"{name}.bias".lstrip(".")
        for name, module in net.named_modules()
        if isinstance(module, _LAYERS) and module._parameters.get("bias") is not None
    ]


def _vectors(net: nn.Module) -> list[str]:
    """Return the names of parameters of other modules that have no inputs to draw scores by."""
    return [
        f"{name}.{key}".lstrip(".")
        for name, module in net.named_modules()
        if not isinstance(module, _LAYERS) and not is_norm(module)
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.dim() < 2
    ]


class TaskRows(nn.Module):
    """A table with a row for each task, which no optimizer changes.

    A module of its own: a ``state_dict`` gives a learner its tasks, and so the rows, before what is
    in its parts.

    Args:
        width: Entries of a row.
        dtype, device: Of the table, which begins without rows.
    """

    rows: Tensor

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("rows", torch.empty(0, width, dtype=dtype, device=device))

    def grow(self, count: int) -> None:
        """Add rows of 0 until there are ``count``."""
        more = self.rows.new_zeros(count - len(self.rows), self.rows.shape[1])
        self.rows = torch.cat((self.rows, more))


class SubnetworkLearner(ConvertedLearner):
    """A learner whose tasks each use a part of one network's weights.

    Scores, one for each weight, make a binary mask; a task that was learned keeps the mask in one
    bit a weight, and the scores of the next task take its scores' place. A task that was not begun
    has the mask of the scores it would begin with. Linear and convolutional layers have no biases
    here: those that the network has become 0. Normalisation layers have running statistics for each
    task; their scale and shift, and what other modules have with less than two dimensions, stay as
    they are.

    Args:
        net: The target network; it is converted in place and gets the weights of the settings.
        exclude: Names or globs of modules and parameters, classes of modules, or functions of a
            name and a part, for what stays plain and frozen.
        settings: The settings; default: those that are given by name, with their defaults.

    Attributes:
        scores: (N,), those of the current or the last task, of all tensors one after the other.
        bits: uint8 (tasks, ceil(N / 8)), the masks of the tasks that were learned.
        earlier_scores: Those of the tasks that were learned, or None where only masks are kept.
        capacity: The number of tasks.

    Raises:
        ConfigError: A setting is wrong, or the network has a part that cannot be masked; it is left
            as it was.
    """

    alone = "its own weights, all of them, without a mask"

    settings_class: ClassVar[type[SubnetworkSettings]]
    earlier_scores: TaskRows | None

    def __init__(
        self,
        net: nn.Module,
        *,
        exclude: Patterns = (),
        settings: SubnetworkSettings | None = None,
        **options: Any,
    ) -> None:
        chosen = self.settings_class.chosen(type(self).__name__, settings, options)
        check_module(net)
        given = patterns("exclude", exclude)
        biases = _biases(net)
        source = f"bits({chosen.mask_rule})"
        unmasked = (*given, *biases, *_vectors(net))
        super().__init__(net, capacity=0, exclude=unmasked, source=source, bn="per_task")
        self._settings = chosen
        self._frozen = [not weight.requires_grad for weight in self._network.weights()]
        try:
            freeze(net, [name for name, _ in net.named_parameters()])
            self.norms = TaskNorms(net, "per_task", 0)
        except BaseException:
            unconvert(net)
            raise
        self._set_weights(biases)
        self._sizes = [entry.size for entry in self._network.tensors]
        shares = [chosen.density_of(entry.shape) for entry in self._network.tensors]
        self._dropped = [dropped_count(n, k) for n, k in zip(self._sizes, shares, strict=True)]
        self._seed = int(torch.randint(2**62, (), device="cpu"))
        first = self._network.weights()[0]
        self.scores = nn.Parameter(torch.empty_like(first.new_empty(self._network.size)))
        self._draw_scores(0, self.scores)
        width = packed_bytes(self._network.size)
        self.packed = TaskRows(width, torch.uint8, first.device)
        self.earlier_scores = None
        if chosen.keeps_scores:
            self.earlier_scores = TaskRows(len(self.scores), self.scores.dtype, first.device)
        self._add_own()

    def _add_own(self) -> None:
        """Add what only this method has, once the rest is there."""

    @property
    def bits(self) -> Tensor:
        return self.packed.rows

    @torch.no_grad()
    def _set_weights(self, biases: Sequence[str]) -> None:
        for name in biases:
            self.net.get_parameter(name).zero_()
        if self._settings.weights == "signed_constant":
            for weight in self._network.weights():
                constant = math.sqrt(2 / weight[0].numel())
                weight.copy_(torch.randn_like(weight).sign_().mul_(constant))

    def _draw_scores(self, task: int, out: Tensor) -> None:
        """Draw a task's scores, uniform on +-1 / sqrt(fan_in) of each layer."""
        draw(out, [entry.shape for entry in self._network.tensors], self._seed, task)

    def _scores_of(self, learned: int, task: int) -> Tensor:
        """Return scores that make a learned task's mask, (N,): its own, or drawn for a task."""
        if self.earlier_scores is not None:
            return self.earlier_scores.rows[learned]
        scores = torch.empty_like(self.scores, requires_grad=False)
        self._draw_scores(task, scores)
        shapes = [entry.shape for entry in self._network.tensors]
        arrange(scores, self._flat_mask(learned), shapes, self._settings.mask_rule)
        return scores

    def _make_room(self, rows: int = 0) -> None:
        # Rows are added one by one: a table of bits is small, and no optimizer has a state of it.
        count = max(self.capacity, rows, len(self._tasks.records))
        if count > self.capacity:
            self._grow(count)
            self.capacity = count

    def _grow(self, capacity: int) -> None:
        self.norms.grow(capacity)
        self.packed.grow(capacity)
        if self.earlier_scores is not None:
            self.earlier_scores.grow(capacity)

    def parameter_groups(self, phase: str = "train") -> Sequence[ParameterGroup]:
        return [ParameterGroup([self.scores])]

    def begin_task(self, task: TaskId, *, steps: int = 0, data: object = None) -> None:
        """Start learning a task: with new scores, or, where it was learned, from its mask.

        Scores of a learned task are those that were kept, else new ones that make its mask.

        Args and errors: as in :meth:`Learner.begin_task`.
        """
        task = self._checked_beginning(task, steps)
        scores = self._scores_from(task, data)
        super().begin_task(task, steps=steps, data=data)
        with torch.no_grad():
            self.scores.copy_(scores)

    def _scores_from(self, task: int, data: object) -> Tensor:
        """Return the scores that a task begins with, (N,), which may depend on its data."""
        return self._scores_of(task, task) if self._has_mask(task) else self._first_scores(task)

    def _has_mask(self, task: int) -> bool:
        """Return whether a task was learned, or begins as one that it is a copy of."""
        return task in self._learned or self.tasks[task].like is not None

    @torch.no_grad()
    def _copy_rows(self, source: int, task: int) -> None:
        super()._copy_rows(source, task)
        self.norms.copy_row(source, task)
        self.bits[task] = pack(self._flat_mask(source))
        if self.earlier_scores is not None:
            self.earlier_scores.rows[task] = self._scores_from(source, None)

    def _renew_rows(self, task: int) -> None:
        super()._renew_rows(task)
        self.norms.renew_row(task)

    def _first_scores(self, task: int) -> Tensor:
        """Return the scores of a task that was not begun, (N,)."""
        scores = torch.empty_like(self.scores, requires_grad=False)
        self._draw_scores(task, scores)
        return scores

    @torch.no_grad()
    def end_task(self, data: object = None) -> None:
        """Finish the current task: of its scores the bits of their mask stay, or they too."""
        task = self._require_current("end_task")
        if self.earlier_scores is not None:
            self.earlier_scores.rows[task] = self.scores
        self.bits[task] = pack(self._mask_of(self.scores))
        super().end_task(data)

    def _mask_of(self, scores: Tensor) -> Tensor:
        """Return the mask that scores make, bool (N,)."""
        return top_k_mask(scores, self._sizes, self._dropped)

    def _products(self, scores: Tensor) -> list[Tensor]:
        """Return ``W * M`` of every tensor; gradients flow to the scores."""
        return top_k_weights(self._network.weights(), scores, self._dropped)

    def _named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip([e.name for e in self._network.tensors], tensors, strict=True))

    def _shaped(self, flat: Tensor) -> list[Tensor]:
        shapes = [entry.shape for entry in self._network.tensors]
        return [part.view(s) for part, s in zip(flat.split(self._sizes), shapes, strict=True)]

    @torch.no_grad()
    def _flat_mask(self, task: int) -> Tensor:
        """Return the mask of a task that was added, bool (N,)."""
        if task == self._current:
            return self._mask_of(self.scores)
        if self._has_mask(task):
            return unpack(self.bits[task], self._network.size)
        return self._mask_of(self._first_scores(task))

    def masks(self, task: TaskId) -> dict[str, Tensor]:
        """Return the masks of a task by parameter name, bool.

        Args:
            task: A task that was added.

        Raises:
            ValueError: The task was not added.
        """
        return self._named(self._shaped(self._flat_mask(self._tasks.checked(task))))

    def _weights_in_place(self, task: int) -> Mapping[str, Tensor]:
        if task == self._current and torch.is_grad_enabled():
            return self._named(self._training_weights())
        return super()._weights_in_place(task)

    @torch.no_grad()
    def task_weights(self, task: TaskId, *, in_step: bool = False) -> dict[str, Tensor]:
        weights = self._network.weights()
        masks = self._shaped(self._flat_mask(self._tasks.checked(task)))
        return self._named([torch.where(m, w, 0) for w, m in zip(weights, masks, strict=True)])

    @contextmanager
    def blended(self, alpha: Tensor) -> Iterator[nn.Module]:
        """Return a context in which :attr:`net` has the weights ``W * sum_j alpha_j M_j``.

        No mask of a learned task is unpacked. Those whose factor is 0 are left out, and the
        gradient of their factor is 0. Running statistics are blended alike.

        Args:
            alpha: (tasks,), a factor for each task that was added, one at least not 0; gradients
                flow to it.

        Raises:
            ValueError: There is not one factor for each task, or all are 0.
        """
        self._tasks.check_factors(alpha)
        used = alpha.detach().nonzero().flatten().tolist()
        if not used:
            raise ValueError("alpha is 0 for every task; give one of them another factor")
        rows = {
            task: self.bits[task]
            if self._has_mask(task) and task != self._current
            else pack(self._flat_mask(task))
            for task in used
        }
        weights = self._named(Blend.apply(alpha, rows, *self._network.weights()))
        with self._network.applied(weights, self.norms.blended(alpha)) as net:
            yield net

    def _training_weights(self) -> list[Tensor]:
        """Return the weights of a training forward."""
        return self._products(self.scores)

    def losses(
        self,
        x: Given,
        y: Any,
        task: TaskId,
        *,
        optimizer: Optimizer | None = None,
        criterion: Criterion | None = None,
    ) -> Losses:
        x, task = self._checked_batch(x, y, task, criterion)
        self._prepare(x)
        weights = self._named(self._training_weights())
        norms = self.norms.states(task, learning=True)
        with modes_of(self), self._network.applied(weights, norms, trains=True) as net:
            outputs = call(self._compiled_net or net, x)
        loss, outputs = self._loss_of(outputs, y, task, criterion)
        return Losses(loss, loss, outputs, {})

    def report(self) -> str:
        """Return a table of the target's parameters: which are masked, which are not and why."""
        kept = sum(self._sizes) - sum(self._dropped)
        return "\n".join(
            [
                *self._network.table({"normalisation": "normalisation: statistics of each task"}),
                f"a task keeps {kept:,} weights and takes {self.bits.shape[1]:,} bytes",
                self._outside,
            ]
        )

    def memory_parts(self) -> Mapping[str, Sequence[Tensor]]:
        kept = self.earlier_scores
        return {
            "scores": [self.scores],
            **super().memory_parts(),
            "masks of the tasks": [self.bits],
            "scores of the earlier tasks": [] if kept is None else [kept.rows],
        }

    def facts(self) -> Mapping[str, int]:
        return {"mask_entries": self._network.size, "mask_bytes_a_task": self.bits.shape[1]}

    def task_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().task_state()
        return tensors, {**state, "score_seed": self._seed}

    def _check_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super()._check_state(tensors, state)
        check_count(state, "score_seed")

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().load_task_state(tensors, state)
        self._seed = state["score_seed"]
