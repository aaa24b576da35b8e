"""Data-parallel training in a loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from weakref import WeakSet

import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import Optimizer

from hypermask_fast.hypernetworks.sharded import place_of
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.training.distributed.alike import check_same_layout, copy_tasks, copy_weights
from hypermask_fast.training.distributed.batch_norm import repeated_together
from hypermask_fast.training.distributed.exchange import Exchange
from hypermask_fast.training.distributed.processes import Processes


def _check(learner: Learner) -> None:
    if not isinstance(learner, Learner):
        raise TypeError(
            f"learner is a {type(learner).__name__}; give a learner of this package, such as "
            "HyperMask(net), and torch's own DistributedDataParallel any other module"
        )


class DistributedDataParallel(nn.Module):
    """Trains one learner in several processes, each with its part of every batch.

    Its call gives the losses of a local batch, and a backward pass through them leaves the same
    gradients in every process: those of one process with the whole batch. Any optimizer takes its
    usual step then, :class:`~hypermask_fast.FactoredAdam` in all its forms among them. A method
    whose step is its own, as HNET's, has :meth:`step`.

    A learner says what is exchanged. Of HyperMask these are the N gradients of the current task's
    mask logits, and the N of the target network; with ``bn="per_task"`` also a row of each
    normalisation layer. Never the hypernetwork's: its inputs, and so its regularizer, are the same
    everywhere, and the gradients of all its parameters follow from those of the logits. The
    processes must therefore run on the same kind of device.

    Parameters, buffers, tasks and, within a task, its targets are copied from process 0 to all
    others here, once; so it is enough that process 0 loads a checkpoint before. The state of an
    optimizer is not. Call ``add_task``, ``begin_task`` and ``end_task`` in every process.

    Batch norm uses the statistics of the whole batch. Dropout, which each process draws by itself,
    is the only difference to one process. Buffers of the target network other than those of
    normalisation layers follow process 0.

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
        learner: A learner, on its device, built alike in every process.
        process_group: The processes. Default: all.

    Attributes:
        learner: The learner.

    Raises:
        RuntimeError: No process group is initialised, or this process is not in it.
        TypeError: It is no learner.
        ValueError: The processes have different learners.
    """

    def __init__(self, learner: Learner, process_group: dist.ProcessGroup | None = None) -> None:
        _check(learner)
        place_of(process_group)
        super().__init__()
        self.learner = learner
        self._processes = Processes(process_group)
        check_same_layout(learner, self._processes)
        copy_weights(learner, self._processes)
        copy_tasks(learner, self._processes)
        self._exchange = Exchange(self._processes, learner)
        self._exchanges_at_end = False
        self._with_exchange: WeakSet[Optimizer] = WeakSet()
        # A checkpoint's repetition in the backward pass, which a device may run in its own thread.
        self._repeated = [
            repeated_together(module, self._repetition)
            for module in learner.modules()
            if isinstance(module, _BatchNorm)
        ]

    def forward(
        self, x: Tensor, y: Tensor, task: int, *, optimizer: Optimizer | None = None
    ) -> Losses:
        """Return the losses of this process's part of a batch.

        Args:
            x, y, task, optimizer: As in the learner's ``losses``; equally many rows in every
                process.
        """
        self._exchanges_at_end = False  # a backward pass may have failed on its way
        with self._of_rows(y):
            losses = self.learner.losses(x, y, task, optimizer=optimizer)
        for value in (*losses.scalars().values(), losses.logits):
            if value.requires_grad:
                value.register_hook(self._exchange_at_the_end)
        return losses

    def _of_rows(self, y: Tensor) -> AbstractContextManager[None]:
        """Return the context of losses of this process's part of a batch, of which y is."""
        return self._exchange.of_rows(self._processes.share(len(y) * self._processes.world))

    def _repetition(self) -> AbstractContextManager[object] | None:
        """Return what a batch norm runs in within a backward pass of these losses."""
        return self._exchange.statistics() if self._exchanges_at_end else None

    def _exchange_at_the_end(self, _: Tensor) -> None:
        """Exchange gradients, once, when the backward pass that comes here has ended."""
        if not self._exchanges_at_end:
            self._exchanges_at_end = True
            Variable._execution_engine.queue_callback(self._exchange_now)

    def _exchange_now(self) -> None:
        self._exchanges_at_end = False
        self._exchange.gradients(self.learner.parameters())
        self._exchange.buffers()

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
        """Take the learner's step on this process's part of a batch.

        Args:
            x, y, task, optimizers, before_update: As in the learner's ``step``. From now on these
                optimizers exchange the gradients that they read.

        Returns:
            The losses of this process's part.
        """
        for optimizer in optimizers.values():
            if optimizer not in self._with_exchange:
                self._exchange.before_steps_of(optimizer)
                self._with_exchange.add(optimizer)
        with self._of_rows(y):
            losses = self.learner.step(x, y, task, optimizers, before_update)
        self._exchange.buffers()
        return losses

    def mean(self, losses: Losses) -> Losses:
        """Return losses, averaged over the processes for logging; the logits stay the local ones.

        Call it in every process.
        """
        return self._exchange.losses(losses)[0]

    def shard(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return this process's rows of a batch that is the same in every process.

        Args:
            tensors: (batch, ...), such as inputs and labels.

        Raises:
            ValueError: The number of processes does not divide the batch.
        """
        world, rank = self._processes.world, self._processes.rank
        for tensor in tensors:
            if len(tensor) % world:
                raise ValueError(
                    f"a batch has {len(tensor)} rows for {world} processes; choose a batch size "
                    f"that {world} divides, and drop_last=True in a DataLoader"
                )
        return tuple(tensor.tensor_split(world)[rank] for tensor in tensors)
