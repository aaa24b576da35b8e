"""Data-parallel training that exchanges the gradient of the mask logits, not of the head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel as _TorchDDP
from torch.optim.optimizer import Optimizer

from hypermask_fast.conversion.norm_tables import NormTable
from hypermask_fast.head.shard import RowShard
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.layers.norms import TaskNorm
from hypermask_fast.methods.base import Learner, ordinary_step
from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.methods.sharded import divided_weights
from hypermask_fast.training.distributed.processes import Processes

_Gradients = Sequence[Tensor | None]


class _Intercepted(torch.autograd.Function):
    """The identity; the gradients on their way back pass through a function."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[[_Gradients], _Gradients], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.function(grads)


class _LossesOf(nn.Module):
    """A learner whose call gives its losses."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, x: Tensor, y: Tensor, task: int, optimizer: Optimizer | None) -> Losses:
        return self.learner.losses(x, y, task, optimizer=optimizer)


def _hypernetwork_of(learner: Learner) -> Hypernetwork | None:
    return next((m for m in learner.modules() if isinstance(m, Hypernetwork)), None)


def _check(learner: Learner, group: dist.ProcessGroup | None) -> None:
    if not isinstance(learner, Learner):
        raise TypeError(
            f"learner is a {type(learner).__name__}; give a learner of this package, such as "
            "HyperMask(net), and torch's own DistributedDataParallel any other module"
        )
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "no process group is initialised; call torch.distributed.init_process_group() first, "
            "in processes started with torchrun"
        )
    if dist.get_rank(group) < 0:
        raise RuntimeError(
            f"process {dist.get_rank()} is not in the process group; leave it out, or give a group "
            "it belongs to"
        )
    hypernetwork = _hypernetwork_of(learner)
    if hypernetwork is None or not any(p.requires_grad for p in hypernetwork.parameters()):
        state = "no hypernetwork" if hypernetwork is None else "a hypernetwork that does not train"
        raise ValueError(
            f"the {type(learner).__name__} has {state}, so there is no gradient of mask logits to "
            "exchange; use torch's own DistributedDataParallel"
        )


def _whole_shape(value: Tensor, shard: RowShard | None) -> tuple[int, ...]:
    return tuple(value.shape) if shard is None else (shard.size, *value.shape[1:])


def check_same_layout(
    learner: Learner, gathered: Callable[[dict[str, str]], list[dict[str, str]]]
) -> None:
    """Raise ValueError, in every process, where the processes have different learners.

    Args:
        learner: This process's.
        gathered: Returns what each process gives.
    """
    divided = divided_weights(learner)
    own = {
        name: f"{value.dtype} of shape {_whole_shape(value, divided.get(name))}, "
        f"requires_grad={value.requires_grad}"
        for name, value in weights_of(learner, keep_vars=True).items()
    }
    layouts = gathered(own)
    for rank, layout in enumerate(layouts):
        for name in {**layouts[0], **layout}:
            first, other = layouts[0].get(name, "missing"), layout.get(name, "missing")
            if first != other:
                raise ValueError(
                    f"{name} is {first} in process 0 and {other} in process {rank}; build the same "
                    "learner in every process"
                )


@torch.no_grad()
def _copy_from_first(learner: Learner, group: dist.ProcessGroup | None) -> None:
    """Give every process the parameters, buffers, tasks and targets of process 0."""
    source = 0 if group is None else dist.get_global_rank(group, 0)
    divided = divided_weights(learner)
    tensors, state = learner.task_state()
    if divided:
        tensors = {}
        _check_same_tasks(state, group)
    shapes = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    box: list[Any] = [state, shapes]
    dist.broadcast_object_list(box, source, group)
    state, shapes = box
    is_copy = dist.get_rank(group) > 0
    if is_copy:
        device = next(learner.parameters()).device
        tensors = {
            name: torch.empty(shape, dtype=dtype, device=device)
            for name, (shape, dtype) in shapes.items()
        }
    weights = [value for name, value in weights_of(learner).items() if name not in divided]
    for value in (*tensors.values(), *weights):
        sent = value.contiguous()
        dist.broadcast(sent, source, group)
        if sent is not value:
            value.copy_(sent)
    if is_copy and not divided:
        learner.load_task_state(tensors, state)


def _check_same_tasks(state: dict[str, Any], group: dist.ProcessGroup | None) -> None:
    """Raise where process 0 has other tasks, of which the others cannot have its rows."""
    own = {key: value for key, value in state.items() if key != "rows"}
    states: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(states, own, group=group)
    for rank, other in enumerate(states):
        for key in other:
            if other[key] != states[0].get(key):
                raise ValueError(
                    f"{key} is {states[0].get(key)} in process 0 and {other[key]} in process "
                    f"{rank}, and a head whose rows they share is not copied; call load_sharded() "
                    "in every process"
                )


def _wrapped(
    losses: _LossesOf, group: dist.ProcessGroup | None, find_unused_parameters: bool
) -> nn.Module:
    """Let torch's DDP exchange what the target network learns, and its buffers, if it has any."""
    learner = losses.learner
    hypernetwork = _hypernetwork_of(learner)
    assert hypernetwork is not None
    tables = [p for g in learner.parameter_groups(learner.phase) if g.row_sparse for p in g.params]
    others = {id(p) for p in (*hypernetwork.parameters(), *tables)}
    learned = [name for name, p in losses.named_parameters() if id(p) not in others]
    # A converted normalisation layer's own statistics never move.
    moving = {
        id(buffer)
        for module in learner.net.modules()
        if not isinstance(module, TaskNorm)
        for buffer in module.buffers(recurse=False)
    }
    copied = [name for name, buffer in losses.named_buffers() if id(buffer) in moving]
    named = [name for name, _ in (*losses.named_parameters(), *losses.named_buffers())]
    ignored = sorted(set(named) - {*learned, *copied})
    if not any(losses.get_parameter(name).requires_grad for name in learned):
        return losses
    _TorchDDP._set_params_and_buffers_to_ignore_for_model(losses, ignored)
    wrapped = _TorchDDP(
        losses,
        process_group=group,
        find_unused_parameters=find_unused_parameters,
        init_sync=False,
    )
    # An update in the backward pass completes the total loss in place: no copies of it.
    wrapped._set_ddp_sink_clone(False)
    return wrapped


