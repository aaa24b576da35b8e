"""HNET: a hypernetwork generates all weights of each task's network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.conversion.convert import freeze, unconvert
from hypermask_fast.conversion.patterns import Patterns
from hypermask_fast.errors import CheckpointError, ConfigError, shown
from hypermask_fast.fields import takes_options
from hypermask_fast.hypernetworks.chunked import ChunkedHypernetwork
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.hypernetworks.init import xavier_
from hypermask_fast.hypernetworks.kept import KeptOutputs
from hypermask_fast.methods.evaluating import modes_of
from hypermask_fast.methods.hnet.ahead import Update
from hypermask_fast.methods.hnet.heads import (
    OwnOutputs,
    check_classes,
    refuse_criterion,
)
from hypermask_fast.methods.hnet.networks import GeneratingLearner
from hypermask_fast.methods.hnet.settings import HNETSettings
from hypermask_fast.methods.inputs import Batch, Given, call
from hypermask_fast.methods.outputs import Criterion
from hypermask_fast.methods.protocol import Losses, ParameterGroup
from hypermask_fast.methods.tasks import TaskId
from hypermask_fast.optim.lookahead import check_lookahead

MAIN, EMBEDDING = "main", "embedding"
"""The optimizers of a step: of all that the tasks share, and of the current task's embedding."""


