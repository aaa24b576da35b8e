"""HyperMask: a hypernetwork emits a semi-binary mask over one shared network for each task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.conversion.convert import freeze, unconvert
from hypermask_fast.conversion.patterns import Patterns
from hypermask_fast.fields import takes_options
from hypermask_fast.hypernetworks.chunked import ChunkedHypernetwork
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.hypernetworks.init import hyperfan_, open_
from hypermask_fast.hypernetworks.kept import KeptOutputs
from hypermask_fast.methods.batches import (
    check_devices,
    check_weights,
    random_state_kept,
    run,
    signature,
    sum_of,
)
from hypermask_fast.methods.evaluating import modes_of
from hypermask_fast.methods.generated import GeneratedLearner, fans
from hypermask_fast.methods.hypermask.masks import masked_weights, outputs_at_once
from hypermask_fast.methods.hypermask.settings import HyperMaskSettings
from hypermask_fast.methods.protocol import Losses

_NORM_REASONS = {
    "batch": "normalisation: shared",
    "per_task": "normalisation: a copy for each task",
    "frozen": "normalisation: frozen",
}


@torch.no_grad()
def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in tensors])


@takes_options(HyperMaskSettings)
class HyperMask(GeneratedLearner):
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
        shared: The same for what is trained for all tasks without a mask; weight_reg counts its L1
            drift too.
        per_task: The same for what each task has a copy of, which starts as the network's own.
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
        example_input: Tensor | None = None,
        settings: HyperMaskSettings | None = None,
        **options: Any,
    ) -> None:
        chosen = HyperMaskSettings.chosen("HyperMask", settings, options)
        self._settings = chosen
        self.sparsity, self.beta, self.lam = chosen.sparsity, chosen.beta, chosen.lam
        self.masked_l1, self.train_target = chosen.masked_l1, chosen.train_target
        self.dropout, self.ramp = chosen.dropout, chosen.ramp
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
        try:
            if chosen.dropout != "always":
                self._network.check_dropouts()
            if exempt is not None:
                self._network.set_exempt(exempt)
            elif example_input is not None:
                check_devices(self._device, example_input=example_input)
                self._prepare(example_input)
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
            made = Hypernetwork(size, **shared)
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

    @property
    def exempt(self) -> str | None:
        """Name of the bias that is not masked; None before the first batch, or if there is none."""
        return self._network.exempt

    def _prepare(self, x: Tensor) -> None:
        """Find the bias to exempt, that of the masked layer which runs last, in a dry forward."""
        super()._prepare(x)
        if not self._network.traced:
            self._dry_run(x, self._network.find_exempt)
            self._input = signature(x)

    def _require_trace(self) -> None:
        if not self._network.traced:
            raise RuntimeError(
                "the bias that is not masked is still unknown; run learner(x, task) or losses() "
                "once, or build HyperMask with example_input= or exempt="
            )

    def begin_task(self, task: int, *, steps: int = 0, data: object = None) -> None:
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
        self._steps.start(steps if self.ramp and not earlier else 0)

    def _leave(self) -> None:
        super()._leave()
        self._previous = self._previous_shared = None

    @property
    def step_sparsity(self) -> float:
        """Percent of mask entries removed in the step that was taken last."""
        return float(self._steps.sparsity(self.sparsity, self._steps.taken))

    def fixed_in_graph(self) -> tuple[object, ...]:
        settings = (self.sparsity, self.beta, self.lam, self.masked_l1, self.dropout)
        return *super().fixed_in_graph(), *settings, self._steps.ramp

    def _masked(
        self, task: int, sparsity: float | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return a task's masked weights and its masks, by name."""
        self._require_trace()
        ids = [self._tasks.checked(task)]
        logits, _ = self.hypernetwork(torch.tensor(ids, device=self.hypernetwork.embeddings.device))
        p = self.sparsity if sparsity is None else sparsity
        weights, tensors = masked_weights(self._network, logits, p)
        return weights, dict(zip(weights, tensors.masks, strict=True))

    def _outputs_at_once(
        self, x: Tensor, ids: Sequence[int], task_of_row: Tensor | None = None
    ) -> Tensor | None:
        device = self.hypernetwork.embeddings.device
        return outputs_at_once(
            self._network,
            lambda group: self.hypernetwork.logits(torch.tensor(list(group), device=device)),
            *(x, ids, task_of_row),
            sparsity=self.sparsity,
            dropout=self.dropout == "always",
        )

    @contextmanager
    def activated(
        self, task: int, weights: Mapping[str, Tensor] | None = None
    ) -> Iterator[nn.Module]:
        task = self._tasks.checked(task)
        check_weights(weights)
        if weights is None:
            weights, _ = self._masked(task, None)
        norms = self.norms.states(task, learning=task == self._current)
        with self._network.applied(weights, norms, dropout=self.dropout == "always") as net:
            yield net

    @torch.no_grad()
    def task_weights(
        self, task: int, *, in_step: bool = False, sparsity: float | None = None
    ) -> dict[str, Tensor]:
        """Return copies of the masked target parameters of a task, by name.

        Args:
            task: A task that was added.
            in_step: With the sparsity of the step that was taken last.
            sparsity: Percent; default: the learner's.

        Raises:
            ValueError: The task was not added.
            RuntimeError: The network changed since it was converted.
        """
        self._network.check()
        weights, _ = self._masked(task, self.step_sparsity if in_step else sparsity)
        return {name: w.detach().clone() for name, w in weights.items()}

    @contextmanager
    def blended(self, alpha: Tensor) -> Iterator[nn.Module]:
        """Return a context in which :attr:`net` has a blend of all tasks' masked weights.

        With ``bn="per_task"`` the tasks' parameters and statistics of normalisation are blended
        alike.

        Args:
            alpha: (tasks,), a factor for each task that was added; gradients flow to it. The masked
                weights of all tasks are kept for them.

        Raises:
            ValueError: There is not one factor for each task.
            RuntimeError: The bias that is not masked is not known yet.
        """
        self._tasks.check_factors(alpha)
        check_devices(self._device, alpha=alpha)
        weights = sum_of((self._masked(task, None)[0] for task in range(len(alpha))), alpha)
        norms = self.norms.blended(alpha)
        with self._network.applied(weights, norms, dropout=self.dropout == "always") as net:
            yield net

    @torch.no_grad()
    def masks(self, task: int, *, sparsity: float | None = None) -> dict[str, Tensor]:
        """Return the masks of a task by parameter name; the exempt bias has none.

        Args:
            task: A task that was added.
            sparsity: Percent; default: the learner's.

        Raises:
            ValueError: The task was not added.
            RuntimeError: The network changed since it was converted.
        """
        self._network.check()
        _, masks = self._masked(task, sparsity)
        return {name: mask for name, mask in masks.items() if name != self.exempt}

    def losses(
        self, x: Tensor, y: Tensor, task: int, *, optimizer: Optimizer | None = None
    ) -> Losses:
        """Return the losses of a batch of the current task; call ``.total.backward()``.

        Each call counts as a step of the sparsity ramp and of ``dropout="first_step"``.

        Args:
            x: Inputs (batch, ...), of the network's dtype.
            y: Local labels int64 (batch,).
            task: The id given to :meth:`begin_task`.
            optimizer: A :class:`~hypermask_fast.FactoredAdam` with ``step_in_backward=True``, which
                updates the head in the backward pass of these losses. Any other may be given, and
                changes nothing.

        Raises:
            RuntimeError: The task was not begun.
            ValueError: Shapes, dtypes, devices or labels do not fit.
        """
        task = self._checked_batch(x, y, task)
        self._prepare(x)
        step = self._steps.next()
        update = self.hypernetwork.head_update(optimizer)
        logits, output_reg = self.hypernetwork(*self._kept.at(step), update)
        sparsity = self._steps.sparsity(self.sparsity, step)
        weights, (_, _, weight_reg) = masked_weights(
            self._network, logits, sparsity, self._previous, masked_drift=self.masked_l1
        )
        if self._previous_shared is not None:
            weight_reg = weight_reg + self._drift_of_shared(self._previous_shared)
        is_special = self.dropout == "first_step" and self._steps.taken == 0
        dropout = self.dropout == "always" or is_special
        norms = self.norms.states(task, learning=True)
        applied = self._network.applied(weights, norms, dropout=dropout, trains=True)
        with modes_of(self), applied as net:
            runner = net if is_special else self._compiled_net or net
            outputs = self._tasks.own_outputs(run(runner, x, self._input), task)
        task_loss = self._task_loss(outputs, y, task)
        factor = self.beta / max(1, self._kept.earlier)
        total = task_loss + factor * output_reg + self.lam * weight_reg
        if update is not None:
            update.completes(total, factor)
        self._steps.count()
        terms = {"output_reg": output_reg, "weight_reg": weight_reg}
        return Losses(total, task_loss, outputs, terms)

    def _drift_of_shared(self, previous: Tensor) -> Tensor:
        """Return the L1 drift of the weights that are shared without a mask, 0-d."""
        weights = self._network.shared_weights()
        before = previous.split([w.numel() for w in weights])
        parts = zip(weights, before, strict=True)
        return torch.stack([(w.flatten() - old).abs().sum() for w, old in parts]).sum()

    def report(self) -> str:
        """Return a table of the target's parameters: which are masked, which are not and why."""
        count = sum(p.numel() for p in self.hypernetwork.parameters())
        bytes_each = self.hypernetwork.head.weight.element_size()
        mib = count * bytes_each / 2**20
        lines = [
            *self._network.table({"normalisation": _NORM_REASONS[self.bn]}),
            f"sparsity: {self.sparsity:g} % of each mask"
            + ("" if self.train_target else "; the target does not train"),
            f"hypernetwork: {count:,} parameters, {mib:,.1f} MiB; with gradients and Adam's "
            f"moments {4 * mib:,.1f} MiB",
            self._kept.describe(self.hypernetwork),
        ]
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