class DistributedDataParallel(nn.Module):
    """Trains one learner in several processes, each with its part of every batch.

    Its call gives the losses of a local batch, and ``losses.total.backward()`` leaves the same
    gradients in every process: those of one process with the whole batch. Any optimizer takes its
    usual step then, :class:`~hypermask_fast.FactoredAdam` in all its forms among them.

    A step exchanges the N gradients of the current task's mask logits and, through PyTorch's
    ``DistributedDataParallel``, the N of the target network; with ``bn="per_task"`` also a row of
    each normalisation layer. Never the hypernetwork's: its inputs, and so its regularizer, are the
    same everywhere, and the gradients of all its parameters follow from those of the logits. The
    processes must therefore run on the same kind of device.

    Parameters, buffers, tasks and, within a task, its targets are copied from process 0 to all
    others here, once; so it is enough that process 0 loads a checkpoint before. The state of an
    optimizer is not. Call ``add_task``, ``begin_task`` and ``end_task`` in every process.

    Batch norm uses the statistics of the local batch, as in PyTorch, and is the only difference to
    one process beside dropout, which each process draws by itself. The running statistics of
    ``bn="per_task"`` are means over the processes after every backward pass. Buffers of the target
    network other than those of normalisation layers follow process 0.

    With ``torchrun --nproc-per-node=2 train.py`` (a GPU for each process; "gloo" on CPUs)::

        torch.distributed.init_process_group("nccl")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        learner = hmf.HyperMask(MyNetwork().cuda(), embedding_dim=48)
        ddp = hmf.DistributedDataParallel(learner)
        task = learner.add_task("digits")
        learner.begin_task(task)
        optimizer = hmf.FactoredAdam(ddp.parameters(), lr=1e-3)
        for x, y in loader:  # the same batches in every process
            losses = ddp(*ddp.shard(x.cuda(), y.cuda()), task)
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
        learner.end_task()

    A loader with a ``torch.utils.data.DistributedSampler`` gives parts already: leave ``shard``
    out. The parts must have equally many rows. Evaluate, save and load ``learner`` itself.

    Args:
        learner: A learner with a hypernetwork, on its device, built alike in every process.
        process_group: The processes. Default: all.
        find_unused_parameters: Needed where a layer of the target network takes no part in a
            forward; as in PyTorch.

    Attributes:
        module: What gives the local losses.

    Raises:
        RuntimeError: No process group is initialised, or this process is not in it.
        TypeError: It is no learner.
        ValueError: The learner has no hypernetwork that trains, or the processes have different
            learners.
    """

    def __init__(
        self,
        learner: Learner,
        process_group: dist.ProcessGroup | None = None,
        *,
        find_unused_parameters: bool = False,
    ) -> None:
        _check(learner, process_group)
        super().__init__()
        self._group = process_group
        check_same_layout(learner, Processes(process_group).all)
        _copy_from_first(learner, process_group)
        self.module = _wrapped(_LossesOf(learner), process_group, find_unused_parameters)
        tables = {id(p) for norms in self._norms() for p in norms.parameters() if p.requires_grad}
        self._tables = [n for n, p in self.module.named_parameters() if id(p) in tables]

    @property
    def learner(self) -> Learner:
        """The learner."""
        module = self.module.module if isinstance(self.module, _TorchDDP) else self.module
        assert isinstance(module, _LossesOf)
        return module.learner

    def _norms(self) -> list[NormTable]:
        return [m for m in self.learner.modules() if isinstance(m, NormTable)]

    def _mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the means over the processes; one exchange for each dtype."""
        means = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            places = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[i].flatten() for i in places])
            # Before the sum, which could overflow.
            flat /= dist.get_world_size(self._group)
            dist.all_reduce(flat, group=self._group)
            parts = flat.split([tensors[i].numel() for i in places])
            for i, part in zip(places, parts, strict=True):
                means[i] = part.view_as(tensors[i])
        return means

    def _mean_of_logits(self, grads: _Gradients, row: int | None) -> _Gradients:
        """Average the gradient of the logits, and with it the running statistics."""
        (dz,) = grads
        assert dz is not None
        # Without its version counter: batch norm saved the row for its backward pass, unread.
        rows = [buffer.data[row] for norms in self._norms() for buffer in norms.buffers()]
        if _hypernetwork_of(self.learner).shard is None:  # type: ignore[union-attr]
            dz, *means = self._mean([dz, *rows])
        else:
            means = self._mean(rows)  # the processes that share the head average dz themselves
        for statistics, mean in zip(rows, means, strict=True):
            statistics.copy_(mean)
        return [dz]

    def _mean_of_tables(self, grads: _Gradients, row: int | None) -> _Gradients:
        """Average the gradients of the current task's row; all others are zero."""
        means = [None if grad is None else grad.clone() for grad in grads]
        rows = [grad[row] for grad in means if grad is not None]
        for own, mean in zip(rows, self._mean(rows), strict=True):
            own.copy_(mean)
        return means

    def forward(
        self, x: Tensor, y: Tensor, task: int, *, optimizer: Optimizer | None = None
    ) -> Losses:
        """Return the losses of this process's part of a batch.

        Args:
            x, y, task, optimizer: As in the learner's ``losses``; equally many rows in every
                process.
        """
        row = self.learner.current
        hypernetwork = _hypernetwork_of(self.learner)
        assert hypernetwork is not None

        def intercept(_: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> Any:
            logits, output_reg = output
            return *_Intercepted.apply(lambda g: self._mean_of_logits(g, row), logits), output_reg

        tables: dict[str, Tensor] = {}
        if self._tables:
            own = [self.module.get_parameter(name) for name in self._tables]
            through = _Intercepted.apply(lambda g: self._mean_of_tables(g, row), *own)
            tables = dict(zip(self._tables, through, strict=True))
        # Only here: a forward of the learner alone exchanges nothing.
        hook = hypernetwork.register_forward_hook(intercept)
        try:
            return functional_call(self.module, tables, (x, y, task, optimizer))
        finally:
            hook.remove()

    def losses(
        self, x: Tensor, y: Tensor, task: int, *, optimizer: Optimizer | None = None
    ) -> Losses:
        """Return the same as a call."""
        return self(x, y, task, optimizer=optimizer)

    def step(
        self,
        x: Tensor,
        y: Tensor,
        task: int,
        optimizers: Mapping[str, Optimizer],
        before_update: Callable[[], None] | None = None,
    ) -> Losses:
        """Take an ordinary step on this process's part of a batch.

        Args:
            x, y, task, optimizers, before_update: As in the learner's ``step``.

        Raises:
            TypeError: The learner has a step of its own, which exchanges nothing.
        """
        kind = type(self.learner)
        if kind.step is not Learner.step:
            raise TypeError(
                f"a {kind.__name__} has a step of its own, whose gradients are not exchanged here; "
                "give it to a Trainer in a block of hypermask_fast.data_parallel()"
            )
        return ordinary_step(self.losses, x, y, task, optimizers, before_update)

    @torch.no_grad()
    def mean(self, losses: Losses) -> Losses:
        """Return losses, averaged over the processes for logging; the logits stay the local ones.

        Call it in every process.
        """
        scalars = losses.scalars()
        total, task, *terms = self._mean(list(scalars.values()))
        return Losses(total, task, losses.logits, dict(zip(losses.terms, terms, strict=True)))

    def shard(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return this process's rows of a batch that is the same in every process.

        Args:
            tensors: (batch, ...), such as inputs and labels.

        Raises:
            ValueError: The number of processes does not divide the batch.
        """
        world, rank = dist.get_world_size(self._group), dist.get_rank(self._group)
        for tensor in tensors:
            if len(tensor) % world:
                raise ValueError(
                    f"a batch has {len(tensor)} rows for {world} processes; choose a batch size "
                    f"that {world} divides, and drop_last=True in a DataLoader"
                )
        return tuple(tensor.tensor_split(world)[rank] for tensor in tensors)