@takes_options(HNETSettings)
class HNET(GeneratingLearner):
    """HNET (von Oswald et al. 2020), over any network.

    The weights of task t's network are what the hypernetwork emits for its embedding e_t, scale and
    shift of normalisation layers among them; the network has none of its own. A step takes the
    gradient of the batch's cross-entropy, then that of ``beta * output_reg``, the mean over the t
    earlier tasks of ``||h(e_j; P + dP) - h(e_j)*||^2`` where dP is nearly what Adam would change
    (:func:`hypermask_fast.optim.lookahead.lookahead`), and then steps two optimizers: one of what
    all tasks share, and one of e_t, which learns from the cross-entropy alone. Earlier embeddings
    do not move. Use new optimizers for each task.

    The network is converted in place; :func:`hypermask_fast.unconvert` undoes it.

    Args:
        net: The target network.
        exclude: Names or globs of modules and parameters, classes of modules, or functions of a
            name and a part, for what stays plain and frozen. Default: nothing.
        example_input: A batch for the dry forward that finds the output layer, where
            ``task_heads`` is not "shared"; default: the first batch that comes.
        settings: The settings; default: those below, with their defaults.
        {options}

    Raises:
        ConfigError: A setting is wrong, or the network has a part whose weights cannot be replaced;
            the network is left as it was.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        exclude: Patterns = (),
        example_input: Given | None = None,
        settings: HNETSettings | None = None,
        **options: Any,
    ) -> None:
        chosen = HNETSettings.chosen("HNET", settings, options)
        self._settings = chosen
        self.beta, self.lookahead = chosen.beta, chosen.lookahead
        self.task_heads = chosen.task_heads
        super().__init__(
            net,
            capacity=chosen.capacity,
            exclude=exclude,
            source="generated",
            bn=chosen.bn,
            kept=KeptOutputs(chosen.targets, chosen.regularized_tasks),
            norms_too=True,
        )
        try:
            if example_input is not None:
                self._prepare(self._checked_inputs(example_input))
        except BaseException:
            unconvert(net)
            raise
        freeze(net, [name for name, _ in net.named_parameters()])
        self.hypernetwork.trains_earlier = False
        if chosen.regularized_outputs == "own":
            self.hypernetwork.keeps_all = False
            self._kept.free = OwnOutputs(self._network, self._tasks)

    def _make_hypernetwork(self, size: int, like: Tensor) -> Hypernetwork:
        chosen = self._settings
        shared: dict[str, Any] = {
            name: getattr(chosen, name)
            for name in ("embedding_dim", "hidden", "capacity", "activation")
        }
        shared |= {"device": like.device, "dtype": like.dtype}
        made = (
            Hypernetwork(size, **shared)
            if chosen.head == "full"
            else ChunkedHypernetwork(
                size,
                chunk_size=chosen.chunk_size,
                chunk_embedding_dim=chosen.chunk_embedding_dim,
                **shared,
            )
        )
        xavier_(
            made,
            embedding_std=chosen.embedding_std,
            chunk_embedding_std=chosen.chunk_embedding_std,
            layers=chosen.init == "xavier",
        )
        made.embedding_std = chosen.embedding_std
        return made

    def parameter_groups(self, phase: str = "train") -> Sequence[ParameterGroup]:
        """Return what all tasks share, and the embeddings, of two optimizers."""
        table = self.hypernetwork.embeddings
        shared = [p for p in self.parameters() if p.requires_grad and p is not table]
        can_step = self.hypernetwork.can_update and self.hypernetwork.keeps_all
        steps_in_backward = can_step and not self.lookahead
        head = list(self.hypernetwork.head.parameters()) if steps_in_backward else []
        rate = self._settings.embedding_lr
        return [
            ParameterGroup(shared, MAIN, in_backward=head),
            ParameterGroup([table], EMBEDDING, lr=rate, row_sparse=True),
        ]

    def add_task(self, name: str | None = None, classes: Sequence[int] | None = None) -> int:
        check_classes(classes, self.task_heads)
        return super().add_task(name, classes)

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

        Without the look-ahead only, whose regularizer has its gradient elsewhere: call :meth:`step`
        for that.

        Args:
            x, y, task, criterion: As in :meth:`Learner.losses`; inputs of the network's dtype.
            optimizer: A :class:`~hypermask_fast.FactoredAdam` with ``step_in_backward=True``, which
                updates a full head in the backward pass of these losses.

        Raises:
            RuntimeError: The task was not begun, or the learner looks ahead.
            ValueError: Shapes, dtypes, devices or labels do not fit.
        """
        x, task = self._checked_batch(x, y, task, criterion)
        self._refuse_lookahead()
        step = self._steps.next()
        update = self.hypernetwork.head_update(optimizer)
        kept = self._kept.at(step, self.hypernetwork)
        logits, output_reg = self.hypernetwork(*kept, update)
        logits = self._exchanged(logits)
        task_loss, outputs = self._learned_from(x, y, task, logits, criterion)
        total = task_loss + self.beta * output_reg
        if update is not None:
            update.completes(total, self.beta)
        self._steps.count()
        return Losses(total, task_loss, outputs, {"output_reg": output_reg})

    def _refuse_lookahead(self) -> None:
        if self.lookahead:
            raise RuntimeError(
                "lookahead is True, so the regularizer's gradient is taken between the loss's "
                "backward pass and the optimizers' steps; call step(x, y, task, optimizers), or "
                "build HNET with lookahead=False"
            )

    def regularization(self, task: TaskId) -> Tensor:
        """Return ``beta * output_reg``, as :meth:`Learner.regularization` says.

        Raises:
            RuntimeError: The task was not begun, or the learner looks ahead.
        """
        self._checked_current(task)
        self._refuse_lookahead()
        _, output_reg = self.hypernetwork(*self._kept.at(self._steps.next(), self.hypernetwork))
        self._steps.count()
        return self.beta * output_reg

    def _learned_from(
        self, x: Batch, y: Any, task: int, logits: Tensor, criterion: Criterion | None = None
    ) -> tuple[Tensor, Any]:
        """Return the loss of a batch and the outputs that it is of."""
        self._prepare(x)
        grows = self.task_heads == "growing"
        if grows:
            refuse_criterion(self.criterion if criterion is None else criterion)
        weights = self._weights(logits, self._rows(task, so_far=grows))
        norms = self.norms.states(task, learning=True)
        with modes_of(self), self._network.applied(weights, norms, trains=True) as net:
            outputs = call(self._compiled_net or net, x)
        if not grows:
            return self._loss_of(outputs, y, task, criterion)
        self._tasks.check_labels(y, task, outputs.shape[-1])
        own = self._rows(task)
        assert own is not None
        return F.cross_entropy(outputs, y + own.start), outputs

    def step(
        self,
        x: Given,
        y: Any,
        task: TaskId,
        optimizers: Mapping[str, Optimizer],
        before_update: Callable[[], None] | None = None,
    ) -> Losses:
        """Learn from a batch: backward, look-ahead, the regularizer's backward, and updates.

        Args:
            x, y, task: As in :meth:`losses`.
            optimizers: Over :meth:`parameter_groups`: "main" and "embedding".
            before_update: Called after the forward, before anything is updated.

        Raises:
            ConfigError: An optimizer is missing, or its look-ahead is not known.
            RuntimeError, ValueError: As in :meth:`losses`.
        """
        if not self.lookahead:
            return super().step(x, y, task, optimizers, before_update)
        x, task = self._checked_batch(x, y, task)
        if optimizers.keys() != {MAIN, EMBEDDING}:
            raise ConfigError(
                f"optimizers are {sorted(optimizers)}; give 'main' over what the tasks share and "
                "'embedding' over hypernetwork.embeddings, as parameter_groups() names them"
            )
        check_lookahead(optimizers[MAIN])
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        taken = Update(self.hypernetwork, self._kept, self.beta, optimizers[MAIN])
        logits = self._exchanged(taken.logits())
        task_loss, outputs = self._learned_from(x, y, task, logits)
        if before_update is not None:
            before_update()
        output_reg = taken.backward(task_loss, self._steps.next())
        for optimizer in optimizers.values():
            optimizer.step()
        self._steps.count()
        total = task_loss + self.beta * output_reg
        return Losses(total, task_loss, outputs, {"output_reg": output_reg})

    def fixed_in_graph(self) -> tuple[object, ...]:
        return *super().fixed_in_graph(), self.beta, self.lookahead, self.task_heads

    def report(self) -> str:
        """Return a table of the target's parameters, and the size of the hypernetwork."""
        shared = sum(p.numel() for p in self.hypernetwork.parameters())
        shared -= self.hypernetwork.embeddings.numel()
        return "\n".join(
            [
                *self._network.table({}),
                f"hypernetwork: {shared:,} parameters and {self._settings.embedding_dim} for each "
                f"task, for {self._network.size:,} target weights",
                self._kept.describe(self.hypernetwork),
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

    def task_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().task_state()
        return tensors, {**state, "output_layer": self._network.last}

    def _check_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super()._check_state(tensors, state)
        layer = state["output_layer"]
        if layer is not None and layer not in [name for name, _ in self.net.named_modules()]:
            raise CheckpointError(
                f"the state has output_layer={shown(layer)}, which the network has not; give what "
                "task_state() returned"
            )

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().load_task_state(tensors, state)
        self._network.last = state["output_layer"]
