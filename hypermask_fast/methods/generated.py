"""What methods with a hypernetwork share: its parts, what earlier tasks keep, and their state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from hypermask_fast.backends.compiled import Compiler
from hypermask_fast.conversion.convert import unconvert
from hypermask_fast.conversion.network import ConvertedNetwork
from hypermask_fast.conversion.norm_tables import TaskNorms
from hypermask_fast.errors import CheckpointError, ConfigError, shown
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.hypernetworks.init import Fan
from hypermask_fast.hypernetworks.kept import KeptOutputs
from hypermask_fast.hypernetworks.sharded import shares_heads
from hypermask_fast.methods.converted import ConvertedLearner
from hypermask_fast.methods.counting import CountsSteps
from hypermask_fast.methods.head_memory import require_fit
from hypermask_fast.methods.protocol import ParameterGroup
from hypermask_fast.methods.state_checks import check_count, check_ids, check_rows
from hypermask_fast.methods.steps import Steps
from hypermask_fast.methods.tasks import TaskId


def fans(network: ConvertedNetwork) -> list[Fan]:
    """Return what the hyperfan initialisation must know of each of a network's tensors."""
    found = []
    for entry, (module, _) in zip(network.tensors, network.owners, strict=True):
        has_bias = any(p is not None and p.dim() == 1 for p in module._parameters.values())
        fan_in = math.prod(entry.shape[1:])
        found.append(Fan(entry.size, fan_in, len(entry.shape) < 2, has_bias))
    return found


class GeneratedLearner(CountsSteps, ConvertedLearner):
    """A learner whose hypernetwork emits a number for each entry of a converted target network.

    The network is converted in place; :func:`hypermask_fast.unconvert` undoes it.

    Args:
        net: The target network.
        capacity: Tasks that there are rows for at first.
        bn: Mode of the normalisation layers; see :class:`TaskNorms`.
        kept: What earlier tasks keep, and how.
        norms_too: The hypernetwork emits the parameters of normalisation layers as well, and the
            target network has no weights of its own. Default False.
        options: As in :class:`ConvertedLearner`.

    Raises:
        ConfigError: The network has a part that cannot be converted; it is left as it was.
    """

    hypernetwork: Hypernetwork
    _settings: Any

    def __init__(
        self,
        net: nn.Module,
        *,
        capacity: int,
        bn: str,
        kept: KeptOutputs,
        norms_too: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(net, capacity=capacity, bn=bn, norms_too=norms_too, **options)
        self._kept = kept
        try:
            if shares_heads() and not self._settings.divides_head:
                form = getattr(self._settings, "head", "full")
                raise ConfigError(
                    f"a {type(self).__name__} with head={form!r} is "
                    "built inside sharded_head(), and its head cannot be divided among processes; "
                    "use HyperMask with head='full', or build it outside"
                )
            first = self._network.weights()[0]
            size = self._network.size
            require_fit(type(self).__name__, self._make_hypernetwork, size, first, self._settings)
            self._steps = Steps(first.device)
            self.hypernetwork = self._make_hypernetwork(size, first)
            kept.check(self.hypernetwork)
            self.norms = TaskNorms(net, bn, capacity, affine=not norms_too)
        except BaseException:
            unconvert(net)
            raise

    def _make_hypernetwork(self, size: int, like: Tensor) -> Hypernetwork:
        """Return a new hypernetwork with ``size`` outputs, of the device and dtype of a tensor."""
        raise NotImplementedError

    def parameter_groups(self, phase: str = "train") -> Sequence[ParameterGroup]:
        """Return all but the tables, with the head, and the tables of embeddings and norms."""
        tables = [self.hypernetwork.embeddings, *self.norms.parameters()]
        held = {id(table) for table in tables}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in held]
        head = list(self.hypernetwork.head.parameters()) if self.hypernetwork.can_update else []
        return [
            ParameterGroup(rest, in_backward=head),
            ParameterGroup(tables, row_sparse=True),
        ]

    def follows_exchange(self) -> Iterable[Tensor]:
        yield from super().follows_exchange()
        yield from self.hypernetwork.parameters()

    def _exchanged(self, value: Tensor) -> Tensor:
        shard = self.hypernetwork.shard
        if self.share is None or shard is None:
            return super()._exchanged(value)
        # Those who share the head take the mean themselves: it counts the rows of a batch alike.
        factor = self.share.weight * shard.place.world
        if value.requires_grad and factor != 1:
            value.register_hook(lambda grad: grad * factor)
        return value

    def _grow(self, capacity: int) -> None:
        self.hypernetwork.grow(capacity)
        self.norms.grow(capacity)

    def _copy_rows(self, source: int, task: int) -> None:
        super()._copy_rows(source, task)
        self.hypernetwork.copy_row(source, task)
        self.norms.copy_row(source, task)

    def _renew_rows(self, task: int) -> None:
        super()._renew_rows(task)
        self.hypernetwork.renew_row(task)
        self.norms.renew_row(task)

    def begin_task(self, task: TaskId, *, steps: int = 0, data: object = None) -> None:
        task = self._checked_beginning(task, steps)
        self._kept.record(self.hypernetwork, task, self._earlier(task))
        super().begin_task(task, steps=steps, data=data)

    def _leave(self) -> None:
        super()._leave()
        self._kept.clear()

    def compile_steps(self, compiler: Compiler) -> None:
        if self._compile_net(compiler):
            self.hypernetwork.compile_trunk(None if self._compiled_net is None else compiler)

    def memory_parts(self) -> dict[str, Sequence[Tensor]]:
        head: list[Tensor] = list(self.hypernetwork.head.parameters())
        of_head = {id(p) for p in head}
        trunk: list[Tensor] = [p for p in self.hypernetwork.parameters() if id(p) not in of_head]
        return {
            "hypernetwork: head": head,
            "hypernetwork: trunk and embeddings": trunk,
            **super().memory_parts(),
            "outputs kept of earlier tasks": [*self._kept.held_tensors(), *self._steps.buffers()],
        }

    def facts(self) -> dict[str, int]:
        head = self.hypernetwork.head
        return {
            "mask_entries": self.hypernetwork.num_outputs,
            "head_width": head.in_features,
            "head_parameters": sum(p.numel() for p in head.parameters()),
        }

    def task_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().task_state()
        of_kept = self._kept.state()
        tensors |= of_kept[0]
        state |= of_kept[1]
        shard = self.hypernetwork.shard
        if shard is not None:
            state["rows"] = [shard.first, shard.last, shard.size]
        return tensors, state

    def _without_tensors(self, state: dict[str, Any]) -> dict[str, Any]:
        # Nothing is kept in the first task but its id.
        return state if len(state["ids"] or ()) < 2 else {**state, "ids": None}

    def _check_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super()._check_state(tensors, state)
        check_count(state, "sampling_seed", default=0)
        check_rows(state, self.hypernetwork.shard)
        current, ids, frozen = state["current"], state["ids"], state.get("frozen", [])
        check_ids("frozen", frozen, len(state["tasks"]))
        others = [o for o in state["learned"] if o != current and o not in frozen]
        if ids is not None and ids != [current, *others]:
            raise CheckpointError(
                f"the state keeps outputs of the tasks {shown(ids)}, and task {current} was begun "
                f"after {others}; give what task_state() returned"
            )

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().load_task_state(tensors, state)
        self._kept.load(tensors, state, self.hypernetwork.embeddings.device)
