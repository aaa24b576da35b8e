"""HyperMask: a hypernetwork emits a semi-binary mask over one shared network for each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.console.words import size
from hypermask_fast.conversion.convert import freeze, unconvert
from hypermask_fast.conversion.patterns import Patterns
from hypermask_fast.fields import takes_options
from hypermask_fast.hypernetworks.autograd import HeadUpdate
from hypermask_fast.hypernetworks.chunked import ChunkedHypernetwork
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.hypernetworks.init import hyperfan_, open_
from hypermask_fast.hypernetworks.kept import KeptOutputs
from hypermask_fast.hypernetworks.sharded import full_hypernetwork
from hypermask_fast.methods.batches import (
    check_devices,
    random_state_kept,
    run,
)
from hypermask_fast.methods.evaluating import modes_of
from hypermask_fast.methods.generated import fans
from hypermask_fast.methods.hypermask.frozen import FrozenTasks
from hypermask_fast.methods.hypermask.masked import MaskedLearner
from hypermask_fast.methods.hypermask.masks import masked_weights
from hypermask_fast.methods.hypermask.settings import HyperMaskSettings
from hypermask_fast.methods.inputs import Given, inputs_of
from hypermask_fast.methods.outputs import Criterion
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.methods.tasks import TaskId
from hypermask_fast.methods.totals import total_of

_NORM_REASONS = {
    "batch": "normalisation: shared",
    "per_task": "normalisation: a copy for each task",
    "frozen": "normalisation: frozen",
}


@torch.no_grad()
def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in tensors])


@takes_options(HyperMaskSettings)
class HyperMask(MaskedLearner):
    """HyperMask (Książek and Spurek), over any network.

    For task t, z = h(e_t) holds a logit for each target parameter; the mask of a tensor is
    ``|tanh z|`` where that is at least its ``sparsity``-th percentile, else 0; the last layer's
    bias is not masked. The loss is ``CE + beta / max(1, t) * output_reg + lam * weight_reg``, where
    output_reg is the mean over the t earlier tasks of ``||z_j - z_j*||^2`` (so its factor on the
    sum is beta / t^2) and weight_reg the L1 drift of the target weights since the last task, both
    absent for the first task. All embeddings train. Use a new optimizer, or reset it, for each
    task.

    Masked is every parameter, of whatever module, but for what normalisation layers have, which
    ``bn`` is for, and what ``exclude``, ``shared`` and ``per_task`` name. A tied parameter has one
    mask. What runs but cannot be masked, as a weight that a parametrization computes, is shared,
    with a warning; :func:`hypermask_fast.conversion_report` shows all of it before.

    The network is converted in place; :func:`hypermask_fast.unconvert` undoes it. It keeps its
    weights and statistics: with ``mask_init="open"`` training begins at what a network that was
    trained before can do.

    Args:
        net: The target network.
        exclude: What stays plain and frozen: names or globs of modules and parameters, classes of
            modules, functions of a name and a part that say whether it is meant, or several.
            Default: nothing.
        shared: The same for what is trained for all tasks without a mask; weight_reg counts its L1
            drift too. Default: nothing.
        per_task: The same for what each task has a copy of, which starts as the network's own.
            Default: nothing.
        exempt: Name of the bias that is not masked; default: that of the masked layer which runs
            last, found by a dry forward.
        example_input: A batch for that dry forward; default: the first batch that comes.
        settings: The settings; default: those below, with their defaults.
        {options}

    Raises:
        ConfigError: A setting is wrong, or the network has a part that cannot be masked; the
            network is left as it was.
    """

    held = ("_previous", "_previous_shared")
    # The weights (N,) at the end of the last task, and those that are shared without a mask.
    _previous: Tensor | None = None
    _previous_shared: Tensor | None = None

    @random_state_kept
    def __init__(
        self,
        net: nn.Module,
        *,
        exclude: Patterns = (),
        shared: Patterns = (),
        per_task: Patterns = (),
        exempt: str | None = None,
        example_input: Given | None = None,
        settings: HyperMaskSettings | None = None,
        **options: Any,
    ) -> None:
        chosen = HyperMaskSettings.chosen("HyperMask", settings, options)
        self._settings = chosen
        self.sparsity, self.beta, self.lam = chosen.sparsity, chosen.beta, chosen.lam
        self.masked_l1, self.train_target = chosen.masked_l1, chosen.train_target
        self.dropout, self.ramp, self.earlier = chosen.dropout, chosen.ramp, chosen.earlier
        super().__init__(
            net,
            capacity=chosen.capacity,
            exclude=exclude,
            shared=shared,
            per_task=per_task,
            shares=True,
            source=f"hyper(p={chosen.sparsity:g})",
            bn=chosen.bn,
            kept=KeptOutputs(chosen.targets, chosen.regularized_tasks),
        )
        self.frozen_tasks = FrozenTasks(self._network, self.norms)
        try:
            if chosen.dropout != "always":
                self._network.check_dropouts()
            if exempt is not None:
                self._network.set_exempt(exempt)
            elif example_input is not None:
                example = inputs_of(example_input)
                check_devices(self._device, example_input=example)
                self._prepare(example)
        except BaseException:
            unconvert(net)
            raise
        if not chosen.train_target:
            freeze(net, [name for name, _ in net.named_parameters()])
        elif chosen.bn != "batch":
            freeze(net, self.norms.parameter_names())

    def _make_hypernetwork(self, size: int, like: Tensor) -> Hypernetwork:
        settings = self._settings
        shared: dict[str, Any] = {
            name: getattr(settings, name)
            for name in ("embedding_dim", "hidden", "capacity", "activation")
        }
        shared |= {"device": like.device, "dtype": like.dtype}
        if settings.head == "full":
            made = full_hypernetwork(size, **shared)
        else:
            chunks = settings.chunk_size, settings.chunk_embedding_dim
            made = ChunkedHypernetwork(
                size, chunk_size=chunks[0], chunk_embedding_dim=chunks[1], **shared
            )
        if settings.init == "hyperfan":
            hyperfan_(made, fans(self._network))
        if settings.mask_init == "open" and not like.is_meta:
            open_(made, self._network.weights())
        return made

    def begin_task(self, task: TaskId, *, steps: int = 0, data: object = None) -> None:
        """Start learning a task: record the earlier tasks' logits and the weights to stay near.

        Args:
            task: A task that was added.
            steps: Calls of :meth:`losses` that the task will have: in the first task, with
                ``ramp``, the sparsity rises linearly from 0 over them. Default 0: no ramp.
            data: Not looked at.

        Raises:
            ValueError: The task was not added, or the number of steps is negative.
            RuntimeError: Another task has not been ended.
        """
        task = self._checked_beginning(task, steps)
        earlier = self._earlier(task)
        self._previous = self._previous_shared = None
        if earlier and self.train_target and self.lam > 0:
            self._previous = self._network.flat_weights()
            shared = self._network.shared_weights()
            self._previous_shared = _flat(shared) if shared else None
        super().begin_task(task, steps=steps, data=data)
        is_first = all(other == task for other in self._learned)
        self._steps.start(steps if self.ramp and is_first else 0)

    def _leave(self) -> None:
        super()._leave()
        self._previous = self._previous_shared = None

    def fixed_in_graph(self) -> tuple[object, ...]:
        settings = (self.sparsity, self.beta, self.lam, self.masked_l1, self.dropout)
        return *super().fixed_in_graph(), *settings, self._steps.ramp

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

        Each call counts as a step of the sparsity ramp and of ``dropout="first_step"``.

        Args:
            x, y, task, criterion: As in :meth:`Learner.losses`; inputs of the network's dtype.
            optimizer: A :class:`~hypermask_fast.FactoredAdam` with ``step_in_backward=True``, which
                updates the head in the backward pass of these losses. Any other may be given, and
                changes nothing.

        Raises:
            RuntimeError: The task was not begun.
            ValueError: Shapes, dtypes, devices or labels do not fit.
        """
        x, task = self._checked_batch(x, y, task, criterion)
        self._prepare(x)
        update = self.hypernetwork.head_update(optimizer)
        weights, terms = self._regularized(update)
        is_special = self.dropout == "first_step" and self._steps.taken == 0
        dropout = self.dropout == "always" or is_special
        norms = self.norms.states(task, learning=True)
        applied = self._network.applied(weights, norms, dropout=dropout, trains=True)
        with modes_of(self), applied as net:
            outputs = run(net if is_special else self._compiled_net or net, x, self._input)
        task_loss, outputs = self._loss_of(outputs, y, task, criterion)
        factor = self._output_factor
        added = terms["output_reg"], terms["weight_reg"]
        total = total_of(task_loss, added, (factor, self.lam))
        if update is not None:
            update.completes(total, factor)
        self._steps.count(on_device=self._reads_step)
        return Losses(total, task_loss, outputs, terms)

    @property
    def _reads_step(self) -> bool:
        """Whether a step's number matters in this task; on a GPU launches make and count it."""
        return bool(self._steps.ramp) or self._kept.samples

    def _regularized(
        self, update: HeadUpdate | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the current task's masked weights, and the terms of the loss, by name."""
        step = self._steps.next() if self._reads_step else 0
        logits, output_reg = self.hypernetwork(*self._kept.at(step), update)
        logits = self._exchanged(logits)
        sparsity = self._steps.sparsity(self.sparsity, step)
        weights, (_, _, weight_reg) = masked_weights(
            self._network, logits, sparsity, self._previous, masked_drift=self.masked_l1
        )
        if self._previous_shared is not None:
            weight_reg = weight_reg + self._drift_of_shared(self._previous_shared)
        return weights, {"output_reg": output_reg, "weight_reg": weight_reg}

    @property
    def _output_factor(self) -> float:
        return self.beta / max(1, self._kept.earlier)

    def regularization(self, task: TaskId) -> Tensor:
        """Return ``beta / max(1, t) * output_reg + lam * weight_reg``, as :meth:`Learner` says."""
        self._checked_current(task)
        self._require_trace()
        _, terms = self._regularized()
        self._steps.count(on_device=self._reads_step)
        return self._output_factor * terms["output_reg"] + self.lam * terms["weight_reg"]

    def _drift_of_shared(self, previous: Tensor) -> Tensor:
        """Return the L1 drift of the weights that are shared without a mask, 0-d."""
        weights = self._network.shared_weights()
        before = previous.split([w.numel() for w in weights])
        parts = zip(weights, before, strict=True)
        return torch.stack([(w.flatten() - old).abs().sum() for w, old in parts]).sum()

    def report(self) -> str:
        """Return a table of the target's parameters: which are masked, which are not and why."""
        count = sum(p.numel() for p in self.hypernetwork.parameters())
        memory = count * self.hypernetwork.head.weight.element_size()
        lines = [
            *self._network.table({"normalisation": _NORM_REASONS[self.bn]}),
            f"sparsity: {self.sparsity:g} % of each mask"
            + ("" if self.train_target else "; the target does not train"),
            f"hypernetwork: {count:,} parameters, {size(memory)}; with gradients and Adam's "
            f"moments {size(4 * memory)}",
            self._kept.describe(self.hypernetwork),
            self._outside,
        ]
        if self.frozen or self.earlier == "frozen":
            lines.append(self.frozen_tasks.describe())
        if not self._network.traced:
            lines.append("the last layer's bias will be exempt: found at the first batch")
        return "\n".join(lines)

    def memory_parts(self) -> dict[str, Sequence[Tensor]]:
        return {**super().memory_parts(), "weights of the last task": self.held_tensors()}

    def task_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().task_state()
        if self._previous is not None:
            tensors["previous"] = self._previous
        if self._previous_shared is not None:
            tensors["previous_shared"] = self._previous_shared
        return tensors, {**state, "exempt": self.exempt, "traced": self._network.traced}

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().load_task_state(tensors, state)
        device = self.hypernetwork.embeddings.device
        found = (tensors.get(name) for name in ("previous", "previous_shared"))
        moved = (None if value is None else value.to(device) for value in found)
        self._previous, self._previous_shared = moved
        if state["traced"]:
            self._network.set_exempt(state["exempt"])
